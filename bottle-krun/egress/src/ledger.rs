//! Decisions become events, each with an id that the guest is told too.

use std::fmt::{self, Debug, Formatter};
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bottle_core::event::{EventSink, Happening};
use bottle_core::policy::Dlp;
use rustls::crypto::SecureRandom;

use crate::denial::Refusal;
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

/// Writes decisions down.
#[derive(Clone)]
pub(crate) struct Ledger {
    pub(crate) events: Arc<dyn EventSink>,
    pub(crate) random: &'static dyn SecureRandom,
}

impl Debug for Ledger {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").finish_non_exhaustive()
    }
}

impl Ledger {
    /// Records a refusal and returns its id.
    pub(crate) fn refused(&self, seen: &Seen, refusal: &Refusal) -> String {
        let id = self.id();
        tracing::info!(
            event = %id, host = %seen.host, port = seen.port, reason = ?refusal.reason,
            "egress refused"
        );
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
            self.ledger.events.record(Happening::Allowed {
                id: self.ledger.id(),
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

const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
