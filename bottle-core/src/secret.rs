//! Values that must be neither printed, nor serialised, nor left in memory.

use std::fmt::{self, Debug, Formatter};

use zeroize::Zeroizing;

/// The fewest bytes a known value may have: shorter ones would match by accident everywhere.
pub const MIN_SECRET_LEN: usize = 8;

/// A secret value with the name by which events call it.
///
/// # Security
///
/// `Debug` shows the name only; there is no `Display` and no `Serialize`. The bytes are zeroised on
/// drop. Copies that the system made (swap, a core dump) are not covered.
#[derive(Clone)]
pub struct Secret {
    name: String,
    value: Zeroizing<Vec<u8>>,
}

impl Secret {
    /// Takes a value under a name.
    ///
    /// Returns `None` if the value has fewer than [`MIN_SECRET_LEN`] bytes.
    pub fn new(name: impl Into<String>, value: impl Into<Vec<u8>>) -> Option<Self> {
        let value = Zeroizing::new(value.into());
        (value.len() >= MIN_SECRET_LEN).then(|| Self {
            name: name.into(),
            value,
        })
    }

    /// Returns the name under which it is reported.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the value itself.
    pub fn expose(&self) -> &[u8] {
        &self.value
    }
}

impl Debug for Secret {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_only_shown_to_who_asks_for_it() {
        let secret = Secret::new("env:TOKEN", *b"hunter2-hunter2").unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(env:TOKEN)");
        assert_eq!(secret.name(), "env:TOKEN");
        assert_eq!(secret.expose(), b"hunter2-hunter2");
    }

    #[test]
    fn a_value_that_would_match_by_accident_is_not_taken() {
        assert!(Secret::new("x", *b"1234567").is_none());
        assert!(Secret::new("x", *b"12345678").is_some());
    }
}
