//! What a bottle may reach, and the functions that decide.
//!
//! Deny is the absence of a rule: [`Policy::default`] allows nothing, and no code path allows
//! without naming the [`Rule`] that did. Order does not matter: a rule that denies wins, then the
//! most specific rule that allows. Rules only add: what a wide one allows is taken away by a rule
//! that denies, not by a narrow one that allows. This module does no I/O.
//!
//! There are two decisions, each complete in itself: [`Policy::connect`] when a flow begins, by name
//! and port, and [`Policy::request`] at the head of each request, by everything.

mod decide;
mod host;
mod method;
mod path;
mod rule;
#[cfg(test)]
mod tests;
mod verdict;
mod wildcard;
mod written;

pub use host::{HostError, HostName, HostPattern};
pub use method::{MAX_METHOD, Method, MethodError};
pub use path::{PathError, PathPrefix, RequestPath};
pub use rule::{
    CredentialName, CredentialNameError, DEFAULT_PORT, Dlp, Effect, Grant, Inspect, Mode,
    PLAIN_HTTP_PORT, Requests, Rule,
};
pub use verdict::{FlowPermit, Reason, RequestPermit, Verdict};
pub use wildcard::{DEFAULT_MAX_NAMES, MAX_WILDCARD_LABEL};
pub use written::{Action, RuleError, WrittenMode, WrittenRule};

/// The rules of one bottle. The empty policy denies everything.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
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
        collected(self.rules.iter())
    }

    /// Returns the ports on which some rule expects TLS or HTTP, so that a refusal there can be
    /// explained; ascending, each once.
    pub fn explained_ports(&self) -> Vec<u16> {
        collected(self.rules.iter().filter(|rule| match rule.effect() {
            Effect::Allow(grant) => match grant.mode() {
                Mode::Inspect(_) | Mode::Splice => true,
                Mode::Tcp => false,
            },
            Effect::Deny(_) => false,
        }))
    }
}

fn collected<'a>(rules: impl Iterator<Item = &'a Rule>) -> Vec<u16> {
    let mut ports: Vec<_> = rules.flat_map(Rule::ports).copied().collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}
