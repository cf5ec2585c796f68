//! The answer to "may it?", and why not.

use serde::{Deserialize, Serialize};

use super::rule::{Grant, Inspect, Rule};

/// A decision. Permission names its rule; there is no other way to get one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a new verdict must break every match"
)]
pub enum Verdict<'a, P> {
    /// This allows it.
    Allow(P),
    /// This rule forbids it, whatever others say.
    Deny(&'a Rule),
    /// Nothing allows it.
    Refuse(Reason),
}

/// Leave to open a flow to a name and port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "it is matched where flows are served"
)]
pub struct FlowPermit<'a> {
    /// The rule that gives it.
    pub rule: &'a Rule,
    /// What the rule grants; its mode is the flow's.
    pub grant: &'a Grant,
}

/// Leave to send one request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "it is matched where requests are carried"
)]
pub struct RequestPermit<'a> {
    /// The rule that gives it.
    pub rule: &'a Rule,
    /// What the rule grants.
    pub grant: &'a Grant,
    /// What holds for the request.
    pub inspect: &'a Inspect,
    /// Whether some rule for the host speaks of methods, so that the request may have but one.
    pub hangs_on_method: bool,
}

/// Why something was refused; the serialised form is stable.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(
    clippy::exhaustive_enums,
    reason = "a new reason must be worded wherever one is shown"
)]
pub enum Reason {
    /// Every address of the name is one that a bottle may not reach (loopback, private, metadata…).
    AddressNotAllowed,
    /// The upstream's answer could hold a credential and cannot be scrubbed.
    AnswerWithheld,
    /// CONNECT name, SNI, Host or `:authority` differ from each other.
    AuthorityMismatch,
    /// The peer did not speak the protocol that the port or rule calls for.
    BadProtocol,
    /// The request cannot be judged safely (malformed, ambiguous framing, forbidden method).
    BadRequest,
    /// The credential that the rule puts in could not be had.
    CredentialUnavailable,
    /// A rule forbids it.
    DeniedByRule,
    /// No rule names the host.
    HostNotAllowed,
    /// The destination was an address and not a name.
    IpLiteral,
    /// A limit of the bottle was reached.
    LimitReached,
    /// Some rule allows the path, but none with this method.
    MethodNotAllowed,
    /// Some rule allows the host, but none this path.
    PathNotAllowed,
    /// Some rule names the host, but none with this port.
    PortNotAllowed,
    /// The request carries a secret.
    SecretFound,
    /// A UDP datagram to a port that is not DNS.
    UdpNotAllowed,
    /// The name could not be resolved by the host.
    UpstreamNotResolved,
    /// The upstream could not be reached, or its certificate did not verify.
    UpstreamUnreachable,
}
