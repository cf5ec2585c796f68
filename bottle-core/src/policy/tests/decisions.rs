//! What a policy decides, against a model that is too simple to be wrong.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;

fn policy(rules: &[&str]) -> Policy {
    Policy::new(rules.iter().map(|rule| rule.parse().unwrap()))
}

fn policy_of(rules: &[WrittenRule]) -> Policy {
    Policy::new(
        rules
            .iter()
            .map(|rule| Rule::try_from(rule.clone()).unwrap()),
    )
}

fn rule(host: &str, methods: &[&str], paths: &[&str]) -> WrittenRule {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    WrittenRule {
        host: host.to_owned(),
        methods: texts(methods),
        paths: texts(paths),
        ..WrittenRule::default()
    }
}

fn deny(rule: WrittenRule) -> WrittenRule {
    WrittenRule {
        action: Action::Deny,
        ..rule
    }
}

/// What a policy says of a request, in short.
fn said(policy: &Policy, host: &str, method: &str, path: &str) -> String {
    match policy.request(&name(host), 443, method, path) {
        Verdict::Allow(permit) => permit.rule.to_string(),
        Verdict::Deny(rule) => rule.to_string(),
        Verdict::Refuse(reason) => format!("{reason:?}"),
    }
}

#[test]
fn the_empty_policy_denies() {
    let nothing = Policy::default();
    let host = name("api.test");
    assert_eq!(
        nothing.connect(&host, 443),
        Verdict::Refuse(Reason::HostNotAllowed)
    );
    assert_eq!(
        nothing.request(&host, 443, "GET", "/"),
        Verdict::Refuse(Reason::HostNotAllowed)
    );
    assert_eq!(nothing.lists(&host), None);
    assert!(nothing.ports().is_empty());
}

#[test]
fn another_port_of_a_listed_host_is_refused_as_such() {
    let rules = policy(&["api.test", "*.api.test:8443"]);
    let refusal = |host: &str, port| match rules.connect(&name(host), port) {
        Verdict::Refuse(reason) => reason,
        other @ (Verdict::Allow(_) | Verdict::Deny(_)) => panic!("{other:?}"),
    };
    assert_eq!(refusal("api.test", 80), Reason::PortNotAllowed);
    assert_eq!(refusal("x.api.test", 443), Reason::PortNotAllowed);
    assert_eq!(refusal("apitest", 443), Reason::HostNotAllowed);
    assert_eq!(rules.ports(), [443, 8443]);
}

#[test]
fn the_most_specific_rule_is_the_one_that_is_named() {
    let rules = policy(&["*.b.test", "*.a.b.test", "x.a.b.test"]);
    assert_eq!(said(&rules, "x.a.b.test", "GET", "/"), "allow x.a.b.test");
    assert_eq!(said(&rules, "y.a.b.test", "GET", "/"), "allow *.a.b.test");
    assert_eq!(said(&rules, "y.b.test", "GET", "/"), "allow *.b.test");
    assert_eq!(said(&rules, "b.test", "GET", "/"), "HostNotAllowed");
    let rules = policy_of(&[
        rule("a.test", &[], &[]),
        rule("a.test", &[], &["/v1"]),
        rule("a.test", &["POST"], &["/v1"]),
        rule("a.test", &[], &["/v1/files"]),
        rule("*.test.test", &[], &["/v1"]),
    ]);
    assert_eq!(said(&rules, "a.test", "GET", "/x"), "allow a.test");
    assert_eq!(said(&rules, "a.test", "GET", "/v1/x"), "allow a.test /v1");
    assert_eq!(
        said(&rules, "a.test", "POST", "/v1/x"),
        "allow a.test POST /v1"
    );
    assert_eq!(
        said(&rules, "a.test", "POST", "/v1/files/x"),
        "allow a.test /v1/files"
    );
}

#[test]
fn a_request_needs_one_rule_that_allows_all_of_it() {
    let rules = policy_of(&[
        rule("a.test", &["GET"], &["/a"]),
        rule("a.test", &["POST"], &["/b"]),
    ]);
    assert_eq!(said(&rules, "a.test", "GET", "/a/x"), "allow a.test GET /a");
    assert_eq!(said(&rules, "a.test", "POST", "/a"), "MethodNotAllowed");
    assert_eq!(said(&rules, "a.test", "get", "/a"), "MethodNotAllowed");
    assert_eq!(said(&rules, "a.test", "HEAD", "/a"), "MethodNotAllowed");
    assert_eq!(said(&rules, "a.test", "GET", "/c"), "PathNotAllowed");
    assert_eq!(said(&rules, "a.test", "OPTIONS", "*"), "PathNotAllowed");
    assert_eq!(said(&rules, "a.test", "GET", "/a/../b"), "BadRequest");
    assert_eq!(said(&rules, "b.test", "GET", "/a"), "HostNotAllowed");
}

#[test]
fn a_path_matters_only_where_a_rule_speaks_of_paths() {
    let open = policy_of(&[rule("a.test", &["GET"], &[])]);
    assert_eq!(
        said(&open, "a.test", "GET", "/@scope%2fname"),
        "allow a.test GET"
    );
    assert_eq!(
        said(&open, "a.test", "GET", "//a/../b;c"),
        "allow a.test GET"
    );
    let guarded = policy_of(&[
        rule("a.test", &[], &[]),
        deny(rule("a.test", &[], &["/admin"])),
    ]);
    assert_eq!(said(&guarded, "a.test", "GET", "/x"), "allow a.test");
    for path in ["/admin", "/admin/", "/Admin/x", "/%61dmin"] {
        assert_eq!(
            said(&guarded, "a.test", "GET", path),
            "deny a.test /admin",
            "{path}"
        );
    }
    for path in ["//admin", "/x/../admin", "/x%2f..%2fadmin", "/;/admin"] {
        assert_eq!(
            said(&guarded, "a.test", "GET", path),
            "BadRequest",
            "{path}"
        );
    }
}

#[test]
fn a_denial_wins_over_every_permission() {
    let rules = policy_of(&[
        rule("x.a.test", &["DELETE"], &["/v1/deep/path"]),
        rule("*.a.test", &[], &[]),
        deny(rule("*.a.test", &["DELETE"], &[])),
        deny(rule("y.a.test", &[], &[])),
    ]);
    assert_eq!(said(&rules, "x.a.test", "GET", "/"), "allow *.a.test");
    for method in ["DELETE", "delete", "Delete"] {
        assert_eq!(
            said(&rules, "x.a.test", method, "/v1/deep/path"),
            "deny *.a.test DELETE"
        );
    }
    assert_eq!(said(&rules, "y.a.test", "GET", "/"), "deny y.a.test");
    assert!(matches!(
        rules.connect(&name("y.a.test"), 443),
        Verdict::Deny(_)
    ));
    assert_eq!(rules.lists(&name("y.a.test")), None);
    assert!(rules.lists(&name("z.a.test")).is_some());
}

#[test]
fn a_flow_is_looked_at_as_the_most_specific_host_says() {
    let mode = |host: &str, mode| WrittenRule {
        mode: Some(mode),
        ..rule(host, &[], &[])
    };
    let rules = policy_of(&[
        mode("*.a.test", WrittenMode::Splice),
        rule("in.a.test", &[], &[]),
        mode("both.a.test", WrittenMode::Splice),
        rule("both.a.test", &[], &["/v1"]),
        mode("guarded.a.test", WrittenMode::Splice),
        deny(rule("guarded.a.test", &["PUT"], &[])),
        WrittenRule {
            ports: vec![22],
            ..mode("git.a.test", WrittenMode::Tcp)
        },
    ]);
    let flow = |host: &str, port| match rules.connect(&name(host), port) {
        Verdict::Allow(flow) => flow.rule.to_string(),
        Verdict::Deny(rule) => rule.to_string(),
        Verdict::Refuse(reason) => format!("{reason:?}"),
    };
    assert_eq!(
        flow("x.a.test", 443),
        "allow *.a.test (splice: not inspected)"
    );
    assert_eq!(flow("in.a.test", 443), "allow in.a.test");
    assert_eq!(
        flow("both.a.test", 443),
        "allow both.a.test /v1",
        "the closer look"
    );
    assert_eq!(
        flow("guarded.a.test", 443),
        "deny guarded.a.test PUT",
        "nobody could tell a PUT"
    );
    assert_eq!(
        flow("git.a.test", 22),
        "allow git.a.test:22 (tcp: not inspected)"
    );
    // What is not looked into is never judged as a request.
    assert_eq!(said(&rules, "x.a.test", "GET", "/"), "BadProtocol");
    assert_eq!(rules.ports(), [22, 443]);
    assert_eq!(rules.explained_ports(), [443]);
}

#[test]
fn of_equally_specific_rules_the_strictest_is_chosen() {
    let dlp = |dlp| WrittenRule {
        dlp: Some(dlp),
        ..rule("a.test", &[], &[])
    };
    let rules = policy_of(&[dlp(Dlp::Off), dlp(Dlp::Warn), dlp(Dlp::Redact)]);
    match rules.request(&name("a.test"), 443, "GET", "/") {
        Verdict::Allow(permit) => assert_eq!(permit.inspect.dlp(), Dlp::Redact),
        other @ (Verdict::Deny(_) | Verdict::Refuse(_)) => panic!("{other:?}"),
    }
    let private = WrittenRule {
        private: true,
        ..rule("a.test", &[], &[])
    };
    let rules = policy_of(&[private, rule("a.test", &[], &[])]);
    match rules.request(&name("a.test"), 443, "GET", "/") {
        Verdict::Allow(permit) => assert!(!permit.grant.is_private()),
        other @ (Verdict::Deny(_) | Verdict::Refuse(_)) => panic!("{other:?}"),
    }
}

#[test]
fn a_request_hangs_on_its_method_where_some_rule_names_methods() {
    let hangs =
        |rules: &[WrittenRule]| match policy_of(rules).request(&name("a.test"), 443, "GET", "/") {
            Verdict::Allow(permit) => permit.hangs_on_method,
            other @ (Verdict::Deny(_) | Verdict::Refuse(_)) => panic!("{other:?}"),
        };
    assert!(!hangs(&[rule("a.test", &[], &[])]));
    assert!(hangs(&[rule("a.test", &["GET"], &[])]));
    assert!(hangs(&[
        rule("a.test", &[], &[]),
        deny(rule("a.test", &["PUT"], &[]))
    ]));
}

#[test]
fn the_serialized_reasons_are_stable() {
    let all = [
        Reason::AddressNotAllowed,
        Reason::AnswerWithheld,
        Reason::AuthorityMismatch,
        Reason::BadProtocol,
        Reason::BadRequest,
        Reason::CredentialUnavailable,
        Reason::DeniedByRule,
        Reason::HostNotAllowed,
        Reason::IpLiteral,
        Reason::LimitReached,
        Reason::MethodNotAllowed,
        Reason::PathNotAllowed,
        Reason::PortNotAllowed,
        Reason::SecretFound,
        Reason::UdpNotAllowed,
        Reason::UpstreamNotResolved,
        Reason::UpstreamUnreachable,
    ];
    assert_eq!(
        serde_json::to_string(&all).unwrap(),
        r#"["address-not-allowed","answer-withheld","authority-mismatch","bad-protocol","bad-request","credential-unavailable","denied-by-rule","host-not-allowed","ip-literal","limit-reached","method-not-allowed","path-not-allowed","port-not-allowed","secret-found","udp-not-allowed","upstream-not-resolved","upstream-unreachable"]"#
    );
}

/// Some of a few things; none means any.
fn some_of(all: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    let none = Just(Vec::new());
    let some = subsequence(all.to_vec(), 1..=all.len())
        .prop_map(|texts| texts.into_iter().map(str::to_owned).collect());
    prop_oneof![none, some]
}

/// Few names, so that rules and requests meet.
fn near_hosts() -> impl Strategy<Value = String> {
    select(vec!["a.test", "x.a.test", "y.x.a.test", "b.test"]).prop_map(str::to_owned)
}

fn near_patterns() -> impl Strategy<Value = String> {
    select(vec![
        "a.test",
        "x.a.test",
        "*.a.test",
        "*.x.a.test",
        "b.test",
    ])
    .prop_map(str::to_owned)
}

/// Rules that meet each other often.
fn rules() -> impl Strategy<Value = Vec<WrittenRule>> {
    let rule = (
        near_patterns(),
        vec(select(vec![80_u16, 443, 8443]), 1..3),
        some_of(&["GET", "POST"]),
        some_of(&["/a", "/a/b", "/b"]),
        option::of(select(vec![WrittenMode::Splice, WrittenMode::Tcp])),
        select(vec![Dlp::Block, Dlp::Warn]),
        0..4_u8,
    );
    let rule = rule.prop_map(|(host, ports, methods, paths, mode, dlp, kind)| {
        let rule = WrittenRule {
            host,
            ports,
            ..WrittenRule::default()
        };
        match (kind, mode) {
            (0, _) => WrittenRule {
                action: Action::Deny,
                methods,
                paths,
                ..rule
            },
            (1, Some(_)) => WrittenRule { mode, ..rule },
            (_, _) => WrittenRule {
                methods,
                paths,
                dlp: Some(dlp),
                ..rule
            },
        }
    });
    vec(
        rule.prop_filter("contradictory", |rule| Rule::try_from(rule.clone()).is_ok()),
        0..8,
    )
}

fn is_prefix(prefix: &str, path: &str) -> bool {
    path == prefix
        || path
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with('/'))
}

/// The policy once more, rule by rule, on texts: `None` is refused, else how it is looked at.
fn model_of_flow(rules: &[WrittenRule], host: &str, port: u16) -> Option<WrittenMode> {
    let at: Vec<_> = rules
        .iter()
        .filter(|r| covers(&r.host, host) && r.ports.contains(&port))
        .collect();
    let (denials, grants): (Vec<_>, Vec<_>) =
        at.into_iter().partition(|r| r.action == Action::Deny);
    if denials
        .iter()
        .any(|r| r.methods.is_empty() && r.paths.is_empty())
    {
        return None;
    }
    // An exact name has no star, so it is the longest that remains after the star is taken off.
    let weight = |r: &WrittenRule| (!r.host.starts_with('*'), r.host.len());
    let most = grants.iter().map(|r| weight(r)).max()?;
    let modes: Vec<_> = grants
        .iter()
        .filter(|r| weight(r) == most)
        .map(|r| r.mode.unwrap_or(WrittenMode::Inspect))
        .collect();
    for mode in [WrittenMode::Inspect, WrittenMode::Splice, WrittenMode::Tcp] {
        if modes.contains(&mode) {
            return (mode == WrittenMode::Inspect || denials.is_empty()).then_some(mode);
        }
    }
    None
}

fn model_allows(rules: &[WrittenRule], host: &str, port: u16, method: &str, path: &str) -> bool {
    let says = |r: &WrittenRule| {
        covers(&r.host, host)
            && r.ports.contains(&port)
            && (r.methods.is_empty() || r.methods.iter().any(|m| m == method))
            && (r.paths.is_empty() || r.paths.iter().any(|p| is_prefix(p, path)))
    };
    model_of_flow(rules, host, port) == Some(WrittenMode::Inspect)
        && !rules.iter().any(|r| r.action == Action::Deny && says(r))
        && rules
            .iter()
            .any(|r| r.action == Action::Allow && r.mode.is_none() && says(r))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn flows_and_requests_are_allowed_exactly_as_the_model_says(
        rules in rules(),
        host in near_hosts(),
        port in select(vec![80_u16, 443, 8443]),
        method in select(vec!["GET", "POST", "PUT"]),
        path in select(vec!["/", "/a", "/a/b/c", "/ab", "/b/a", "/c"]),
    ) {
        let policy = policy_of(&rules);
        let host_name = name(&host);
        let flow = match policy.connect(&host_name, port) {
            Verdict::Allow(flow) => {
                prop_assert!(policy.rules().contains(flow.rule));
                prop_assert!(flow.rule.host().matches(&host_name) && flow.rule.ports().contains(&port));
                Some(match flow.grant.mode() {
                    Mode::Inspect(_) => WrittenMode::Inspect,
                    Mode::Splice => WrittenMode::Splice,
                    Mode::Tcp => WrittenMode::Tcp,
                })
            }
            Verdict::Deny(rule) => {
                prop_assert!(matches!(rule.effect(), Effect::Deny(_)));
                None
            }
            Verdict::Refuse(_) => None,
        };
        prop_assert_eq!(flow, model_of_flow(&rules, &host, port));
        let allowed = match policy.request(&host_name, port, method, path) {
            Verdict::Allow(permit) => {
                let alone = Policy::new([permit.rule.clone()]);
                let stands_alone = matches!(alone.request(&host_name, port, method, path), Verdict::Allow(_));
                prop_assert!(stands_alone, "the rule that is named allows it by itself");
                true
            }
            Verdict::Deny(rule) => {
                prop_assert!(matches!(rule.effect(), Effect::Deny(_)));
                false
            }
            Verdict::Refuse(_) => false,
        };
        prop_assert_eq!(allowed, model_allows(&rules, &host, port, method, path));
        let listed = [80, 443, 8443].iter().any(|port| {
            let at = |r: &&WrittenRule| covers(&r.host, &host) && r.ports.contains(port);
            rules.iter().filter(at).any(|r| r.action == Action::Allow)
                && !rules.iter().filter(at).any(|r| {
                    r.action == Action::Deny && r.methods.is_empty() && r.paths.is_empty()
                })
        });
        prop_assert_eq!(policy.lists(&host_name).is_some(), listed);
    }

    #[test]
    fn order_and_repetition_of_rules_carry_no_meaning(rules in rules(), host in near_hosts()) {
        let forward = policy_of(&rules);
        let turned: Vec<_> = rules.iter().rev().chain(&rules).cloned().collect();
        let backward = policy_of(&turned);
        prop_assert_eq!(&forward, &backward);
        let host = name(&host);
        prop_assert_eq!(
            forward.request(&host, 443, "GET", "/a/b"),
            backward.request(&host, 443, "GET", "/a/b")
        );
    }

    #[test]
    fn a_denial_never_allows_and_a_permission_never_denies(rules in rules(), host in near_hosts(), more in rules()) {
        let host = name(&host);
        let is_allowed = |rules: &[WrittenRule]| {
            matches!(policy_of(rules).request(&host, 443, "GET", "/a/b"), Verdict::Allow(_))
        };
        let with = |action| -> Vec<WrittenRule> {
            // A closer or a looser look is a decision of its own: the model has it.
            let added = more.iter().filter(|r| r.action == action && r.mode.is_none());
            rules.iter().chain(added).cloned().collect()
        };
        prop_assert!(is_allowed(&rules) || !is_allowed(&with(Action::Deny)));
        if rules.iter().all(|r| r.mode.is_none()) {
            prop_assert!(!is_allowed(&rules) || is_allowed(&with(Action::Allow)));
        }
    }
}
