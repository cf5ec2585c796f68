//! The two decisions: of a flow by name and port, of a request by everything in its head.

use std::cmp::Reverse;

use super::Policy;
use super::host::HostName;
use super::path::RequestPath;
use super::rule::{Mode, Requests, Rule};
use super::verdict::{FlowPermit, Reason, RequestPermit, Verdict};

impl Policy {
    /// Decides on a flow by name and port.
    ///
    /// The most specific host pattern that allows says how the flow is looked at; of rules with the
    /// same pattern, the one that looks most closely. A flow that is not looked into is refused if
    /// any rule denies some of its requests, since nobody could tell them.
    pub fn connect(&self, host: &HostName, port: u16) -> Verdict<'_, FlowPermit<'_>> {
        if let Some(rule) = self.denies_flow(host, port) {
            return Verdict::Deny(rule);
        }
        let Some(permit) = self
            .at(host, port)
            .filter_map(|rule| {
                Some(FlowPermit {
                    rule,
                    grant: rule.grant()?,
                })
            })
            .max_by_key(|permit| {
                (
                    permit.rule.host().specificity(),
                    Reverse(permit.grant.mode()),
                    Reverse(permit.rule),
                )
            })
        else {
            let is_known = self
                .rules
                .iter()
                .any(|rule| rule.grant().is_some() && rule.host().matches(host));
            return Verdict::Refuse(if is_known {
                Reason::PortNotAllowed
            } else {
                Reason::HostNotAllowed
            });
        };
        match permit.grant.mode() {
            Mode::Inspect(_) => Verdict::Allow(permit),
            Mode::Splice | Mode::Tcp => {
                match self.at(host, port).find(|rule| rule.denied().is_some()) {
                    Some(rule) => Verdict::Deny(rule),
                    None => Verdict::Allow(permit),
                }
            }
        }
    }

    /// Decides on one request on a flow that is looked into.
    ///
    /// `path` is the path without its query. Where some rule for the host speaks of paths, one that
    /// servers could read in several ways is refused as [`Reason::BadRequest`].
    pub fn request(
        &self,
        host: &HostName,
        port: u16,
        method: &str,
        path: &str,
    ) -> Verdict<'_, RequestPermit<'_>> {
        match self.connect(host, port) {
            Verdict::Allow(flow) if flow.grant.inspect().is_some() => {}
            Verdict::Allow(_) => return Verdict::Refuse(Reason::BadProtocol),
            Verdict::Deny(rule) => return Verdict::Deny(rule),
            Verdict::Refuse(reason) => return Verdict::Refuse(reason),
        }
        let hangs_on =
            |part: fn(&Requests) -> bool| self.at(host, port).filter_map(Rule::requests).any(part);
        let path = if hangs_on(|requests| !requests.paths.is_empty()) {
            // The target of `OPTIONS *` has no path: no rule that names paths covers it.
            match RequestPath::parse(path) {
                Ok(path) => Some(path),
                Err(_) if path == "*" => None,
                Err(_) => return Verdict::Refuse(Reason::BadRequest),
            }
        } else {
            None
        };
        let path = path.as_ref();
        let denies = |rule: &&Rule| rule.denied().is_some_and(|r| r.denies(method, path));
        if let Some(rule) = self.at(host, port).find(denies) {
            return Verdict::Deny(rule);
        }
        let mut reason = Reason::PathNotAllowed;
        let mut best = None;
        for rule in self.at(host, port) {
            let Some(grant) = rule.grant() else { continue };
            let Some(inspect) = grant.inspect() else {
                continue;
            };
            let Some(depth) = inspect.requests.allows_path(path) else {
                continue;
            };
            if !inspect.requests.allows_method(method) {
                reason = Reason::MethodNotAllowed;
                continue;
            }
            let rank = (
                rule.host().specificity(),
                depth,
                !inspect.requests.methods.is_empty(),
                Reverse(rule.ports().len()),
                // Equally specific: the strictest.
                Reverse(inspect.dlp),
                !grant.is_private(),
                Reverse(rule),
            );
            if best.as_ref().is_none_or(|(known, _)| *known < rank) {
                let permit = RequestPermit {
                    rule,
                    grant,
                    inspect,
                    hangs_on_method: false,
                };
                best = Some((rank, permit));
            }
        }
        match best {
            Some((_, permit)) => Verdict::Allow(RequestPermit {
                hangs_on_method: hangs_on(|requests| !requests.methods.is_empty()),
                ..permit
            }),
            None => Verdict::Refuse(reason),
        }
    }

    /// Returns the rule under which a name is known at all, on any port.
    pub fn lists(&self, host: &HostName) -> Option<&Rule> {
        self.rules
            .iter()
            .filter(|rule| rule.grant().is_some() && rule.host().matches(host))
            .filter(|rule| {
                rule.ports()
                    .iter()
                    .any(|port| self.denies_flow(host, *port).is_none())
            })
            .max_by_key(|rule| (rule.host().specificity(), Reverse(*rule)))
    }

    /// Returns the rule that denies everything to a name on a port.
    fn denies_flow(&self, host: &HostName, port: u16) -> Option<&Rule> {
        self.at(host, port)
            .find(|rule| rule.denied().is_some_and(Requests::is_all))
    }

    /// Returns the rules that speak of a name and port.
    fn at(&self, host: &HostName, port: u16) -> impl Iterator<Item = &Rule> {
        self.rules
            .iter()
            .filter(move |rule| rule.concerns(host, port))
    }
}
