//! Synthetic addresses: which name each of them stands for.

use std::net::Ipv4Addr;

use bottle_core::policy::{HostName, Policy};

/// The one table of a bottle's synthetic addresses, in both directions.
#[derive(Debug)]
pub(crate) struct NameTable {}

impl NameTable {
    /// Pins an address for every exact name of the policy.
    pub(crate) fn new(policy: &Policy) -> Self {
        let _ = policy;
        Self {}
    }

    /// Returns the name that the address was handed out for.
    pub(crate) fn name_of(&self, address: Ipv4Addr) -> Option<HostName> {
        let _ = (self, address);
        None
    }

    /// Returns the address of the name, handing out one if it has none yet.
    ///
    /// `None` if the quota of names is spent.
    pub(crate) fn address_of(&self, name: &HostName) -> Option<Ipv4Addr> {
        let _ = (self, name);
        None
    }
}
