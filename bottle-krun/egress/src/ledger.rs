//! Decisions become events, each with an id that the guest is told too.

use std::fmt::{self, Debug, Formatter};
use std::mem;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bottle_core::event::{EventSink, Happening};
use bottle_core::policy::Dlp;
use rustls::crypto::SecureRandom;

use crate::denial::Refusal;
use crate::recent::{Admission, Counted, Key, Recent};
use crate::session::Terms;
use crate::tunnel::Counts;

/// What a decision is about, in the words that may be recorded: every field has passed the scan.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Seen {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) method: Option<String>,
    pub(crate) path: Option<String>,
}

/// Writes decisions down. All clones share one memory of what was written lately.
#[derive(Clone)]
pub(crate) struct Ledger {
    events: Arc<dyn EventSink>,
    random: &'static dyn SecureRandom,
    recent: Arc<Mutex<Recent>>,
}

impl Debug for Ledger {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").finish_non_exhaustive()
    }
}

impl Ledger {
    pub(crate) fn new(events: Arc<dyn EventSink>, random: &'static dyn SecureRandom) -> Self {
        Self {
            events,
            random,
            recent: Arc::new(Mutex::new(Recent::new(Instant::now()))),
        }
    }

    /// Returns what makes unpredictable bytes.
    pub(crate) fn random(&self) -> &'static dyn SecureRandom {
        self.random
    }

    /// Records a refusal and returns its id, or that of the last one like it if there are too many.
    pub(crate) fn refused(&self, seen: &Seen, refusal: &Refusal) -> String {
        let id = self.id();
        tracing::info!(
            event = %id, host = %seen.host, port = seen.port, reason = ?refusal.reason,
            "egress refused"
        );
        let key = (
            "refused",
            seen.host.clone(),
            seen.port,
            refusal.detail.clone(),
        );
        if let Some(known) = self.counted(key, &id, MAX_REFUSALS) {
            return known;
        }
        self.events.record(Happening::Refused {
            id: id.clone(),
            host: seen.host.clone(),
            port: seen.port,
            method: seen.method.clone(),
            path: seen.path.clone(),
            reason: refusal.reason,
            detail: refusal.detail.clone(),
        });
        id
    }

    /// Returns the id under which a decision was counted; `None` if it is to be recorded.
    fn counted(&self, key: Key, id: &str, most: u32) -> Option<String> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let (admission, over) = recent.admit(key, id, most, Instant::now());
        drop(recent);
        self.repeated(over);
        match admission {
            Admission::Counted(known) => Some(known),
            Admission::Record => None,
        }
    }

    fn repeated(&self, over: Counted) {
        for (id, count) in over {
            self.events.record(Happening::Repeated { id, count });
        }
    }

    /// Opens the record of an allowed request; it is written when the value goes.
    pub(crate) fn allowed(&self, seen: Seen, rule: String) -> Allowed {
        Allowed {
            ledger: self.clone(),
            seen: Some(seen),
            rule,
            status: None,
            dialled: None,
        }
    }

    /// Records a secret in a request that goes on.
    pub(crate) fn secret_seen(&self, seen: &Seen, terms: &Terms, detail: String) {
        tracing::info!(host = %seen.host, port = seen.port, rule = %terms.rule, "egress secret seen");
        self.events.record(Happening::SecretSeen {
            id: self.id(),
            host: seen.host.clone(),
            port: seen.port,
            method: seen.method.clone(),
            path: seen.path.clone(),
            rule: terms.rule.clone(),
            overwritten: terms.dlp == Dlp::Redact,
            detail,
        });
    }

    /// Records that a flow was opened which is not looked into; returns its id.
    pub(crate) fn opened(&self, seen: Seen, rule: String, dialled: IpAddr) -> String {
        let id = self.id();
        self.events.record(Happening::Allowed {
            id: id.clone(),
            host: seen.host,
            port: seen.port,
            method: None,
            path: None,
            rule,
            status: None,
            dialled: Some(dialled),
        });
        id
    }

    fn id(&self) -> String {
        let mut bytes = [0_u8; 8];
        if self.random.fill(&mut bytes).is_err() {
            // An id is a label; the decision stands without one.
            return "00000000".to_owned();
        }
        bytes
            .iter()
            .map(|byte| char::from(BASE32[usize::from(byte & 31)]))
            .collect()
    }
}

/// An allowed request whose outcome is not known yet. Dropping it records what is known.
pub(crate) struct Allowed {
    ledger: Ledger,
    seen: Option<Seen>,
    rule: String,
    pub(crate) status: Option<u16>,
    pub(crate) dialled: Option<IpAddr>,
}

impl Allowed {
    /// Takes it back: the request was refused after all, or never reached its host.
    pub(crate) fn withdraw(mut self) {
        self.seen = None;
    }
}

impl Drop for Allowed {
    fn drop(&mut self) {
        if let Some(seen) = self.seen.take() {
            let id = self.ledger.id();
            let key = ("allowed", seen.host.clone(), seen.port, self.rule.clone());
            if self.ledger.counted(key, &id, MAX_ALLOWED).is_some() {
                return;
            }
            self.ledger.events.record(Happening::Allowed {
                id,
                host: seen.host,
                port: seen.port,
                method: seen.method,
                path: seen.path,
                rule: mem::take(&mut self.rule),
                status: self.status,
                dialled: self.dialled,
            });
        }
    }
}

/// A flow that is not looked into. Dropping it records its end.
pub(crate) struct Closing {
    pub(crate) ledger: Ledger,
    pub(crate) id: String,
    pub(crate) counts: Arc<Counts>,
    pub(crate) began: Instant,
}

impl Drop for Closing {
    fn drop(&mut self) {
        let took = self.began.elapsed().as_millis();
        self.ledger.events.record(Happening::Closed {
            id: mem::take(&mut self.id),
            sent: self.counts.sent.load(Ordering::Relaxed),
            received: self.counts.received.load(Ordering::Relaxed),
            took_ms: u64::try_from(took).unwrap_or(u64::MAX),
        });
    }
}

/// So many refusals of a kind are recorded one by one in a window.
const MAX_REFUSALS: u32 = 32;
/// So many requests under a rule to a host are.
const MAX_ALLOWED: u32 = 4096;
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
