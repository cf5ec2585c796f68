//! What all flows of one bottle share.

use std::sync::Arc;

use bottle_core::policy::{Policy, Reason, Verdict};
use tokio::sync::Semaphore;

use crate::ca::Authority;
use crate::denial::Refusal;
use crate::ledger::{Ledger, Seen};
use crate::names::NameTable;
use crate::scan::Scanner;
use crate::session::{Target, literal};
use crate::upstream::Dialer;

/// The bottle's policy and the parts that carry it out.
pub(crate) struct Shared {
    pub(crate) policy: Arc<Policy>,
    pub(crate) names: Arc<NameTable>,
    pub(crate) scanner: Arc<Scanner>,
    pub(crate) ledger: Ledger,
    pub(crate) authority: Authority,
    pub(crate) dialer: Arc<Dialer>,
    /// One permit per connection.
    pub(crate) connections: Arc<Semaphore>,
}

impl Shared {
    /// Judges a flow by its target and port: the one policy of all entrances.
    pub(crate) fn judge(&self, target: &Target, port: u16) -> Result<(), Refusal> {
        let name = match target {
            Target::Address(address) => return Err(literal(*address)),
            Target::Name(name) => name,
        };
        if let Some(finding) = self.scanner.scan_text(name.as_str().as_bytes()) {
            return Err(Refusal::new(
                Reason::SecretFound,
                format!("host name contains secret: {}", finding.name),
            ));
        }
        match self.policy.decide(name, port) {
            Verdict::Allow(_) => Ok(()),
            Verdict::Refuse(reason) => Err(Refusal::unlisted(reason, name, port)),
        }
    }

    /// Records a refusal that no request was read for.
    pub(crate) fn refuse_flow(&self, target: &Target, port: u16, refusal: &Refusal) {
        let seen = Seen {
            host: target.shown(self),
            port,
            method: None,
            path: None,
        };
        self.ledger.refused(&seen, refusal);
    }

    /// Says whether a refusal on this port can be explained by HTTP, inside TLS or not.
    pub(crate) fn speaks_http(&self, port: u16) -> bool {
        HTTP_PORTS.contains(&port) || self.policy.ports().contains(&port)
    }
}

const HTTP_PORTS: [u16; 5] = [80, 443, 8000, 8080, 8443];
