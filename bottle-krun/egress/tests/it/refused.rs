//! What may not pass is told why, and leaves an event.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering;

use bottle_core::event::Happening;
use bottle_core::policy::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::origin::Origin;
use crate::support::{
    Gateway, TestCa, empty, http1_on, request, request2, send1, send2, soon, text, until,
};

const NAME: &str = "allowed.test";
const AUTHORITY: &str = "allowed.test:443";

async fn gateway() -> (Gateway, Origin) {
    let ca = TestCa::new();
    let origin = Origin::tls(&ca, NAME, &["h2", "http/1.1"]).await;
    let gateway = Gateway::new(
        &ca,
        &[NAME, "localhost", "*.wild.test"],
        &[(NAME, 443, origin.address)],
    );
    (gateway, origin)
}

#[tokio::test]
async fn an_unlisted_host_is_answered_inside_tls() {
    let (gateway, _origin) = gateway().await;
    let mut sender = gateway.http1("evil.test:443").await;
    for _ in 0..2 {
        let answer = send1(&mut sender, request("GET", "evil.test", "/", empty())).await;
        answer.assert_refused("host-not-allowed", "evil.test is not allowed");
        assert_eq!(answer.problem("missing_rule"), "allow evil.test");
        assert_eq!(
            answer.headers["x-pipelock-block-reason"],
            "domain_blocklist"
        );
        assert_eq!(answer.headers["x-pipelock-block-reason-retry"], "policy");
    }
    let refusals = gateway.events.refusals();
    assert_eq!(refusals.len(), 2);
    assert_eq!(refusals[0].0, Reason::HostNotAllowed);
    assert_eq!(refusals[0].1, "evil.test");
}

#[tokio::test]
async fn an_unlisted_host_is_answered_on_http2_and_by_capture() {
    let (gateway, _origin) = gateway().await;
    let mut sender = gateway.http2("evil.test:443").await;
    let answer = send2(&mut sender, request2("GET", "evil.test", "/", empty())).await;
    answer.assert_refused("host-not-allowed", "evil.test is not allowed");
    let stream = gateway.open((gateway.address_of("evil.test"), 443).into());
    let mut sender = http1_on(gateway.tls(stream, "evil.test", &[]).await.unwrap()).await;
    let answer = send1(&mut sender, request("GET", "evil.test", "/", empty())).await;
    answer.assert_refused("host-not-allowed", "evil.test is not allowed");
}

#[tokio::test]
async fn another_port_of_an_allowed_host_is_refused() {
    let (gateway, origin) = gateway().await;
    let mut sender = gateway.http1("allowed.test:8443").await;
    let answer = send1(
        &mut sender,
        request("GET", "allowed.test:8443", "/", empty()),
    )
    .await;
    answer.assert_refused(
        "port-not-allowed",
        "port 8443 of allowed.test is not allowed",
    );
    assert_eq!(answer.problem("missing_rule"), "allow allowed.test:8443");
    // Nobody could read an answer on these: the proxy says it, a captured flow is reset.
    let head = gateway.tunnel("allowed.test:22").await.unwrap_err();
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    let mut stream = gateway.open((gateway.address_of(NAME), 22).into());
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    assert_eq!(gateway.events.refusals().len(), 3);
    assert_eq!(origin.log.connections(), 0);
}

#[tokio::test]
async fn an_address_is_refused_in_every_disguise() {
    let (gateway, _origin) = gateway().await;
    let literals: [(SocketAddr, &str); 5] = [
        ("127.0.0.1:443".parse().unwrap(), "127.0.0.1"),
        ("169.254.169.254:80".parse().unwrap(), "169.254.169.254"),
        ("[::ffff:10.0.0.1]:443".parse().unwrap(), "10.0.0.1"),
        ("[2606:4700::1111]:443".parse().unwrap(), "2606:4700::1111"),
        ("198.18.0.1:443".parse().unwrap(), "198.18.0.1"),
    ];
    for (destination, shown) in literals {
        let stream = gateway.open(destination);
        let mut sender = if destination.port() == 443 {
            // The name in the handshake does not make it allowed.
            http1_on(gateway.tls(stream, NAME, &[]).await.unwrap()).await
        } else {
            http1_on(stream).await
        };
        let answer = send1(&mut sender, request("GET", NAME, "/", empty())).await;
        let detail = format!("{shown} is an address; only names can be allowed");
        answer.assert_refused("ip-literal", &detail);
        let last = gateway.events.refusals().pop().unwrap();
        assert_eq!((last.0, last.1.as_str()), (Reason::IpLiteral, shown));
    }
    // Without SNI the certificate is for the address.
    let stream = gateway.open("127.0.0.1:443".parse().unwrap());
    let mut sender = http1_on(gateway.tls(stream, "127.0.0.1", &[]).await.unwrap()).await;
    let answer = send1(&mut sender, request("GET", "127.0.0.1", "/", empty())).await;
    assert_eq!(answer.problem("reason"), "ip-literal");
    // The proxy too.
    let mut sender = gateway.http1("10.0.0.1:443").await;
    let answer = send1(&mut sender, request("GET", "10.0.0.1", "/", empty())).await;
    assert_eq!(answer.problem("reason"), "ip-literal");
    // A connection that says nothing leaves an event as well.
    let before = gateway.events.refusals().len();
    drop(gateway.open("1.1.1.1:443".parse().unwrap()));
    until("the event", || gateway.events.refusals().len() > before).await;
}

#[tokio::test]
async fn the_handshake_the_flow_and_the_request_name_one_host() {
    let (gateway, origin) = gateway().await;
    let stream = gateway.tunnel(AUTHORITY).await.unwrap();
    let stream = gateway.tls(stream, "other.test", &[]).await.unwrap();
    let mut sender = http1_on(stream).await;
    let answer = send1(&mut sender, request("GET", NAME, "/", empty())).await;
    answer.assert_refused(
        "authority-mismatch",
        "the TLS handshake names other.test, the connection is to allowed.test",
    );
    let mut sender = gateway.http1(AUTHORITY).await;
    for (host, detail) in [
        (
            "other.test",
            "the request names other.test, the connection is to allowed.test",
        ),
        (
            "allowed.test:8443",
            "the request names allowed.test:8443, the connection is to allowed.test:443",
        ),
        (
            "127.0.0.1",
            "the request's host is not a name, the connection is to allowed.test",
        ),
        (
            "x@allowed.test",
            "the request's host is not a name, the connection is to allowed.test",
        ),
    ] {
        let answer = send1(&mut sender, request("GET", host, "/", empty())).await;
        answer.assert_refused("authority-mismatch", detail);
        assert_eq!(
            answer.headers["x-pipelock-block-reason"],
            "authority_mismatch"
        );
    }
    // An absolute target and Host that disagree.
    let target = "https://other.test/";
    let answer = send1(&mut sender, request("GET", NAME, target, empty())).await;
    assert_eq!(answer.problem("reason"), "authority-mismatch");
    let mut sender = gateway.http2(AUTHORITY).await;
    let answer = send2(&mut sender, request2("GET", "other.test", "/", empty())).await;
    assert_eq!(answer.problem("reason"), "authority-mismatch");
    assert_eq!(origin.log.connections(), 0);
}

#[tokio::test]
async fn a_handshake_without_a_name_is_refused() {
    let (gateway, _origin) = gateway().await;
    let stream = gateway.tunnel(AUTHORITY).await.unwrap();
    // An address in place of a name sends no SNI, and no certificate fits it.
    gateway.tls(stream, "10.0.0.1", &[]).await.unwrap_err();
    until("the event", || !gateway.events.refusals().is_empty()).await;
    assert_eq!(gateway.events.refusals()[0].0, Reason::AuthorityMismatch);
}

#[tokio::test]
async fn a_private_address_is_dialled_only_if_it_was_named() {
    let (gateway, _origin) = gateway().await;
    let mut sender = gateway.http1("localhost:443").await;
    let answer = send1(&mut sender, request("GET", "localhost", "/", empty())).await;
    assert_eq!(answer.status, 403);
    assert_eq!(answer.problem("reason"), "address-not-allowed");
    assert_eq!(answer.problem("rule"), "allow localhost");
    assert_eq!(answer.headers["x-pipelock-block-reason"], "ssrf_private_ip");
}

#[tokio::test]
async fn bytes_that_are_not_tls_go_nowhere() {
    let (gateway, origin) = gateway().await;
    let mut stream = gateway.tunnel(AUTHORITY).await.unwrap();
    stream.write_all(b"\x00\x01binary").await.unwrap();
    assert_eq!(
        soon("the reset", stream.read(&mut [0; 8])).await.unwrap(),
        0
    );
    let mut sender = http1_on(gateway.tunnel(AUTHORITY).await.unwrap()).await;
    let answer = send1(&mut sender, request("GET", NAME, "/", empty())).await;
    assert_eq!(answer.problem("reason"), "bad-protocol");
    let reasons: Vec<_> = gateway.events.refusals().into_iter().map(|r| r.0).collect();
    assert_eq!(reasons, [Reason::BadProtocol, Reason::BadProtocol]);
    assert_eq!(origin.log.connections(), 0);
}

#[tokio::test]
async fn methods_that_cannot_be_judged_are_refused() {
    let (gateway, origin) = gateway().await;
    let mut sender = gateway.http1(AUTHORITY).await;
    let answer = send1(&mut sender, request("TRACE", NAME, "/", empty())).await;
    answer.assert_refused("bad-request", "TRACE is not allowed");
    let mut upgrade = request("GET", NAME, "/chat", empty());
    upgrade
        .headers_mut()
        .insert("connection", "upgrade".parse().unwrap());
    upgrade
        .headers_mut()
        .insert("upgrade", "quic".parse().unwrap());
    let answer = send1(&mut sender, upgrade).await;
    answer.assert_refused(
        "bad-request",
        "changing the protocol (Upgrade) is not allowed, but for a WebSocket of HTTP/1.1",
    );
    let mut encoded = request("POST", NAME, "/", text("x"));
    encoded
        .headers_mut()
        .insert("content-encoding", "compress".parse().unwrap());
    let answer = send1(&mut sender, encoded).await;
    assert_eq!(answer.problem("reason"), "bad-request");
    // The connection is as good as before.
    let answer = send1(&mut sender, request("GET", NAME, "/", empty())).await;
    assert_eq!(answer.status, 200);
    assert_eq!(origin.log.connections(), 1);
}

#[tokio::test]
async fn ambiguous_framing_never_reaches_the_upstream_as_written() {
    let (gateway, origin) = gateway().await;
    for head in [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: +5\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Content-Length : 5\r\n",
        " folded: 5\r\n",
    ] {
        let mut stream = gateway.https(AUTHORITY, &["http/1.1"]).await;
        let text = format!("POST / HTTP/1.1\r\nHost: {NAME}\r\n{head}\r\n0\r\n\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        soon("an answer", stream.read_exact(&mut answer))
            .await
            .unwrap();
        let status = String::from_utf8_lossy(&answer[9..]).into_owned();
        assert!(status == "400" || status == "403", "{head:?}: {status}");
    }
    assert_eq!(origin.log.connections(), 0);
    // Both framings at once: the transfer coding rules (RFC 9112 §6.3) and is all that goes on.
    let mut stream = gateway.https(AUTHORITY, &["http/1.1"]).await;
    let text = format!(
        "POST /one HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 60\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\n\r\nGET /two HTTP/1.1\r\nHost: other.test\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answers = String::new();
    soon("the end", stream.read_to_string(&mut answers))
        .await
        .unwrap();
    // What follows is not even read: the connection ends.
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{answers}");
    let lines: Vec<_> = origin.log.requests().into_iter().map(|r| r.line).collect();
    assert_eq!(lines, ["POST /one"]);
}

#[tokio::test]
async fn an_upstream_that_fails_is_explained() {
    let ca = TestCa::new();
    let other = Origin::tls(&TestCa::new(), NAME, &[]).await;
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let gateway = Gateway::new(
        &ca,
        &[NAME, "closed.test", "missing.invalid"],
        &[(NAME, 443, other.address), ("closed.test", 443, closed)],
    );
    for (name, reason) in [
        (NAME, "upstream-unreachable"),
        ("closed.test", "upstream-unreachable"),
        ("missing.invalid", "upstream-not-resolved"),
    ] {
        let mut sender = gateway.http1(&format!("{name}:443")).await;
        let answer = send1(&mut sender, request("GET", name, "/", empty())).await;
        assert_eq!(answer.status, 502);
        assert_eq!(answer.problem("reason"), reason);
    }
    // The certificate of an unknown CA was never given a request.
    assert!(other.log.requests().is_empty());
    assert_eq!(gateway.events.allowed(), []);
}

#[tokio::test]
async fn the_proxy_takes_nothing_but_proxy_requests() {
    let (gateway, _origin) = gateway().await;
    let mut sender = http1_on(gateway.proxy()).await;
    for target in [
        "/",
        "https://allowed.test/",
        "http://allowed.test/",
        "http://10.0.0.1/",
    ] {
        let answer = send1(&mut sender, request("GET", NAME, target, empty())).await;
        assert_eq!(answer.status, 403, "{target}");
    }
    let reasons: Vec<_> = gateway.events.refusals().into_iter().map(|r| r.0).collect();
    assert_eq!(
        reasons,
        [
            Reason::BadRequest,
            Reason::BadRequest,
            Reason::PortNotAllowed,
            Reason::IpLiteral
        ]
    );
    gateway.tunnel("allowed.test").await.unwrap_err();
    gateway.tunnel("0x7f000001:443").await.unwrap_err();
}

#[tokio::test]
async fn a_connect_and_its_host_header_name_one_host() {
    let (gateway, _origin) = gateway().await;
    let wrong = [
        "other.test:443",
        "other.test",
        "allowed.test:444",
        "not a host",
    ];
    for host in wrong {
        let opened = gateway.tunnel_with_host(AUTHORITY, host).await;
        assert!(opened.is_err(), "{host}");
    }
    let refusals = gateway.events.refusals();
    let mismatches = refusals.iter().filter(|r| r.0 == Reason::AuthorityMismatch);
    assert_eq!(mismatches.count(), wrong.len());
    for host in [AUTHORITY, NAME] {
        gateway.tunnel_with_host(AUTHORITY, host).await.unwrap();
    }
}

#[tokio::test]
async fn a_name_under_a_wildcard_says_little_and_not_often() {
    let (gateway, _origin) = gateway().await;
    let long = format!("{}.wild.test", "x".repeat(41));
    let mut sender = gateway.http1(&format!("{long}:443")).await;
    let answer = send1(&mut sender, request("GET", &long, "/", empty())).await;
    answer.assert_refused(
        "limit-reached",
        "a label of a name under wild.test is too long",
    );
    assert_eq!(answer.headers["x-pipelock-block-reason"], "rate_limit");
}

#[tokio::test]
async fn requests_beyond_the_limit_are_refused_and_later_ones_pass() {
    let (gateway, origin) = gateway().await;
    let mut senders = Vec::new();
    let mut hanging = Vec::new();
    for _ in 0..4 {
        let sender = gateway.http2(AUTHORITY).await;
        for _ in 0..64 {
            let mut sender = sender.clone();
            hanging.push(tokio::spawn(async move {
                let request = request2("GET", NAME, "/hang", empty());
                sender.send_request(request).await
            }));
        }
        senders.push(sender);
    }
    until("256 requests", || {
        origin.log.hung.load(Ordering::SeqCst) == 256
    })
    .await;
    let mut sender = gateway.http1(AUTHORITY).await;
    let answer = send1(&mut sender, request("GET", NAME, "/", empty())).await;
    answer.assert_refused("limit-reached", "more than 256 requests at once");
    for request in hanging {
        request.abort();
    }
    until("their ends", || gateway.events.allowed().len() == 256).await;
    let answer = send1(&mut sender, request("GET", NAME, "/", empty())).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn a_loop_of_refusals_is_counted_and_not_recorded_one_by_one() {
    let (gateway, _origin) = gateway().await;
    let mut sender = gateway.http1("evil.test:443").await;
    let mut last = String::new();
    for _ in 0..50 {
        let answer = send1(&mut sender, request("GET", "evil.test", "/", empty())).await;
        last = answer.problem("event");
    }
    assert_eq!(gateway.events.refusals().len(), 32);
    let answer = send1(&mut sender, request("GET", "evil.test", "/", empty())).await;
    assert_eq!(
        answer.problem("event"),
        last,
        "the id of one that is recorded"
    );
    let counted = gateway.events.all().into_iter();
    let counted = counted.filter_map(|event| match event {
        Happening::Repeated { id, count } => Some((id, count)),
        Happening::Stage { .. } | _ => None,
    });
    let counted: Vec<_> = counted.collect();
    assert_eq!(counted, [(last.clone(), 1), (last, 8)]);
}
