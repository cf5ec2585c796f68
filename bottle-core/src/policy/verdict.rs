//! The answer to "may it?", and why not.

use serde::{Deserialize, Serialize};

use super::Rule;

/// A decision. Permission names its rule; there is no other way to get one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a new verdict must break every match"
)]
pub enum Verdict<'a> {
    /// This rule allows it.
    Allow(&'a Rule),
    /// Nothing allows it.
    Refuse(Reason),
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
    /// CONNECT name, SNI, Host or `:authority` differ from each other.
    AuthorityMismatch,
    /// The peer did not speak the protocol that the port or rule calls for.
    BadProtocol,
    /// The request cannot be judged safely (malformed, ambiguous framing, forbidden method).
    BadRequest,
    /// No rule names the host.
    HostNotAllowed,
    /// The destination was an address and not a name.
    IpLiteral,
    /// A limit of the bottle was reached.
    LimitReached,
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
