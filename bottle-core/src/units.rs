//! Numbers with their unit in the type.

use std::fmt::{self, Display, Formatter};
use std::num::NonZero;

use serde::{Deserialize, Serialize};

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
