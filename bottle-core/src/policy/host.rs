//! Host names and patterns over them: lower case, no trailing dot, never an address.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::text::Escaped;

/// A DNS host name in its one canonical form: ASCII lower case, no trailing dot, at least one
/// letter in the last label (so that no IPv4 literal in any notation passes for a name).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

impl HostName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let wrong = |why| {
            Err(HostError {
                text: text.to_owned(),
                why,
            })
        };
        if name.is_empty() {
            return wrong("it is empty");
        }
        if name.len() > 253 {
            return wrong("it has more than 253 characters");
        }
        if !name.is_ascii() {
            return wrong("it is not ASCII (write the `xn--` form)");
        }
        for label in name.split('.') {
            if label.is_empty() {
                return wrong("it has an empty label");
            }
            if label.len() > 63 {
                return wrong("a label has more than 63 characters");
            }
            if label.starts_with('-') || label.ends_with('-') {
                return wrong("a label begins or ends with `-`");
            }
            if !label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            {
                return wrong("a label holds a character other than `a-z`, `0-9`, `-` and `_`");
            }
        }
        let last = name.rsplit('.').next().unwrap_or(&name);
        let is_number = last.bytes().all(|b| b.is_ascii_digit())
            || last
                .strip_prefix("0x")
                .is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        if is_number {
            return wrong("it is an address (a rule names a host)");
        }
        Ok(Self(name))
    }
}

impl TryFrom<String> for HostName {
    type Error = HostError;

    fn try_from(text: String) -> Result<Self, HostError> {
        text.parse()
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> Self {
        name.0
    }
}

impl Display for HostName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which names a rule speaks of: one name, or every name below one (`*.suffix`, not the apex).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[expect(
    clippy::exhaustive_enums,
    reason = "a new kind of pattern must break every match"
)]
pub enum HostPattern {
    /// This name alone.
    Exact(HostName),
    /// Every name with at least one more label than this suffix.
    Below(HostName),
}

impl HostPattern {
    /// Says whether the pattern covers the name.
    pub fn matches(&self, name: &HostName) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Below(suffix) => name
                .as_str()
                .strip_suffix(suffix.as_str())
                .is_some_and(|left| left.len() > 1 && left.ends_with('.')),
        }
    }

    /// Orders patterns that cover the same name: an exact one first, then the longer suffix.
    pub(super) fn specificity(&self) -> (bool, usize) {
        match self {
            Self::Exact(name) => (true, name.as_str().len()),
            Self::Below(suffix) => (false, suffix.as_str().len()),
        }
    }
}

impl FromStr for HostPattern {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        match text.strip_prefix("*.") {
            None => Ok(Self::Exact(text.parse()?)),
            Some(suffix) => {
                let suffix: HostName = suffix.parse()?;
                if suffix.as_str().contains('.') {
                    Ok(Self::Below(suffix))
                } else {
                    Err(HostError {
                        text: text.to_owned(),
                        why: "a wildcard needs a suffix of at least two labels",
                    })
                }
            }
        }
    }
}

impl TryFrom<String> for HostPattern {
    type Error = HostError;

    fn try_from(text: String) -> Result<Self, HostError> {
        text.parse()
    }
}

impl From<HostPattern> for String {
    fn from(pattern: HostPattern) -> Self {
        pattern.to_string()
    }
}

impl Display for HostPattern {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::Below(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

/// Why a text is no host name or pattern.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("`{}` is not a host name: {why}", Escaped(text))]
pub struct HostError {
    text: String,
    why: &'static str,
}
