//! What may stand in a rule, and what contradicts what.

use super::*;

fn written(host: &str) -> WrittenRule {
    WrittenRule {
        host: host.to_owned(),
        ..WrittenRule::default()
    }
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[track_caller]
fn refused(rule: WrittenRule) -> String {
    Rule::try_from(rule).unwrap_err().to_string()
}

/// A rule in which everything is said.
fn full() -> WrittenRule {
    WrittenRule {
        ports: vec![8443, 443, 443],
        methods: texts(&["POST", "GET"]),
        paths: texts(&["/v1/", "/v2"]),
        mode: Some(WrittenMode::Inspect),
        private: true,
        dlp: Some(Dlp::Warn),
        credential: Some("api-key".to_owned()),
        max_body: Some(1024),
        ..written("api.test")
    }
}

#[test]
fn a_rule_is_for_port_443_unless_it_names_one() {
    let rule: Rule = "api.test".parse().unwrap();
    assert_eq!(
        (rule.ports(), rule.to_string().as_str()),
        (&[443][..], "allow api.test")
    );
    let rule: Rule = "*.api.test:8443".parse().unwrap();
    assert_eq!(
        (rule.ports(), rule.to_string().as_str()),
        (&[8443][..], "allow *.api.test:8443")
    );
    for text in [
        "api.test:",
        "api.test:0",
        "api.test:65536",
        "api.test:https",
        ":443",
    ] {
        assert!(text.parse::<Rule>().is_err(), "{text}");
    }
    "[::1]:443".parse::<Rule>().unwrap_err();
    "10.0.0.1:443".parse::<Rule>().unwrap_err();
    let error = "https://api.test:8443/v1".parse::<Rule>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "a rule names a host and no URL (use `api.test:8443`)"
    );
}

#[test]
fn a_rule_is_printed_with_all_that_it_says() {
    let print = |rule: WrittenRule| Rule::try_from(rule).unwrap().to_string();
    assert_eq!(
        print(full()),
        "allow api.test:443,8443 GET,POST /v1,/v2 (dlp warn, credential api-key, bodies up to 1024 bytes, private addresses)"
    );
    let deny = WrittenRule {
        action: Action::Deny,
        paths: texts(&["/admin"]),
        ..written("*.api.test")
    };
    assert_eq!(print(deny), "deny *.api.test /admin");
    let ssh = WrittenRule {
        mode: Some(WrittenMode::Tcp),
        ports: vec![22],
        ..written("git.test")
    };
    assert_eq!(print(ssh), "allow git.test:22 (tcp: not inspected)");
    let wide = WrittenRule {
        mode: Some(WrittenMode::Splice),
        wide: true,
        max_names: Some(3),
        ..written("*.github.io")
    };
    assert_eq!(
        print(wide),
        "allow *.github.io (splice: not inspected, wide, up to 3 names)"
    );
}

#[test]
fn a_rule_survives_being_written_down() {
    let wide = WrittenRule {
        wide: true,
        max_names: Some(7),
        ..written("*.github.io")
    };
    let deny = WrittenRule {
        action: Action::Deny,
        methods: texts(&["PUT"]),
        ..written("a.test")
    };
    let splice = WrittenRule {
        mode: Some(WrittenMode::Splice),
        ..written("*.a.test")
    };
    let tcp = WrittenRule {
        mode: Some(WrittenMode::Tcp),
        ports: vec![22],
        ..written("a.test")
    };
    for written in [full(), written("a.test"), wide, deny, splice, tcp] {
        let rule = Rule::try_from(written).unwrap();
        let text = serde_json::to_string(&WrittenRule::from(&rule)).unwrap();
        let again: WrittenRule = serde_json::from_str(&text).unwrap();
        assert_eq!(Rule::try_from(again), Ok(rule), "{text}");
    }
    serde_json::from_str::<WrittenRule>(r#"{"host": "a.test", "method": ["GET"]}"#).unwrap_err();
}

#[test]
fn a_wildcard_that_anybody_can_join_has_to_be_meant() {
    for host in [
        "*.github.io",
        "*.co.uk",
        "*.vercel.app",
        "*.s3.amazonaws.com",
        "*.foo.ck",
    ] {
        assert_eq!(
            refused(written(host)),
            format!("anybody can have a name under `{host}`: name the hosts, or say `wide = true`")
        );
        assert!(host.parse::<Rule>().is_err(), "{host}");
        Rule::try_from(WrittenRule {
            wide: true,
            ..written(host)
        })
        .unwrap();
        // A denial may be as wide as it likes.
        Rule::try_from(WrittenRule {
            action: Action::Deny,
            ..written(host)
        })
        .unwrap();
    }
    for host in [
        "*.someone.github.io",
        "*.example.co.uk",
        "*.api.test",
        "github.io",
    ] {
        Rule::try_from(written(host)).unwrap();
    }
}

#[test]
fn parts_that_contradict_each_other_are_refused_by_name() {
    let splice = WrittenRule {
        mode: Some(WrittenMode::Splice),
        ..written("a.test")
    };
    let tcp = WrittenRule {
        mode: Some(WrittenMode::Tcp),
        ports: vec![22],
        ..written("a.test")
    };
    let deny = WrittenRule {
        action: Action::Deny,
        ..written("a.test")
    };
    let credential = WrittenRule {
        private: false,
        ..full()
    };
    let unseen = "a mode that sees no requests (`splice`, `tcp`)";
    let cases = [
        (
            WrittenRule {
                methods: texts(&["GET"]),
                ..splice.clone()
            },
            format!("`methods` cannot stand together with {unseen}"),
        ),
        (
            WrittenRule {
                paths: texts(&["/a"]),
                ..tcp.clone()
            },
            format!("`paths` cannot stand together with {unseen}"),
        ),
        (
            WrittenRule {
                dlp: Some(Dlp::Off),
                ..splice.clone()
            },
            format!("`dlp` cannot stand together with {unseen}"),
        ),
        (
            WrittenRule {
                credential: Some("a".into()),
                ..tcp.clone()
            },
            format!("`credential` cannot stand together with {unseen}"),
        ),
        (
            WrittenRule {
                max_body: Some(1),
                ..tcp.clone()
            },
            format!("`max-body` cannot stand together with {unseen}"),
        ),
        (
            WrittenRule {
                ports: vec![80],
                ..splice
            },
            "`splice` cannot stand together with port 80, which has no TLS".into(),
        ),
        (
            WrittenRule {
                ports: vec![],
                ..tcp.clone()
            },
            "a rule with mode `tcp` names its ports".into(),
        ),
        (
            WrittenRule {
                host: "*.a.test".into(),
                ..tcp
            },
            "`tcp` cannot stand together with a wildcard".into(),
        ),
        (
            WrittenRule {
                mode: Some(WrittenMode::Inspect),
                ..deny.clone()
            },
            "`mode` cannot stand together with a rule that denies".into(),
        ),
        (
            WrittenRule {
                private: true,
                ..deny.clone()
            },
            "`private` cannot stand together with a rule that denies".into(),
        ),
        (
            WrittenRule {
                dlp: Some(Dlp::Off),
                ..deny.clone()
            },
            "`dlp` cannot stand together with a rule that denies".into(),
        ),
        (
            WrittenRule { wide: true, ..deny },
            "`wide` cannot stand together with a rule that denies".into(),
        ),
        (
            WrittenRule {
                wide: true,
                ..written("a.test")
            },
            "`wide` cannot stand together with a host that is no wildcard over a public suffix"
                .into(),
        ),
        (
            WrittenRule {
                wide: true,
                private: true,
                ..written("*.github.io")
            },
            "`private` cannot stand together with wide".into(),
        ),
        (
            WrittenRule {
                max_names: Some(1),
                ..written("a.test")
            },
            "`max-names` cannot stand together with a host that is no wildcard".into(),
        ),
        (
            WrittenRule {
                max_names: Some(0),
                ..written("*.a.test")
            },
            "`max-names` is at least 1".into(),
        ),
        (
            WrittenRule {
                max_body: Some(0),
                ..written("a.test")
            },
            "`max-body` is at least 1".into(),
        ),
        (
            WrittenRule {
                host: "*.a.test".into(),
                ..credential.clone()
            },
            "`credential` cannot stand together with a wildcard".into(),
        ),
        (
            WrittenRule {
                methods: vec![],
                ..credential.clone()
            },
            "a rule with a `credential` names `methods` and `paths` too".into(),
        ),
        (
            WrittenRule {
                paths: vec![],
                ..credential.clone()
            },
            "a rule with a `credential` names `methods` and `paths` too".into(),
        ),
        (
            WrittenRule {
                ports: vec![80, 443],
                ..credential.clone()
            },
            "`credential` cannot stand together with port 80, which has no TLS".into(),
        ),
        (
            WrittenRule {
                credential: Some("A b".into()),
                ..credential
            },
            "`A b` is not the name of a credential (use 1 to 40 of `a-z`, `0-9`, `-`)".into(),
        ),
        (
            WrittenRule {
                ports: vec![0],
                ..written("a.test")
            },
            "`0` is not a port (use 1 to 65535)".into(),
        ),
        (
            WrittenRule {
                methods: texts(&["get"]),
                ..written("a.test")
            },
            "`get` is not a method: write it in capital letters, as `GET`".into(),
        ),
        (
            WrittenRule {
                methods: texts(&["TRACE"]),
                ..written("a.test")
            },
            "`TRACE` is not a method: no rule can allow it".into(),
        ),
        (
            WrittenRule {
                paths: texts(&["/a/../b"]),
                ..written("a.test")
            },
            "path `/a/../b` is ambiguous or no path: it has a segment `.` or `..`".into(),
        ),
    ];
    for (rule, error) in cases {
        assert_eq!(refused(rule), error);
    }
}
