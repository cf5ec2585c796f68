//! One rule: what it speaks of, and what it says about it. A [`Rule`] cannot be contradictory.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::num::NonZero;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::host::{HostName, HostPattern};
use super::method::Method;
use super::path::{PathPrefix, RequestPath};
use crate::text::Escaped;

/// The port a rule allows when it names none.
pub const DEFAULT_PORT: u16 = 443;

/// The port on which HTTP without TLS is spoken, where a rule names it.
pub const PLAIN_HTTP_PORT: u16 = 80;

/// One rule of a policy. Made from a [`WrittenRule`](super::WrittenRule) or from `HOST[:PORT]`.
///
/// # Security
///
/// Every value is consistent: methods and paths stand only where requests are seen, a credential
/// only where host, method and path are all named, a wildcard over a public suffix only where the
/// rule said so.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Rule {
    pub(super) host: HostPattern,
    /// Ascending, at least one.
    pub(super) ports: Vec<u16>,
    pub(super) effect: Effect,
}

/// What a rule says.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a new effect must break every match"
)]
pub enum Effect {
    /// It may, so far.
    Allow(Grant),
    /// It may not, whatever other rules say: these requests, or the whole flow if all.
    Deny(Requests),
}

/// A permission.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Grant {
    pub(super) mode: Mode,
    pub(super) private: bool,
    pub(super) max_names: Option<NonZero<u32>>,
}

/// How closely a flow is looked at.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[expect(clippy::exhaustive_enums, reason = "a new mode must break every match")]
pub enum Mode {
    /// TLS ends at the gateway; every request is judged and scanned.
    Inspect(Inspect),
    /// The name in the TLS handshake is checked; what is inside passes unseen.
    Splice,
    /// Nothing is looked at.
    Tcp,
}

/// What holds for the requests that a permission covers.
#[derive(Clone, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Inspect {
    pub(super) requests: Requests,
    pub(super) dlp: Dlp,
    pub(super) credential: Option<CredentialName>,
    pub(super) max_body: Option<NonZero<u64>>,
}

/// Which requests. The default is all.
#[derive(Clone, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Requests {
    /// Empty means any.
    pub(super) methods: BTreeSet<Method>,
    /// Empty means any.
    pub(super) paths: BTreeSet<PathPrefix>,
}

/// What becomes of a request in which a secret is found. From the strictest on.
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
#[expect(
    clippy::exhaustive_enums,
    reason = "a new way to treat secrets must break every match"
)]
pub enum Dlp {
    /// It is refused.
    #[default]
    Block,
    /// The secret is overwritten, where it can be; else the request is refused.
    Redact,
    /// It passes, and an event says what passed.
    Warn,
    /// Nothing is looked for.
    Off,
}

impl Dlp {
    /// Returns the word in which a rule says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Redact => "redact",
            Self::Warn => "warn",
            Self::Off => "off",
        }
    }
}

/// The name of a credential that the gateway puts into requests: `[a-z0-9-]`, 1 to 40 of them.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CredentialName(String);

impl CredentialName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CredentialName {
    type Err = CredentialNameError;

    fn from_str(text: &str) -> Result<Self, CredentialNameError> {
        let is_name = (1..=40).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if is_name {
            Ok(Self(text.to_owned()))
        } else {
            Err(CredentialNameError {
                text: text.to_owned(),
            })
        }
    }
}

/// A text is no name of a credential.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error(
    "`{}` is not the name of a credential (use 1 to 40 of `a-z`, `0-9`, `-`)",
    Escaped(text)
)]
pub struct CredentialNameError {
    text: String,
}

impl Rule {
    /// Allows every request to one host on one port: what a name and a port alone mean.
    pub fn for_host(host: HostName, port: NonZero<u16>) -> Self {
        Self {
            host: HostPattern::Exact(host),
            ports: vec![port.get()],
            effect: Effect::Allow(Grant {
                mode: Mode::Inspect(Inspect::default()),
                private: false,
                max_names: None,
            }),
        }
    }

    /// Returns which names the rule speaks of.
    pub fn host(&self) -> &HostPattern {
        &self.host
    }

    /// Returns the ports it speaks of, ascending, each once.
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// Returns what it says.
    pub fn effect(&self) -> &Effect {
        &self.effect
    }

    /// Returns what it permits, if it permits.
    pub fn grant(&self) -> Option<&Grant> {
        match &self.effect {
            Effect::Allow(grant) => Some(grant),
            Effect::Deny(_) => None,
        }
    }

    /// Returns which requests it denies, if it denies.
    pub(super) fn denied(&self) -> Option<&Requests> {
        match &self.effect {
            Effect::Allow(_) => None,
            Effect::Deny(requests) => Some(requests),
        }
    }

    /// Returns which requests it speaks of; `None` for a flow that is not looked into.
    pub(super) fn requests(&self) -> Option<&Requests> {
        match &self.effect {
            Effect::Allow(grant) => grant.inspect().map(|inspect| &inspect.requests),
            Effect::Deny(requests) => Some(requests),
        }
    }

    /// Says whether it speaks of connections to this name and port.
    pub(super) fn concerns(&self, host: &HostName, port: u16) -> bool {
        self.host.matches(host) && self.ports.contains(&port)
    }
}

impl Grant {
    /// Returns how closely the flow is looked at.
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// Says whether the host may have a loopback, private or link-local address.
    pub fn is_private(&self) -> bool {
        self.private
    }

    /// Returns how many names under the rule's wildcard a bottle may use.
    pub fn max_names(&self) -> u32 {
        self.max_names
            .map_or(super::wildcard::DEFAULT_MAX_NAMES, NonZero::get)
    }

    /// Returns what holds for requests, if they are looked at.
    pub fn inspect(&self) -> Option<&Inspect> {
        match &self.mode {
            Mode::Inspect(inspect) => Some(inspect),
            Mode::Splice | Mode::Tcp => None,
        }
    }
}

impl Inspect {
    /// Returns which requests are covered.
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// Returns what becomes of secrets.
    pub fn dlp(&self) -> Dlp {
        self.dlp
    }

    /// Returns which credential is put in.
    pub fn credential(&self) -> Option<&CredentialName> {
        self.credential.as_ref()
    }

    /// Returns the most bytes that a request's body may have.
    pub fn max_body(&self) -> Option<u64> {
        self.max_body.map(NonZero::get)
    }
}

impl Requests {
    /// Returns the methods; empty means any.
    pub fn methods(&self) -> impl Iterator<Item = &Method> {
        self.methods.iter()
    }

    /// Returns the prefixes of paths; empty means any.
    pub fn paths(&self) -> impl Iterator<Item = &PathPrefix> {
        self.paths.iter()
    }

    /// Says whether no request is left out.
    pub fn is_all(&self) -> bool {
        self.methods.is_empty() && self.paths.is_empty()
    }

    pub(super) fn allows_method(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|known| known.is(method))
    }

    /// Returns how many segments of the path are fixed by the longest prefix that covers it.
    pub(super) fn allows_path(&self, path: Option<&RequestPath>) -> Option<usize> {
        if self.paths.is_empty() {
            return Some(0);
        }
        let path = path?;
        let covering = self.paths.iter().filter(|prefix| prefix.covers(path));
        covering.map(PathPrefix::len).max()
    }

    pub(super) fn denies(&self, method: &str, path: Option<&RequestPath>) -> bool {
        let has_method =
            self.methods.is_empty() || self.methods.iter().any(|known| known.is_like(method));
        let has_path = self.paths.is_empty()
            || path.is_some_and(|path| self.paths.iter().any(|p| p.might_cover(path)));
        has_method && has_path
    }
}

/// Writes the rule as one line: `allow HOST[:PORT,…] [methods] [paths] [(…)]`.
impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let verb = match &self.effect {
            Effect::Allow(_) => "allow",
            Effect::Deny(_) => "deny",
        };
        write!(f, "{verb} {}", self.host)?;
        if self.ports != [DEFAULT_PORT] {
            write!(f, ":{}", joined(&self.ports))?;
        }
        if let Some(Requests { methods, paths }) = self.requests() {
            for list in [joined(methods), joined(paths)] {
                if !list.is_empty() {
                    write!(f, " {list}")?;
                }
            }
        }
        let Effect::Allow(grant) = &self.effect else {
            return Ok(());
        };
        let mut notes = Vec::new();
        match &grant.mode {
            Mode::Splice => notes.push("splice: not inspected".to_owned()),
            Mode::Tcp => notes.push("tcp: not inspected".to_owned()),
            Mode::Inspect(inspect) => {
                if inspect.dlp != Dlp::default() {
                    notes.push(format!("dlp {}", inspect.dlp.as_str()));
                }
                if let Some(name) = &inspect.credential {
                    notes.push(format!("credential {}", name.as_str()));
                }
                if let Some(most) = inspect.max_body {
                    notes.push(format!("bodies up to {most} bytes"));
                }
            }
        }
        if grant.private {
            notes.push("private addresses".to_owned());
        }
        if self.host.is_wide() {
            notes.push("wide".to_owned());
        }
        if let Some(most) = grant.max_names {
            notes.push(format!("up to {most} names"));
        }
        if notes.is_empty() {
            return Ok(());
        }
        write!(f, " ({})", notes.join(", "))
    }
}

fn joined<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(",")
}
