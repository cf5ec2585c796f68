//! Rules in full: what each part of one opens and leaves closed.

use std::net::Ipv4Addr;

use bottle_core::event::Happening;
use bottle_core::policy::{Action, Reason, WrittenMode, WrittenRule};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::origin::Origin;
use crate::raw::hello_with;
use crate::support::{
    Gateway, TestCa, chunks, empty, http1_on, request, request2, rule, send1, send2, sized, soon,
    text, tls_trusting, until,
};

const NAME: &str = "allowed.test";
const AUTHORITY: &str = "allowed.test:443";

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

async fn gateway(rules: Vec<WrittenRule>) -> (Gateway, Origin) {
    let ca = TestCa::new();
    let origin = Origin::tls(&ca, NAME, &["h2", "http/1.1"]).await;
    let gateway = Gateway::with_rules(&ca, rules, &[(NAME, 443, origin.address)]);
    (gateway, origin)
}

/// Waits for the end of a flow; returns its bytes, from the bottle and to it.
async fn closed(gateway: &Gateway) -> (u64, u64) {
    let find = || {
        gateway
            .events
            .all()
            .into_iter()
            .find_map(|event| match event {
                Happening::Closed { sent, received, .. } => Some((sent, received)),
                Happening::Stage { .. } | _ => None,
            })
    };
    until("the flow's end", || find().is_some()).await;
    find().unwrap()
}

#[tokio::test]
async fn each_request_is_judged_by_method_and_path() {
    let rules = vec![
        WrittenRule {
            methods: texts(&["GET"]),
            paths: texts(&["/read"]),
            ..rule(NAME)
        },
        WrittenRule {
            methods: texts(&["GET", "POST"]),
            paths: texts(&["/write"]),
            ..rule(NAME)
        },
        WrittenRule {
            action: Action::Deny,
            paths: texts(&["/read/private"]),
            ..rule(NAME)
        },
    ];
    let (gateway, origin) = gateway(rules).await;
    let mut old = gateway.http1(AUTHORITY).await;
    let mut new = gateway.http2(AUTHORITY).await;
    let ambiguous = "the path cannot be compared with a rule: it has a segment `.` or `..`";
    for (method, path, refusal) in [
        ("GET", "/read/x?y=/../z", None),
        ("POST", "/write", None),
        (
            "POST",
            "/read/x",
            Some((
                "method-not-allowed",
                "POST is not allowed on this path of allowed.test",
            )),
        ),
        (
            "GET",
            "/reading",
            Some((
                "path-not-allowed",
                "this path of allowed.test is not allowed",
            )),
        ),
        (
            "GET",
            "/",
            Some((
                "path-not-allowed",
                "this path of allowed.test is not allowed",
            )),
        ),
        ("GET", "/read/../x", Some(("bad-request", ambiguous))),
        ("GET", "/read/%2e%2e/x", Some(("bad-request", ambiguous))),
        (
            "GET",
            "/read/private/x",
            Some((
                "denied-by-rule",
                "allowed.test is denied in part, and this is of that part",
            )),
        ),
        (
            "GET",
            "/read/Private",
            Some((
                "denied-by-rule",
                "allowed.test is denied in part, and this is of that part",
            )),
        ),
        // The connection is as good as before.
        ("GET", "/read", None),
    ] {
        let answers = [
            send1(&mut old, request(method, NAME, path, empty())).await,
            send2(&mut new, request2(method, NAME, path, empty())).await,
        ];
        for answer in answers {
            match refusal {
                None => assert_eq!(answer.status, 200, "{method} {path}"),
                Some((reason, detail)) => answer.assert_refused(reason, detail),
            }
        }
    }
    let lines: Vec<_> = origin.log.requests().into_iter().map(|r| r.line).collect();
    let wanted = ["GET /read/x?y=/../z", "POST /write", "GET /read"];
    assert_eq!(lines, wanted.map(|line| [line; 2]).concat());
}

#[tokio::test]
async fn a_header_does_not_change_the_method_where_a_rule_names_methods() {
    let rules = vec![WrittenRule {
        methods: texts(&["POST"]),
        ..rule(NAME)
    }];
    let (gateway, origin) = gateway(rules).await;
    let mut sender = gateway.http1(AUTHORITY).await;
    for name in [
        "x-http-method-override",
        "x-http-method",
        "x-method-override",
    ] {
        let mut request = request("POST", NAME, "/", text("x"));
        request
            .headers_mut()
            .insert(name, "DELETE".parse().unwrap());
        let answer = send1(&mut sender, request).await;
        let detail = format!("{name} is not allowed where a rule names methods");
        answer.assert_refused("bad-request", &detail);
    }
    assert_eq!(origin.log.connections(), 0);
}

#[tokio::test]
async fn a_host_that_is_denied_is_told_so() {
    let deny = WrittenRule {
        action: Action::Deny,
        ..rule("x.wild.test")
    };
    let (gateway, _origin) = gateway(vec![rule("*.wild.test"), deny]).await;
    let mut sender = gateway.http1("x.wild.test:443").await;
    let answer = send1(&mut sender, request("GET", "x.wild.test", "/", empty())).await;
    answer.assert_refused("denied-by-rule", "x.wild.test is denied");
    assert_eq!(answer.problem("rule"), "deny x.wild.test");
    assert_eq!(gateway.events.refusals()[0].0, Reason::DeniedByRule);
}

#[tokio::test]
async fn a_body_is_no_longer_than_its_rule_allows() {
    let rules = vec![WrittenRule {
        max_body: Some(100_000),
        ..rule(NAME)
    }];
    let (gateway, origin) = gateway(rules).await;
    let chunk = |count: usize| Bytes::from(vec![b'x'; count]);
    let mut sender = gateway.http2(AUTHORITY).await;
    for body in [
        sized(&[chunk(100_000)]),
        chunks([chunk(60_000), chunk(40_000)]),
    ] {
        let answer = send2(&mut sender, request2("POST", NAME, "/count", body)).await;
        assert_eq!((answer.status, &answer.body[..]), (200, &b"100000"[..]));
    }
    let longer = [
        sized(&[chunk(100_001)]),
        chunks([chunk(60_000), chunk(40_001)]),
        chunks([chunk(60_000), chunk(20_000), chunk(20_001)]),
    ];
    for body in longer {
        let answer = send2(&mut sender, request2("POST", NAME, "/", body)).await;
        answer.assert_refused(
            "limit-reached",
            "the request body is larger than its rule allows",
        );
    }
    assert!(origin.log.requests().is_empty());
}

#[tokio::test]
async fn a_private_address_is_dialled_for_the_requests_of_a_rule_that_says_so() {
    for alpn in [&["http/1.1"][..], &["h2"]] {
        let ca = TestCa::new();
        // `localhost` leads to loopback by the host's own resolver.
        let origin = Origin::tls(&ca, "localhost", alpn).await;
        let port = origin.address.port();
        let near = WrittenRule {
            ports: vec![port],
            paths: texts(&["/near"]),
            private: true,
            ..rule("localhost")
        };
        let far = WrittenRule {
            ports: vec![port],
            ..rule("localhost")
        };
        let gateway = Gateway::with_rules(&ca, [near, far], &[]);
        let host = format!("localhost:{port}");
        let mut sender = gateway.http1(&host).await;
        let answer = send1(&mut sender, request("GET", &host, "/near/x", empty())).await;
        assert_eq!(answer.status, 200);
        // The connection that the one request opened does not carry the other.
        let answer = send1(&mut sender, request("GET", &host, "/far", empty())).await;
        assert_eq!(answer.problem("reason"), "address-not-allowed");
        let answer = send1(&mut sender, request("GET", &host, "/near", empty())).await;
        assert_eq!(answer.status, 200);
        let lines: Vec<_> = origin.log.requests().into_iter().map(|r| r.line).collect();
        assert_eq!(lines, ["GET /near/x", "GET /near"]);
    }
}

#[tokio::test]
async fn spliced_tls_reaches_its_host_unopened_and_is_counted() {
    let ca = TestCa::new();
    let origin = Origin::tls(&ca, NAME, &["http/1.1"]).await;
    let splice = WrittenRule {
        mode: Some(WrittenMode::Splice),
        ..rule(NAME)
    };
    let gateway = Gateway::with_rules(&ca, [splice], &[(NAME, 443, origin.address)]);
    for captured in [false, true] {
        let stream = if captured {
            gateway.open((gateway.address_of(NAME), 443).into())
        } else {
            gateway.tunnel(AUTHORITY).await.unwrap()
        };
        // The certificate is the host's own.
        let stream = tls_trusting(&ca.pem, stream, NAME, &["http/1.1"])
            .await
            .unwrap();
        let mut sender = http1_on(stream).await;
        let answer = send1(&mut sender, request("GET", NAME, "/", empty())).await;
        assert_eq!(answer.status, 200);
    }
    let (sent, received) = closed(&gateway).await;
    assert!(sent > 200 && received > 200, "{sent} {received}");
    let allowed = gateway
        .events
        .all()
        .into_iter()
        .find_map(|event| match event {
            Happening::Allowed {
                rule,
                method,
                dialled,
                ..
            } => Some((rule, method, dialled)),
            Happening::Stage { .. } | _ => None,
        });
    let rule = format!("allow {NAME} (splice: not inspected)");
    assert_eq!(allowed, Some((rule, None, Some(origin.address.ip()))));
}

#[tokio::test]
async fn a_spliced_handshake_names_its_host_and_nothing_else() {
    let ca = TestCa::new();
    let origin = Origin::tls(&ca, NAME, &["http/1.1"]).await;
    let splice = WrittenRule {
        mode: Some(WrittenMode::Splice),
        ..rule(NAME)
    };
    let gateway = Gateway::with_rules(&ca, [splice], &[(NAME, 443, origin.address)]);
    // Another name: explained inside TLS of the bottle's CA.
    let stream = gateway.tunnel(AUTHORITY).await.unwrap();
    let stream = gateway
        .tls(stream, "other.test", &["http/1.1"])
        .await
        .unwrap();
    let mut sender = http1_on(stream).await;
    let answer = send1(&mut sender, request("GET", "other.test", "/", empty())).await;
    answer.assert_refused(
        "authority-mismatch",
        "the TLS handshake names other.test, the connection is to allowed.test",
    );
    // No name, and no TLS.
    let stream = gateway.tunnel(AUTHORITY).await.unwrap();
    gateway.tls(stream, "10.0.0.1", &[]).await.unwrap_err();
    let mut stream = gateway.tunnel(AUTHORITY).await.unwrap();
    stream.write_all(b"\x00no TLS").await.unwrap();
    let _ = soon("the reset", stream.read(&mut [0; 8])).await;
    assert_eq!(origin.log.connections(), 0);
    until("three refusals", || gateway.events.refusals().len() == 3).await;
}

#[tokio::test]
async fn a_spliced_handshake_with_a_second_name_goes_nowhere() {
    let ca = TestCa::new();
    let origin = Origin::tls(&ca, NAME, &["http/1.1"]).await;
    let splice = WrittenRule {
        mode: Some(WrittenMode::Splice),
        ..rule(NAME)
    };
    let gateway = Gateway::with_rules(&ca, [splice], &[(NAME, 443, origin.address)]);
    let mut stream = gateway.tunnel(AUTHORITY).await.unwrap();
    let veiled = hello_with(NAME, &[(0xfe0d, b"veil")]);
    stream.write_all(&veiled).await.unwrap();
    let mut answer = Vec::new();
    let _ = soon("the end", stream.read_to_end(&mut answer)).await;
    let (reason, _, detail) = gateway.events.refusals().pop().unwrap();
    assert_eq!(reason, Reason::AuthorityMismatch);
    assert!(detail.ends_with("(ECH)"), "{detail}");
    assert_eq!(origin.log.connections(), 0);
}

#[tokio::test]
async fn tcp_to_a_listed_port_passes_both_ways_and_is_counted() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        // The server speaks first, and reads to the end before it says the rest.
        tcp.write_all(b"SSH-2.0-test\r\n").await.unwrap();
        let mut read = Vec::new();
        tcp.read_to_end(&mut read).await.unwrap();
        tcp.write_all(b"bye").await.unwrap();
        read
    });
    let ssh = WrittenRule {
        mode: Some(WrittenMode::Tcp),
        ports: vec![22],
        ..rule("git.test")
    };
    let gateway = Gateway::with_rules(&TestCa::new(), [ssh], &[("git.test", 22, address)]);
    let mut stream = gateway.open((gateway.address_of("git.test"), 22).into());
    let mut banner = [0; 14];
    soon("the banner", stream.read_exact(&mut banner))
        .await
        .unwrap();
    assert_eq!(&banner, b"SSH-2.0-test\r\n");
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    soon("the rest", stream.read_to_end(&mut rest))
        .await
        .unwrap();
    assert_eq!(rest, b"bye");
    assert_eq!(server.await.unwrap(), b"hello");
    assert_eq!(closed(&gateway).await, (5, 17));
    // The same port of another host, another port of this one.
    for (name, port) in [("other.test", 22), ("git.test", 23)] {
        let mut stream = gateway.open((gateway.address_of(name), port).into());
        assert_eq!(
            soon("the reset", stream.read(&mut [0; 8])).await.unwrap(),
            0
        );
    }
    assert_eq!(gateway.events.refusals().len(), 2);
}

#[tokio::test]
async fn what_is_not_inspected_is_no_way_for_requests_to_the_proxy() {
    let origin = Origin::plain().await;
    let tcp = WrittenRule {
        mode: Some(WrittenMode::Tcp),
        ports: vec![80],
        ..rule("plain.test")
    };
    let resolve = [("plain.test", 80, origin.address)];
    let gateway = Gateway::with_rules(&TestCa::new(), [tcp], &resolve);
    let mut sender = http1_on(gateway.proxy()).await;
    let target = "http://plain.test/";
    let answer = send1(&mut sender, request("GET", "plain.test", target, empty())).await;
    assert_eq!(answer.problem("reason"), "bad-protocol");
    assert_eq!(origin.log.connections(), 0);
}
