//! Rules between the client and the shim: whole, or not at all.

use bottle_core::policy::{Action, Dlp, Policy, Rule, WrittenMode, WrittenRule};
use bottle_wire::client::LaunchRule;

const MODES: [(WrittenMode, &str); 3] = [
    (WrittenMode::Inspect, "inspect"),
    (WrittenMode::Splice, "splice"),
    (WrittenMode::Tcp, "tcp"),
];

const DLP: [Dlp; 4] = [Dlp::Block, Dlp::Redact, Dlp::Warn, Dlp::Off];

/// Writes a policy down for the shim.
pub(crate) fn launched(policy: &Policy) -> Vec<LaunchRule> {
    let word = |mode| MODES.iter().find(|(known, _)| *known == mode);
    let launched = |rule: &Rule| {
        let WrittenRule {
            action,
            host,
            ports,
            methods,
            paths,
            mode,
            private,
            wide,
            dlp,
            credential,
            max_body,
            max_names,
        } = rule.into();
        LaunchRule {
            is_denial: action == Action::Deny,
            host,
            ports,
            methods,
            paths,
            mode: mode.and_then(word).map(|(_, word)| (*word).to_owned()),
            private,
            wide,
            dlp: dlp.map(|dlp| dlp.as_str().to_owned()),
            credential,
            max_body,
            max_names,
        }
    };
    policy.rules().iter().map(launched).collect()
}

/// Reads the policy that a client has written down; `None` if any part of it is unknown.
pub(crate) fn policy_of(rules: Vec<LaunchRule>) -> Option<Policy> {
    let rule = |launched: LaunchRule| {
        let LaunchRule {
            is_denial,
            host,
            ports,
            methods,
            paths,
            mode,
            private,
            wide,
            dlp,
            credential,
            max_body,
            max_names,
        } = launched;
        let mode = match mode {
            None => None,
            Some(word) => Some(MODES.iter().find(|(_, known)| *known == word)?.0),
        };
        let dlp = match dlp {
            None => None,
            Some(word) => Some(*DLP.iter().find(|known| known.as_str() == word)?),
        };
        let action = if is_denial {
            Action::Deny
        } else {
            Action::Allow
        };
        let written = WrittenRule {
            action,
            host,
            ports,
            methods,
            paths,
            mode,
            private,
            wide,
            dlp,
            credential,
            max_body,
            max_names,
        };
        Rule::try_from(written).ok()
    };
    let rules: Option<Vec<_>> = rules.into_iter().map(rule).collect();
    rules.map(Policy::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(host: &str) -> WrittenRule {
        WrittenRule {
            host: host.to_owned(),
            ..WrittenRule::default()
        }
    }

    fn policy() -> Policy {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let rules = [
            written("plain.test"),
            WrittenRule {
                ports: vec![443, 8443],
                methods: texts(&["GET", "POST"]),
                paths: texts(&["/v1", "/v2"]),
                private: true,
                dlp: Some(Dlp::Redact),
                credential: Some("key".to_owned()),
                max_body: Some(1 << 40),
                ..written("full.test")
            },
            WrittenRule {
                mode: Some(WrittenMode::Splice),
                wide: true,
                max_names: Some(3),
                ..written("*.github.io")
            },
            WrittenRule {
                mode: Some(WrittenMode::Tcp),
                ports: vec![22],
                ..written("git.test")
            },
            WrittenRule {
                action: Action::Deny,
                paths: texts(&["/admin"]),
                ..written("*.test.test")
            },
        ];
        Policy::new(rules.map(|rule| Rule::try_from(rule).unwrap()))
    }

    #[test]
    fn the_shim_has_the_policy_that_the_client_has() {
        assert_eq!(policy_of(launched(&policy())), Some(policy()));
    }

    #[test]
    fn a_rule_that_is_not_understood_is_no_policy() {
        let broken = |change: fn(&mut LaunchRule)| {
            let mut rules = launched(&policy());
            change(&mut rules[0]);
            policy_of(rules)
        };
        assert_eq!(broken(|rule| rule.mode = Some("glance".to_owned())), None);
        assert_eq!(broken(|rule| rule.dlp = Some("maybe".to_owned())), None);
        assert_eq!(broken(|rule| rule.host = "10.0.0.1".to_owned()), None);
        assert_eq!(broken(|rule| rule.max_body = Some(0)), None);
    }
}
