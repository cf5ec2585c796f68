//! Names of bottles: parsed once, then valid as a directory name and as a host name.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The longest id, in bytes.
pub const MAX_ID_LEN: usize = 40;

/// The identity of one bottle: `[a-z0-9-]{1,40}`, neither beginning nor ending with `-`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BottleId(String);

impl BottleId {
    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BottleId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for BottleId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        if text.is_empty() {
            return Err(IdError::Empty);
        }
        if text.len() > MAX_ID_LEN {
            return Err(IdError::TooLong { len: text.len() });
        }
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if let Some(found) = text.chars().find(|c| !legal(*c)) {
            return Err(IdError::Character { found });
        }
        if text.starts_with('-') || text.ends_with('-') {
            return Err(IdError::Hyphen);
        }
        Ok(Self(text))
    }
}

impl From<BottleId> for String {
    fn from(id: BottleId) -> Self {
        id.0
    }
}

impl Display for BottleId {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is no bottle id.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum IdError {
    /// It holds a character other than `a-z`, `0-9` and `-`.
    #[error("{found:?} is not allowed in a name (use `a-z`, `0-9` and `-`)")]
    Character {
        /// The first such character.
        found: char,
    },
    /// It is empty.
    #[error("a name needs at least one character")]
    Empty,
    /// It begins or ends with a hyphen.
    #[error("a name neither begins nor ends with `-`")]
    Hyphen,
    /// It is longer than [`MAX_ID_LEN`].
    #[error("a name has at most {MAX_ID_LEN} characters, this one has {len}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_name_is_legal_exactly_if_its_grammar_says_so(text in "[a-zA-Z0-9./_ -]{0,44}") {
            let middle = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-');
            let model = (1..=MAX_ID_LEN).contains(&text.len())
                && text.chars().all(middle)
                && !text.starts_with('-')
                && !text.ends_with('-');
            prop_assert_eq!(text.parse::<BottleId>().is_ok(), model);
        }

        #[test]
        fn a_legal_name_is_one_component_of_a_path(text in any::<String>()) {
            if let Ok(id) = text.parse::<BottleId>() {
                let mut parts = Path::new(id.as_str()).components();
                prop_assert_eq!(parts.next(), Some(Component::Normal(text.as_ref())));
                prop_assert_eq!(parts.next(), None);
            }
        }
    }

    #[test]
    fn a_name_in_a_file_is_parsed_as_one_on_the_command_line() {
        serde_json::from_str::<BottleId>(r#""web""#).unwrap();
        serde_json::from_str::<BottleId>(r#""../web""#).unwrap_err();
    }

    #[test]
    fn a_name_is_parsed_once_and_refused_with_its_reason() {
        assert_eq!("web-1".parse::<BottleId>().unwrap().as_str(), "web-1");
        assert_eq!("".parse::<BottleId>(), Err(IdError::Empty));
        assert_eq!(
            "../x".parse::<BottleId>(),
            Err(IdError::Character { found: '.' })
        );
        assert_eq!("-x".parse::<BottleId>(), Err(IdError::Hyphen));
        assert_eq!(
            "x".repeat(41).parse::<BottleId>(),
            Err(IdError::TooLong { len: 41 })
        );
    }
}
