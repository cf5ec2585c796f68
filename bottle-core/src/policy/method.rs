//! Request methods, as a rule may name them.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use thiserror::Error;

use crate::text::Escaped;

/// The longest method that is understood anywhere.
pub const MAX_METHOD: usize = 32;

/// A method that a rule names, upper case as the wire has it.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Method(String);

impl Method {
    /// Returns the method as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Says whether a request's method is this one to the letter: what a permission asks.
    pub(super) fn is(&self, method: &str) -> bool {
        self.0 == method
    }

    /// Says whether some server might take a request's method for this one: what a denial asks.
    pub(super) fn is_like(&self, method: &str) -> bool {
        self.0.eq_ignore_ascii_case(method)
    }
}

impl FromStr for Method {
    type Err = MethodError;

    fn from_str(text: &str) -> Result<Self, MethodError> {
        let wrong = |why| {
            Err(MethodError {
                text: text.to_owned(),
                why,
            })
        };
        if text.is_empty() || text.len() > MAX_METHOD {
            return wrong("it has 1 to 32 characters");
        }
        if !text.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') {
            return wrong("write it in capital letters, as `GET`");
        }
        if matches!(text, "CONNECT" | "TRACE") {
            return wrong("no rule can allow it");
        }
        Ok(Self(text.to_owned()))
    }
}

impl Display for Method {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is no method.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("`{}` is not a method: {why}", Escaped(text))]
pub struct MethodError {
    text: String,
    why: &'static str,
}
