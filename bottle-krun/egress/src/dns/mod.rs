//! The DNS filter: one message in, one synthetic answer out.

use std::sync::Arc;

use bottle_core::event::EventSink;
use bottle_core::policy::Policy;

use crate::names::NameTable;
use crate::scan::Scanner;

/// Answers the guest's DNS messages without ever asking anybody.
#[derive(Debug)]
pub(crate) struct DnsFilter {
    policy: Arc<Policy>,
    names: Arc<NameTable>,
    scanner: Arc<Scanner>,
    events: Arc<dyn EventSink>,
}

impl DnsFilter {
    /// Makes the filter of one bottle.
    pub(crate) fn new(
        policy: Arc<Policy>,
        names: Arc<NameTable>,
        scanner: Arc<Scanner>,
        events: Arc<dyn EventSink>,
    ) -> Self {
        Self {
            policy,
            names,
            scanner,
            events,
        }
    }

    /// Answers one DNS message; total. `None` means silence.
    pub(crate) fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let _ = (
            &self.policy,
            &self.names,
            &self.scanner,
            &self.events,
            query,
        );
        None
    }
}
