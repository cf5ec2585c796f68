//! The DNS filter: one message in, one synthetic answer out. Nobody else is ever asked.
//!
//! | question | answer |
//! | --- | --- |
//! | `A` of a listed name | its pinned address |
//! | `A` of an unlisted name | a shared address, so that the gateway can explain its refusal |
//! | `AAAA`, `HTTPS`, `SVCB`, `SOA`, `NS`, `CNAME`, `MX`, `TXT` of either | empty |
//! | `localhost` and below | loopback |
//! | special-use, metadata and single-label names, `PTR` | NXDOMAIN |
//! | a name with a secret, a long label under a wildcard, past a quota; the rest | REFUSED |
//!
//! [`message`] turns bytes to a query and an answer to bytes, [`filter`] decides, this module keeps
//! the table and the record.

mod coalesce;
mod filter;
mod message;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bottle_core::event::{EventSink, Happening};
use bottle_core::policy::{HostName, Policy};

use crate::names::NameTable;
use crate::scan::Scanner;
use coalesce::{Admission, Coalescer};
use filter::Ruling;
use message::{Answer, Query, Rcode, Rejection};

/// Stands in an event for a name that carries a secret.
const REDACTED: &str = "(redacted: it carries a secret)";

/// Answers the guest's DNS messages without ever asking anybody.
///
/// # Security
///
/// A listed name under a wildcard reaches the upstream's name servers when the gateway resolves it:
/// its labels are limited in length and number and scanned for secrets first. No other name leaves
/// the host.
#[derive(Debug)]
pub(crate) struct DnsFilter {
    policy: Arc<Policy>,
    names: Arc<NameTable>,
    scanner: Arc<Scanner>,
    events: Arc<dyn EventSink>,
    recorded: Mutex<Coalescer>,
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
            recorded: Mutex::new(Coalescer::new(Instant::now())),
        }
    }

    /// Answers one DNS message; total. `None` means silence.
    pub(crate) fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let query = match Query::parse(query) {
            Ok(query) => query,
            Err(Rejection::Reply(reply)) => return Some(reply.to_vec()),
            Err(Rejection::Silence) => return None,
        };
        let has_secret = self.has_secret(&query);
        let (answer, verdict) = match filter::rule(&self.policy, &query, has_secret) {
            Ruling::Listed(name) => match self.address_of(&name) {
                Answer::Fail(rcode) => (Answer::Fail(rcode), Some("refused")),
                found @ (Answer::Address(_) | Answer::Empty) => (found, None),
            },
            Ruling::Plain(answer) => (answer, None),
            Ruling::Refuse(Answer::Fail(Rcode::NxDomain)) => {
                (Answer::Fail(Rcode::NxDomain), Some("nxdomain"))
            }
            Ruling::Refuse(answer) => (answer, Some("refused")),
            Ruling::Unlisted(name, None) => (self.address_of(&name), Some("unlisted")),
            Ruling::Unlisted(_, Some(answer)) => (answer, Some("unlisted")),
        };
        if let Some(verdict) = verdict {
            let name = if has_secret {
                REDACTED.to_owned()
            } else {
                printable(&query)
            };
            self.record(name, query.qtype, verdict);
        }
        Some(query.answer(answer))
    }

    fn address_of(&self, name: &HostName) -> Answer {
        match self.names.address_of(name) {
            Some(address) => Answer::Address(address.into()),
            None => Answer::Fail(Rcode::Refused),
        }
    }

    /// Scans the name as written, and its labels joined: a value longer than a label has to be cut.
    fn has_secret(&self, query: &Query<'_>) -> bool {
        let labels: Vec<_> = query.name.labels().collect();
        [labels.join(&b'.'), labels.concat()]
            .iter()
            .any(|text| self.scanner.scan_text(text).is_some())
    }

    fn record(&self, name: String, qtype: u16, answer: &'static str) {
        let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        let admission = recorded.admit(&name, answer, Instant::now());
        drop(recorded);
        let qtype = type_name(qtype);
        match admission {
            Admission::Drop => {}
            Admission::Overflow => self.events.record(Happening::Violation {
                what: "more DNS names were refused than are recorded in a minute".to_owned(),
            }),
            Admission::Record => self.events.record(Happening::Dns {
                name,
                qtype,
                answer: answer.to_owned(),
            }),
        }
    }
}

/// Returns the name for an event: lower case, what is not ASCII text as `\xNN`.
fn printable(query: &Query<'_>) -> String {
    if query.name.is_root() {
        return ".".to_owned();
    }
    let labels: Vec<_> = query
        .name
        .labels()
        .map(|label| label.to_ascii_lowercase().escape_ascii().to_string())
        .collect();
    labels.join(".")
}

fn type_name(number: u16) -> String {
    let name = match number {
        1 => "A",
        2 => "NS",
        5 => "CNAME",
        6 => "SOA",
        12 => "PTR",
        15 => "MX",
        16 => "TXT",
        28 => "AAAA",
        33 => "SRV",
        35 => "NAPTR",
        64 => "SVCB",
        65 => "HTTPS",
        255 => "ANY",
        other => return format!("TYPE{other}"),
    };
    name.to_owned()
}
