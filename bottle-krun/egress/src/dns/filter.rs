//! What is said to which question. Pure: a policy and a question in, a [`Ruling`] out.

use std::net::{Ipv4Addr, Ipv6Addr};

use bottle_core::policy::{HostName, HostPattern, Policy};

use super::message::{Answer, CLASS_IN, Query, Rcode};

/// Top-level names that mean something on this machine or network, or nothing anywhere
/// (RFC 6761, 6762, 7686, 9476, ICANN's `internal`). `test` is one of them too, but a bottle's
/// tests live there, and an explained denial is the better answer to the rest of it.
const SPECIAL: &[&str] = &[
    "alt",
    "arpa",
    "internal",
    "invalid",
    "local",
    "localdomain",
    "onion",
];

/// Names under which clouds hand credentials to whoever runs in them, outside `internal`.
const METADATA: &[&str] = &[
    "metadata.goog",
    "metadata.google.internal",
    "metadata.packet.net",
    "metadata.platformequinix.com",
    "metadata.tencentyun.com",
];

/// A record type, as far as it matters here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Type {
    A,
    Aaaa,
    Other(u16),
    Ptr,
    /// One that a name can well be without: SOA, NS, CNAME, MX, TXT, SVCB, HTTPS.
    Optional,
}

impl Type {
    const fn new(number: u16) -> Self {
        match number {
            1 => Self::A,
            2 | 5 | 6 | 15 | 16 | 64 | 65 => Self::Optional,
            12 => Self::Ptr,
            28 => Self::Aaaa,
            other => Self::Other(other),
        }
    }
}

/// What is to be said. The name is there where the table or an event needs it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Ruling {
    /// The synthetic address of a name that a rule lists.
    Listed(HostName),
    /// Nothing about the name is decided here, or nothing is worth an event.
    Plain(Answer),
    /// Neither the question nor its like is ever answered with an address.
    Refuse(Answer),
    /// A shared address, or none, of a name that no rule lists.
    Unlisted(HostName, Option<Answer>),
}

/// Decides. `has_secret` says whether the question's name carries one.
pub(super) fn rule(policy: &Policy, query: &Query<'_>, has_secret: bool) -> Ruling {
    let refused = Answer::Fail(Rcode::Refused);
    let absent = Answer::Fail(Rcode::NxDomain);
    if query.edns_version.is_some_and(|version| version != 0) {
        return Ruling::Plain(Answer::Fail(Rcode::BadVersion));
    }
    if has_secret || query.qclass != CLASS_IN || query.name.is_root() {
        return Ruling::Refuse(refused);
    }
    let Some(name) = host_name(query) else {
        return Ruling::Refuse(absent);
    };
    let qtype = Type::new(query.qtype);
    if is_under(&name, "localhost") {
        return Ruling::Plain(match qtype {
            Type::A => Answer::Address(Ipv4Addr::LOCALHOST.into()),
            Type::Aaaa => Answer::Address(Ipv6Addr::LOCALHOST.into()),
            Type::Optional => Answer::Empty,
            Type::Other(_) => refused,
            Type::Ptr => absent,
        });
    }
    let listed = policy.lists(&name);
    let is_exact = listed.is_some_and(|rule| matches!(rule.host(), HostPattern::Exact(_)));
    if METADATA.contains(&name.as_str()) && !is_exact || listed.is_none() && is_special(&name) {
        return Ruling::Refuse(absent);
    }
    if listed.is_some_and(|rule| !rule.host().leaves_short_labels(&name)) {
        return Ruling::Refuse(refused);
    }
    let other = match qtype {
        Type::A => None,
        Type::Aaaa | Type::Optional => Some(Answer::Empty),
        Type::Other(_) => Some(refused),
        Type::Ptr => Some(absent),
    };
    match (listed, other) {
        (None, other) => Ruling::Unlisted(name, other),
        (Some(_), None) => Ruling::Listed(name),
        (Some(_), Some(Answer::Empty)) => Ruling::Plain(Answer::Empty),
        (Some(_), Some(other)) => Ruling::Refuse(other),
    }
}

fn host_name(query: &Query<'_>) -> Option<HostName> {
    let mut text = String::new();
    for label in query.name.labels() {
        let label = str::from_utf8(label)
            .ok()
            .filter(|label| !label.contains('.'))?;
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(label);
    }
    text.parse().ok()
}

/// Says whether the name is this one or lies below it.
fn is_under(name: &HostName, top: &str) -> bool {
    name.as_str()
        .strip_suffix(top)
        .is_some_and(|left| left.is_empty() || left.ends_with('.'))
}

fn is_special(name: &HostName) -> bool {
    !name.as_str().contains('.') || SPECIAL.iter().any(|top| is_under(name, top))
}
