//! Numbers with their unit in the type.

use std::fmt::{self, Display, Formatter};
use std::num::NonZero;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// An amount of memory or disk in mebibytes.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct MiB(pub u32);

impl MiB {
    /// Returns the amount in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0) << 20
    }
}

impl Display for MiB {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// Parses whole mebibytes or gibibytes with their unit: `512m`, `512MiB`, `2g`, `2GiB`; not zero.
///
/// A bare number is refused: some tools would read it as bytes and others as mebibytes.
impl FromStr for MiB {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let text = text.trim();
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        if number.is_empty() {
            return Err(SizeError::Number);
        }
        let scale: u32 = match unit.trim_start().to_ascii_lowercase().as_str() {
            "m" | "mb" | "mib" => 1,
            "g" | "gb" | "gib" => 1024,
            "" | "b" | "k" | "kb" | "kib" => return Err(SizeError::Unit),
            _ => return Err(SizeError::Number),
        };
        let mib = number
            .parse::<u32>()
            .ok()
            .and_then(|n| n.checked_mul(scale));
        match mib {
            None => Err(SizeError::TooLarge),
            Some(0) => Err(SizeError::Zero),
            Some(mib) => Ok(Self(mib)),
        }
    }
}

/// Why a text is no size.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum SizeError {
    /// It does not begin with a whole number, or what follows is no unit.
    #[error("a size is a whole number and a unit, as `512m` or `2g`")]
    Number,
    /// It is larger than any machine.
    #[error("a size of more than 4095 TiB cannot be had")]
    TooLarge,
    /// Its unit is missing or smaller than a mebibyte.
    #[error("a size needs the unit `m` (MiB) or `g` (GiB), as `512m` or `2g`")]
    Unit,
    /// It is zero.
    #[error("a size cannot be zero")]
    Zero,
}

/// A number of virtual CPUs; never zero.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Vcpus(pub NonZero<u8>);

impl Vcpus {
    /// One virtual CPU.
    pub const ONE: Self = Self(NonZero::<u8>::MIN);
}

impl Display for Vcpus {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for Vcpus {
    type Err = CountError;

    fn from_str(text: &str) -> Result<Self, CountError> {
        text.parse().map(Self).map_err(|_| CountError)
    }
}

/// The text is no number of virtual CPUs.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("a number of virtual CPUs is a whole number from 1 to 255")]
pub struct CountError;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_size_is_a_whole_number_with_its_unit() {
        for (text, mib) in [
            ("512m", 512),
            ("512MiB", 512),
            ("2g", 2048),
            ("2 GiB", 2048),
        ] {
            assert_eq!(text.parse(), Ok(MiB(mib)), "{text}");
        }
        assert_eq!("512".parse::<MiB>(), Err(SizeError::Unit));
        assert_eq!("512k".parse::<MiB>(), Err(SizeError::Unit));
        assert_eq!("0g".parse::<MiB>(), Err(SizeError::Zero));
        assert_eq!("1.5g".parse::<MiB>(), Err(SizeError::Number));
        assert_eq!("-1g".parse::<MiB>(), Err(SizeError::Number));
        assert_eq!("".parse::<MiB>(), Err(SizeError::Number));
        assert_eq!("5000000000m".parse::<MiB>(), Err(SizeError::TooLarge));
        assert_eq!("4194304g".parse::<MiB>(), Err(SizeError::TooLarge));
        assert_eq!(MiB(3).bytes(), 3 << 20);
        assert_eq!(MiB(u32::MAX).bytes(), u64::from(u32::MAX) << 20);
    }

    #[test]
    fn there_is_always_a_virtual_cpu() {
        assert_eq!("2".parse::<Vcpus>().unwrap().to_string(), "2");
        for text in ["0", "-1", "256", "two", ""] {
            assert_eq!(text.parse::<Vcpus>(), Err(CountError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_printed_size_reads_back(mib in 1..=u32::MAX) {
            prop_assert_eq!(MiB(mib).to_string().parse(), Ok(MiB(mib)));
        }

        #[test]
        fn no_text_makes_the_size_parser_panic(text in any::<String>()) {
            let _ = text.parse::<MiB>();
        }
    }
}
