//! The promises of host names and patterns, against models that are too simple to be wrong.

mod decisions;
mod paths;
mod rules;

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

fn name(text: &str) -> HostName {
    text.parse().unwrap()
}

#[test]
fn a_name_has_one_form() {
    assert_eq!(name("API.Example.COM.").as_str(), "api.example.com");
    assert_eq!(
        name("xn--bcher-kva.example"),
        name("XN--bcher-kva.example.")
    );
    assert_eq!(name("_dmarc.example.com").as_str(), "_dmarc.example.com");
    assert_eq!(name("localhost").as_str(), "localhost");
}

#[test]
fn what_is_no_name_is_refused_with_its_reason() {
    let label = "a".repeat(64);
    let long = ["a"; 128].join(".");
    for (text, why) in [
        ("", "it is empty"),
        (".", "it is empty"),
        ("a..b", "it has an empty label"),
        (".a", "it has an empty label"),
        ("a.b..", "it has an empty label"),
        ("-a.b", "a label begins or ends with `-`"),
        ("a-.b", "a label begins or ends with `-`"),
        ("bücher.example", "it is not ASCII (write the `xn--` form)"),
        (
            "a b",
            "a label holds a character other than `a-z`, `0-9`, `-` and `_`",
        ),
        (
            "a/b",
            "a label holds a character other than `a-z`, `0-9`, `-` and `_`",
        ),
        (
            "*.a.b",
            "a label holds a character other than `a-z`, `0-9`, `-` and `_`",
        ),
        ("127.0.0.1", "it is an address (a rule names a host)"),
        ("127.1", "it is an address (a rule names a host)"),
        ("2130706433", "it is an address (a rule names a host)"),
        ("0x7f.1", "it is an address (a rule names a host)"),
        ("0x7f000001", "it is an address (a rule names a host)"),
        ("0x", "it is an address (a rule names a host)"),
        ("a.0X7F", "it is an address (a rule names a host)"),
        (label.as_str(), "a label has more than 63 characters"),
        (long.as_str(), "it has more than 253 characters"),
    ] {
        let error = text.parse::<HostName>().unwrap_err().to_string();
        assert!(error.ends_with(why), "{text:?}: {error}");
    }
}

#[test]
fn an_error_about_a_name_cannot_steer_a_terminal() {
    let error = "\u{1b}[2J".parse::<HostName>().unwrap_err().to_string();
    assert!(!error.contains('\u{1b}'), "{error:?}");
    let error = "a.b:\u{1b}[2J".parse::<Rule>().unwrap_err().to_string();
    assert!(!error.contains('\u{1b}'), "{error:?}");
}

#[test]
fn a_wildcard_covers_what_is_below_and_not_the_apex() {
    let pattern: HostPattern = "*.example.com".parse().unwrap();
    assert!(pattern.matches(&name("a.example.com")));
    assert!(pattern.matches(&name("a.b.example.com")));
    assert!(!pattern.matches(&name("example.com")));
    assert!(!pattern.matches(&name("badexample.com")));
    assert!(!pattern.matches(&name("a.example.com.evil.test")));
}

#[test]
fn a_wildcard_over_a_whole_top_level_is_refused() {
    for text in ["*.com", "*.", "*", "**.a.b", "a.*.b"] {
        assert!(text.parse::<HostPattern>().is_err(), "{text}");
    }
}

/// Says by label lists alone whether a pattern, as text, covers a name.
fn covers(pattern: &str, host: &str) -> bool {
    let labels = |text: &str| -> Vec<String> { text.split('.').map(str::to_owned).collect() };
    let host = labels(host);
    match pattern.strip_prefix("*.") {
        None => host == labels(pattern),
        Some(suffix) => host.len() > labels(suffix).len() && host.ends_with(&labels(suffix)),
    }
}

/// Few labels, so that names and patterns meet often.
fn hosts() -> impl Strategy<Value = String> {
    vec(select(vec!["a", "b", "ab", "test"]), 1..5).prop_map(|labels| labels.join("."))
}

fn patterns() -> impl Strategy<Value = String> {
    (any::<bool>(), hosts()).prop_map(|(below, host)| match host.contains('.') && below {
        true => format!("*.{host}"),
        false => host,
    })
}

proptest! {
    #[test]
    fn a_pattern_covers_exactly_what_its_labels_say(pattern in patterns(), host in hosts()) {
        let parsed: HostPattern = pattern.parse().unwrap();
        prop_assert_eq!(parsed.matches(&name(&host)), covers(&pattern, &host));
    }

    #[test]
    fn a_name_is_its_own_canonical_form(text in "[a-zA-Z0-9_.-]{1,40}") {
        if let Ok(host) = text.parse::<HostName>() {
            prop_assert_eq!(host.as_str().parse(), Ok(host.clone()));
            prop_assert!(!host.as_str().ends_with('.'));
            prop_assert_eq!(host.as_str().to_ascii_lowercase(), host.as_str());
        }
    }

    #[test]
    fn no_address_in_any_notation_passes_for_a_name(address: u32, six: u128) {
        let four = Ipv4Addr::from(address);
        let [a, b, c, d] = four.octets();
        for text in [
            four.to_string(),
            format!("{address}"),
            format!("{address:#x}"),
            format!("{a:#x}.{b:#x}.{c:#x}.{d:#x}"),
            format!("{a}.{}", address & 0xff_ffff),
            format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
            format!("{four}."),
            Ipv6Addr::from(six).to_string(),
            format!("[{}]", Ipv6Addr::from(six)),
        ] {
            prop_assert!(text.parse::<HostName>().is_err(), "{}", text);
        }
    }

    #[test]
    fn no_text_makes_a_parser_of_the_policy_panic(text in any::<String>()) {
        let _ = text.parse::<HostName>();
        let _ = text.parse::<HostPattern>();
        let _ = text.parse::<Rule>();
        let _ = text.parse::<Method>();
        let _ = text.parse::<PathPrefix>();
        let _ = RequestPath::parse(&format!("/{text}"));
    }
}
