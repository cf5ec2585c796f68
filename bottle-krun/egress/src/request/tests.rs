use http::Request;
use http::request::Builder;
use proptest::prelude::*;

use super::*;
use crate::shared::Reach;

fn parts(request: Builder) -> Parts {
    request.body(()).unwrap().into_parts().0
}

fn judged(request: Builder) -> Result<(), Refusal> {
    let scanner = Arc::new(Scanner::new(&[]).unwrap());
    let flow = Flow {
        name: &"a.test".parse().unwrap(),
        port: 443,
        scheme: Scheme::Https,
    };
    let terms = Terms {
        rule: "allow a.test".to_owned(),
        reach: Reach::Public,
        max_body: None,
        dlp: Dlp::Block,
        credential: None,
        hangs_on_method: false,
    };
    judge(&scanner, &parts(request), &flow, &terms)
}

#[test]
fn the_authority_may_stand_in_either_place_and_must_agree() {
    for (uri, hosts, fits) in [
        ("/", &["a.test"][..], true),
        ("/", &["A.TEST.:443"], true),
        ("/", &["a.test:8443"], false),
        ("/", &["a.test:"], false),
        ("/", &["a.test", "a.test"], false),
        ("/", &["b.test"], false),
        ("/", &["a.test.b.test"], false),
        ("/", &["a.test@b.test"], false),
        ("/", &["[::1]"], false),
        ("/", &[""], false),
        ("/", &[], false),
        ("https://a.test/", &[], true),
        ("https://a.test:443/", &["a.test"], true),
        ("https://a.test/", &["b.test"], false),
        ("https://b.test/", &["a.test"], false),
        ("http://a.test/", &["a.test"], false),
        ("https://u@a.test/", &["a.test"], false),
    ] {
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let verdict = judged(request).map_err(|refusal| refusal.reason);
        let wanted = if fits {
            Ok(())
        } else {
            Err(Reason::AuthorityMismatch)
        };
        assert_eq!(verdict, wanted, "{uri} {hosts:?}");
    }
}

#[test]
fn framing_that_two_readers_could_read_in_two_ways_is_refused() {
    for (headers, fits) in [
        (&[("content-length", "5")][..], true),
        (&[("transfer-encoding", "chunked")], true),
        (&[("transfer-encoding", "gzip, chunked")], false),
        (
            &[
                ("transfer-encoding", "chunked"),
                ("transfer-encoding", "chunked"),
            ],
            false,
        ),
        (
            &[("transfer-encoding", "chunked"), ("content-length", "5")],
            false,
        ),
        (&[("content-length", "5"), ("content-length", "5")], false),
    ] {
        let mut request = Request::builder().uri("/").header(HOST, "a.test");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        assert_eq!(judged(request).is_ok(), fits, "{headers:?}");
    }
}

#[test]
fn what_connection_names_is_removed_but_not_what_frames_the_message() {
    let mut headers = parts(
        Request::builder()
            .header("connection", "x-a, content-length, host")
            .header("x-a", "1")
            .header("content-length", "1")
            .header("host", "a.test")
            .header("transfer-encoding", "chunked"),
    )
    .headers;
    strip_hop_by_hop(&mut headers);
    let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    left.sort_unstable();
    assert_eq!(left, ["content-length", "host"]);
}

#[test]
fn basic_credentials_are_looked_into() {
    assert_eq!(decode_base64(b"dXNlcjpwYXNz"), b"user:pass");
    assert_eq!(decode_base64(b"dXNlcjpwYQ=="), b"user:pa");
    assert_eq!(decode_base64(b""), b"");
}

proptest! {
    #[test]
    fn any_text_is_an_authority_or_none(text in prop::collection::vec(any::<u8>(), 0..64)) {
        if let Some((name, _)) = parse_authority(&text) {
            prop_assert!(name.as_str().is_ascii());
        }
    }

    #[test]
    fn a_name_and_port_come_back(label in "[a-z][a-z0-9]{0,20}", port in 1_u16..) {
        let text = format!("{label}.Test.:{port}");
        let (name, found) = parse_authority(text.as_bytes()).unwrap();
        prop_assert_eq!(name.as_str(), format!("{label}.test"));
        prop_assert_eq!(found, Some(port));
    }

    #[test]
    fn base64_decoding_is_total(text in prop::collection::vec(any::<u8>(), 0..64)) {
        prop_assert!(decode_base64(&text).len() <= text.len());
    }
}
