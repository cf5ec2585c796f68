//! WebSockets pass where a rule allows the request, and no message carries a secret out.

use std::sync::atomic::Ordering;

use bottle_core::event::Happening;
use bottle_core::policy::{Dlp, Reason, WrittenRule};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::client::TlsStream;

use crate::origin::Origin;
use crate::raw::{frame, read_frame};
use crate::support::{
    Gateway, TestCa, empty, github_token, http1_on, request, request2, rule, send1, send2, soon,
    until,
};

const NAME: &str = "allowed.test";
const AUTHORITY: &str = "allowed.test:443";
const MASK: Option<[u8; 4]> = Some([1, 2, 3, 4]);

async fn gateway(dlp: Dlp) -> (Gateway, Origin) {
    let ca = TestCa::new();
    // HTTP/2 is preferred, and of no use here.
    let origin = Origin::tls(&ca, NAME, &["h2", "http/1.1"]).await;
    let rule = WrittenRule {
        dlp: Some(dlp),
        paths: vec!["/ws".to_owned()],
        ..rule(NAME)
    };
    let gateway = Gateway::with_rules(&ca, [rule], &[(NAME, 443, origin.address)]);
    (gateway, origin)
}

/// Does the handshake; returns the stream behind it and the head of the answer.
async fn open(gateway: &Gateway, target: &str) -> (TlsStream<DuplexStream>, String) {
    let mut stream = gateway.https(AUTHORITY, &["http/1.1"]).await;
    let head = format!(
        "GET {target} HTTP/1.1\r\nHost: {NAME}\r\nConnection: keep-alive, Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(soon("the answer", stream.read_u8()).await.unwrap());
    }
    (stream, String::from_utf8(answer).unwrap())
}

/// Reads a message, whatever its frames.
async fn message(stream: &mut TlsStream<DuplexStream>) -> (u8, String) {
    let (first, mut whole) = soon("a frame", read_frame(stream)).await.unwrap();
    let mut last = first;
    while last & 0x80 == 0 {
        let (next, payload) = soon("a frame", read_frame(stream)).await.unwrap();
        assert_eq!(next & 0x0f, 0, "a continuation");
        whole.extend(payload);
        last = next;
    }
    (first & 0x0f, String::from_utf8(whole).unwrap())
}

#[tokio::test]
async fn messages_pass_both_ways_in_frames_of_any_size() {
    let (gateway, origin) = gateway(Dlp::Block).await;
    let (mut stream, head) = open(&gateway, "/ws?x").await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("sec-websocket-accept: as-computed"), "{head}");
    let arrived = origin.log.requests()[0].headers.clone();
    assert_eq!(
        (&arrived["upgrade"], &arrived["connection"]),
        (&"websocket".parse().unwrap(), &"Upgrade".parse().unwrap())
    );
    assert!(!arrived.contains_key("sec-websocket-extensions"));
    let long = "words, ".repeat(8000);
    for text in ["", "hello", "ends in gh", &long] {
        stream
            .write_all(&frame(0x81, text.as_bytes(), MASK))
            .await
            .unwrap();
        assert_eq!(message(&mut stream).await, (1, text.to_owned()));
    }
    // A ping between two parts of a message.
    for part in [
        frame(0x01, b"one, ", MASK),
        frame(0x89, b"ping", MASK),
        frame(0x80, b"two", MASK),
    ] {
        stream.write_all(&part).await.unwrap();
    }
    let mut frames = Vec::new();
    while frames.len() < 3 {
        frames.push(soon("a frame", read_frame(&mut stream)).await.unwrap());
    }
    assert!(frames.contains(&(0x89, b"ping".to_vec())), "{frames:?}");
    // The end of the one is the end of the other.
    drop(stream);
    until("the end", || origin.log.broken.load(Ordering::SeqCst) == 1).await;
    until("the event", || !gateway.events.allowed().is_empty()).await;
    assert_eq!(gateway.events.allowed()[0].2, Some(101));
    assert_eq!(gateway.events.refusals(), []);
}

#[tokio::test]
async fn a_secret_in_a_message_ends_the_connection_before_it_is_out() {
    let token = github_token();
    let (first, second) = token.split_at(20);
    for (kind, frames) in [
        ("text", vec![frame(0x81, token.as_bytes(), MASK)]),
        ("binary", vec![frame(0x82, token.as_bytes(), MASK)]),
        ("ping", vec![frame(0x89, token.as_bytes(), MASK)]),
        (
            "two frames",
            vec![
                frame(0x01, first.as_bytes(), MASK),
                frame(0x80, second.as_bytes(), MASK),
            ],
        ),
    ] {
        let (gateway, origin) = gateway(Dlp::Block).await;
        let (mut stream, _) = open(&gateway, "/ws").await;
        for frame in frames {
            let _ = stream.write_all(&frame).await;
        }
        let mut rest = Vec::new();
        let _ = soon("the end", stream.read_to_end(&mut rest)).await;
        until("the refusal", || !gateway.events.refusals().is_empty()).await;
        let (reason, _, detail) = gateway.events.refusals().pop().unwrap();
        assert_eq!(reason, Reason::SecretFound, "{kind}");
        assert_eq!(detail, "WebSocket message contains secret: GitHub Token");
        until("the end", || origin.log.broken.load(Ordering::SeqCst) == 1).await;
        assert!(origin.log.received.load(Ordering::SeqCst) < 4, "{kind}");
    }
}

#[tokio::test]
async fn a_secret_in_a_message_is_overwritten_or_told_as_the_rule_says() {
    let token = github_token();
    for (dlp, wanted) in [
        (Dlp::Redact, "*".repeat(token.len())),
        (Dlp::Warn, token.clone()),
    ] {
        let (gateway, _origin) = gateway(dlp).await;
        let (mut stream, _) = open(&gateway, "/ws").await;
        let text = format!("a {token} b");
        stream
            .write_all(&frame(0x81, text.as_bytes(), MASK))
            .await
            .unwrap();
        assert_eq!(message(&mut stream).await, (1, format!("a {wanted} b")));
        stream
            .write_all(&frame(0x89, token.as_bytes(), MASK))
            .await
            .unwrap();
        assert_eq!(message(&mut stream).await, (9, wanted));
        let told = gateway.events.all().into_iter();
        let told = told.filter(|event| matches!(event, Happening::SecretSeen { .. }));
        assert_eq!(told.count(), 2, "{dlp:?}");
    }
}

#[tokio::test]
async fn what_is_no_web_socket_ends_it() {
    for bytes in [
        frame(0x81, b"unmasked", None),
        frame(0xc1, b"compressed", MASK),
        frame(0x80, b"continues nothing", MASK),
        [
            frame(0x01, b"a", MASK),
            frame(0x81, b"another inside", MASK),
        ]
        .concat(),
    ] {
        let (gateway, _origin) = gateway(Dlp::Block).await;
        let (mut stream, _) = open(&gateway, "/ws").await;
        stream.write_all(&bytes).await.unwrap();
        let mut rest = Vec::new();
        let _ = soon("the end", stream.read_to_end(&mut rest)).await;
        until("the refusal", || !gateway.events.refusals().is_empty()).await;
        assert_eq!(gateway.events.refusals()[0].0, Reason::BadProtocol);
    }
}

#[tokio::test]
async fn the_handshake_is_a_request_like_any_other() {
    let (gateway, origin) = gateway(Dlp::Block).await;
    let (_stream, head) = open(&gateway, "/other").await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert_eq!(gateway.events.refusals()[0].0, Reason::PathNotAllowed);
    let (_stream, head) = open(&gateway, &format!("/ws?{}", github_token())).await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert_eq!(origin.log.connections(), 0);
    // The upstream's own refusal is passed on, and the connection goes on.
    let (stream, head) = open(&gateway, "/ws?no").await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    drop(stream);
    let (_stream, head) = open(&gateway, "/ws?other").await;
    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    // Where the connection cannot become one.
    let mut new = gateway.http2(AUTHORITY).await;
    let answer = send2(&mut new, request2("CONNECT", NAME, "/ws", empty())).await;
    assert_eq!(answer.status, 403);
    let resolve = [("plain.test", 80, origin.address)];
    let gateway = Gateway::new(&TestCa::new(), &["plain.test:80"], &resolve);
    let mut front = http1_on(gateway.proxy()).await;
    let mut plain = request("GET", "plain.test", "http://plain.test/ws", empty());
    for (name, value) in [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ] {
        plain.headers_mut().insert(name, value.parse().unwrap());
    }
    send1(&mut front, plain).await.assert_refused(
        "bad-request",
        "changing the protocol (Upgrade) is not allowed, but for a WebSocket of HTTP/1.1",
    );
}
