//! Which paths are understood, and which are refused because servers differ about them.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

fn path(text: &str) -> RequestPath {
    RequestPath::parse(text).unwrap()
}

fn prefix(text: &str) -> PathPrefix {
    text.parse().unwrap()
}

#[test]
fn a_prefix_covers_whole_segments() {
    for (rule, covered, other) in [
        (
            "/v1",
            &["/v1", "/v1/", "/v1/a", "/v1/a/b"][..],
            &["/", "/v", "/v10", "/v1.0", "/V1", "/x/v1"][..],
        ),
        ("/v1/", &["/v1", "/v1/", "/v1/a"], &["/", "/v10"]),
        ("/a/b", &["/a/b", "/a/b/c"], &["/a", "/a/", "/a/bc"]),
        ("/", &["/", "/a", "/a/b/"], &[]),
    ] {
        for text in covered {
            assert!(prefix(rule).covers(&path(text)), "{rule} {text}");
        }
        for text in other {
            assert!(!prefix(rule).covers(&path(text)), "{rule} {text}");
        }
    }
}

#[test]
fn percent_encoding_is_undone_once_and_the_case_of_its_digits_means_nothing() {
    for (rule, text) in [
        ("/v1", "/%761"),
        ("/%761", "/v1/x"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/café", "/caf%c3%A9/x"),
        ("/a%20b", "/a%20b"),
        ("/a+b", "/a%2bb"),
        ("/100%25", "/100%25/x"),
    ] {
        assert!(prefix(rule).covers(&path(text)), "{rule} {text}");
    }
    assert!(
        !prefix("/a%20b").covers(&path("/a+b")),
        "a plus is a plus in a path"
    );
}

#[test]
fn what_servers_read_in_several_ways_is_refused() {
    for (text, why) in [
        ("", "it does not begin with a `/`"),
        ("*", "it does not begin with a `/`"),
        ("v1", "it does not begin with a `/`"),
        ("//v1", "it has an empty segment (`//`)"),
        ("/v1//x", "it has an empty segment (`//`)"),
        ("/v1//", "it has an empty segment (`//`)"),
        ("/.", "it has a segment `.` or `..`"),
        ("/v1/../x", "it has a segment `.` or `..`"),
        ("/v1/./x", "it has a segment `.` or `..`"),
        ("/v1/..", "it has a segment `.` or `..`"),
        ("/v1/%2e%2E/x", "it has a segment `.` or `..`"),
        ("/v1/.%2e", "it has a segment `.` or `..`"),
        ("/v1/..;/x", "it has a `;`"),
        ("/v1;a=b/x", "it has a `;`"),
        ("/v1%3ba", "it has a `;`"),
        ("/v1%2fx", "it has an encoded slash"),
        ("/v1/..%2Fx", "it has an encoded slash"),
        ("/v1\\x", "it has a backslash"),
        ("/v1%5Cx", "it has a backslash"),
        ("/v1%00", "it has a control character"),
        ("/v1%0d%0a", "it has a control character"),
        ("/v1%7f", "it has a control character"),
        ("/v1%", "it has a `%` without two hex digits"),
        ("/v1%4", "it has a `%` without two hex digits"),
        ("/v1%zz", "it has a `%` without two hex digits"),
        ("/v1%u002f", "it has a `%` without two hex digits"),
        ("/v1/%252e%252e", "it is percent-encoded twice"),
        ("/v1%252fx", "it is percent-encoded twice"),
    ] {
        assert_eq!(RequestPath::parse(text).unwrap_err().why(), why, "{text}");
        assert!(text.parse::<PathPrefix>().is_err(), "{text}");
    }
    for text in ["/v1?x", "/v1#x"] {
        assert!(text.parse::<PathPrefix>().is_err(), "{text}");
    }
}

fn pieces() -> impl Strategy<Value = String> {
    let pieces = [
        "/", "/", "/", "v1", "a", ".", "..", "%2e", "%2F", "%61", "%252f", ";", "\\", "%", "é",
        "%5c",
    ];
    vec(select(pieces.to_vec()), 0..8).prop_map(|pieces| format!("/{}", pieces.concat()))
}

/// Readings of a path by servers of several tempers, as lists of segments.
fn readings(path: &str) -> Vec<Vec<String>> {
    let decode = |text: &str| -> String {
        let mut out = text.to_owned();
        for (from, to) in [
            ("%2e", "."),
            ("%2E", "."),
            ("%2f", "/"),
            ("%2F", "/"),
            ("%61", "a"),
            ("%5c", "\\"),
            ("%25", "%"),
        ] {
            out = out.replace(from, to);
        }
        out
    };
    let once = decode(path);
    let mut readings = Vec::new();
    for text in [path.replace("%61", "a"), once.clone(), decode(&once)] {
        for slashes in [text.clone(), text.replace('\\', "/")] {
            for cut in [false, true] {
                let mut out: Vec<String> = Vec::new();
                for segment in slashes.split('/') {
                    let segment = match segment.split_once(';') {
                        Some((before, _)) if cut => before,
                        _ => segment,
                    };
                    match segment {
                        "" | "." => {}
                        ".." => {
                            out.pop();
                        }
                        // Escapes that separate nothing are a server's own affair.
                        other => out.push(decode(&decode(other))),
                    }
                }
                readings.push(out);
            }
        }
    }
    readings
}

proptest! {
    /// Whatever is understood, every server reads as the same.
    #[test]
    fn a_path_that_is_understood_has_one_reading(text in pieces()) {
        if let Ok(path) = RequestPath::parse(&text) {
            let readings = readings(&text);
            prop_assert!(readings.iter().all(|reading| *reading == readings[0]), "{}", text);
            let first: PathPrefix = match readings[0].first() {
                Some(first) => format!("/{first}").parse().unwrap(),
                None => prefix("/"),
            };
            prop_assert!(first.covers(&path), "{} {}", first, text);
        }
    }

    #[test]
    fn a_printed_prefix_reads_back(text in pieces()) {
        if let Ok(prefix) = text.parse::<PathPrefix>() {
            prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
        }
    }
}
