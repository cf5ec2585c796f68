//! What all flows of one bottle share.

use std::sync::Arc;

use bottle_core::policy::{HostName, HostPattern, Mode, Policy, Reason, Rule, Verdict};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ca::Authority;
use crate::credential::Vault;
use crate::denial::Refusal;
use crate::dial::Dialer;
use crate::ledger::{Ledger, Seen};
use crate::names::NameTable;
use crate::scan::{Finding, Scanner};
use crate::session::{Target, literal};

/// The bottle's policy and the parts that carry it out.
pub(crate) struct Shared {
    pub(crate) policy: Arc<Policy>,
    pub(crate) names: Arc<NameTable>,
    pub(crate) scanner: Arc<Scanner>,
    pub(crate) ledger: Ledger,
    pub(crate) vault: Vault,
    pub(crate) authority: Authority,
    pub(crate) dialer: Arc<Dialer>,
    /// One permit per connection.
    pub(crate) connections: Arc<Semaphore>,
    /// One permit per request: what is buffered for the guest is bounded by their number.
    pub(crate) requests: Arc<Semaphore>,
}

/// Leave to open a flow.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Leave {
    pub(crate) look: Look,
    /// The rule that gives it, as written.
    pub(crate) rule: String,
    pub(crate) reach: Reach,
}

/// How closely a flow is looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Look {
    Inspect,
    Splice,
    Tcp,
}

/// Which addresses a rule lets be dialled.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reach {
    /// Private ones too.
    Private,
    Public,
}

impl Reach {
    pub(crate) fn of(is_private: bool) -> Self {
        if is_private {
            Self::Private
        } else {
            Self::Public
        }
    }
}

impl Shared {
    /// Judges a flow by its target and port: the one policy of all entrances.
    pub(crate) fn judge(&self, target: &Target, port: u16) -> Result<Leave, Refusal> {
        let name = match target {
            Target::Address(address) => return Err(literal(*address)),
            Target::Name(name) => name,
        };
        if let Some(finding) = self.secret_in(name) {
            return Err(Refusal::new(
                Reason::SecretFound,
                format!("host name contains secret: {}", finding.name),
            ));
        }
        match self.policy.connect(name, port) {
            Verdict::Allow(flow) => {
                self.judge_wildcard(name, flow.rule)?;
                Ok(Leave {
                    look: match flow.grant.mode() {
                        Mode::Inspect(_) => Look::Inspect,
                        Mode::Splice => Look::Splice,
                        Mode::Tcp => Look::Tcp,
                    },
                    rule: flow.rule.to_string(),
                    reach: Reach::of(flow.grant.is_private()),
                })
            }
            Verdict::Deny(rule) => Err(Refusal::denied(rule, name)),
            Verdict::Refuse(reason) => Err(Refusal::unlisted(reason, name, port)),
        }
    }

    /// A name under a wildcard tells its upstream's name servers something: little, and not often.
    fn judge_wildcard(&self, name: &HostName, rule: &Rule) -> Result<(), Refusal> {
        let limit = |detail: String| {
            Err(Refusal::new(Reason::LimitReached, detail).under(&rule.to_string()))
        };
        match rule.host() {
            HostPattern::Exact(_) => Ok(()),
            HostPattern::Below(suffix) if !rule.host().leaves_short_labels(name) => {
                limit(format!("a label of a name under {suffix} is too long"))
            }
            HostPattern::Below(suffix) if self.names.address_of(name).is_none() => {
                limit(format!("too many names under {suffix} were used"))
            }
            HostPattern::Below(_) => Ok(()),
        }
    }

    /// Looks for a secret in a name, and across its labels: a value longer than one has to be cut.
    pub(crate) fn secret_in(&self, name: &HostName) -> Option<Finding> {
        let name = name.as_str();
        self.scanner
            .scan_text(name.as_bytes())
            .or_else(|| self.scanner.scan_text(name.replace('.', "").as_bytes()))
    }

    /// Takes the place of one request; it is free again when the value goes.
    pub(crate) fn begin_request(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        Arc::clone(&self.requests).try_acquire_owned().map_err(|_| {
            Refusal::new(
                Reason::LimitReached,
                format!("more than {MAX_REQUESTS} requests at once"),
            )
        })
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
        HTTP_PORTS.contains(&port) || self.policy.explained_ports().contains(&port)
    }
}

/// Most requests of one bottle at once, their answers included.
pub(crate) const MAX_REQUESTS: usize = 256;

const HTTP_PORTS: [u16; 5] = [80, 443, 8000, 8080, 8443];
