//! What a bottle may reach, and the one function that decides.
//!
//! Deny is the absence of a rule: [`Policy::default`] allows nothing, and no code path allows
//! without naming the [`Rule`] that did. Order does not matter. This module does no I/O.

mod host;
#[cfg(test)]
mod tests;
mod verdict;

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::text::Escaped;

pub use host::{HostError, HostName, HostPattern};
pub use verdict::{Reason, Verdict};

/// The port a rule allows when it names none.
pub const DEFAULT_PORT: u16 = 443;

/// One host (or the names below one) on one port.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Rule {
    /// Which names.
    pub host: HostPattern,
    /// Which port.
    pub port: u16,
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.port == DEFAULT_PORT {
            write!(f, "allow {}", self.host)
        } else {
            write!(f, "allow {}:{}", self.host, self.port)
        }
    }
}

/// Parses `HOST[:PORT]`, as `--allow` takes it.
impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        if let Some((_, rest)) = text.split_once("://") {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            return Err(RuleError::Url {
                host: rest.get(..end).unwrap_or_default().to_owned(),
            });
        }
        let (host, port) = match text.rsplit_once(':') {
            None => (text, DEFAULT_PORT),
            Some((host, port)) => match port.parse() {
                Ok(port) if port != 0 => (host, port),
                Ok(_) | Err(_) => {
                    return Err(RuleError::Port {
                        text: port.to_owned(),
                    });
                }
            },
        };
        Ok(Self {
            host: host.parse()?,
            port,
        })
    }
}

/// Why a text is no rule.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum RuleError {
    /// The part before the port is no host name.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The part after the last `:` is no port.
    #[error("`{}` is not a port (use 1 to 65535)", Escaped(text))]
    Port {
        /// What stood there.
        text: String,
    },
    /// It is a URL; a rule is for a whole host.
    #[error("a rule names a host and no URL (use `{}`)", Escaped(host))]
    Url {
        /// What stands in it between scheme and path.
        host: String,
    },
}

/// The rules of one bottle. The empty policy denies everything.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    rules: Vec<Rule>,
}

impl Policy {
    /// Makes a policy of rules; order and repetition carry no meaning.
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Self {
        let mut rules: Vec<_> = rules.into_iter().collect();
        rules.sort();
        rules.dedup();
        Self { rules }
    }

    /// Returns the rules, sorted.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Returns every port that some rule names, ascending, each once.
    pub fn ports(&self) -> Vec<u16> {
        let mut ports: Vec<_> = self.rules.iter().map(|rule| rule.port).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// Decides on one connection by name and port: the most specific rule that fits allows it.
    pub fn decide(&self, host: &HostName, port: u16) -> Verdict<'_> {
        let fitting = self.rules.iter().filter(|rule| rule.host.matches(host));
        match fitting
            .clone()
            .filter(|rule| rule.port == port)
            .max_by_key(|rule| rule.host.specificity())
        {
            Some(rule) => Verdict::Allow(rule),
            None if fitting.count() > 0 => Verdict::Refuse(Reason::PortNotAllowed),
            None => Verdict::Refuse(Reason::HostNotAllowed),
        }
    }

    /// Returns the rule under which a name is known at all, on any port.
    pub fn lists(&self, host: &HostName) -> Option<&Rule> {
        self.rules
            .iter()
            .filter(|rule| rule.host.matches(host))
            .max_by_key(|rule| rule.host.specificity())
    }
}
