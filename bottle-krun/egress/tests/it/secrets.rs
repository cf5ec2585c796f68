//! A secret leaves in no part of a request, and the upstream sees nothing of one that carries it.

use std::sync::atomic::Ordering;

use bottle_core::event::Happening;
use bottle_core::policy::Reason;
use bottle_core::secret::Secret;
use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};

use crate::origin::Origin;
use crate::support::{
    Answer, Body, Gateway, TestCa, chunks, empty, github_token, request, request2, send1, send2,
    sized, text, until,
};

const NAME: &str = "allowed.test";
const AUTHORITY: &str = "allowed.test:443";
const IN_BODY: &str = "request body contains secret: GitHub Token";

async fn gateway() -> (Gateway, Origin) {
    let ca = TestCa::new();
    let origin = Origin::tls(&ca, NAME, &["h2", "http/1.1"]).await;
    let known = Secret::new("DEPLOY_KEY", "correct horse battery staple").unwrap();
    let gateway = Gateway::with_secrets(
        &ca,
        &[NAME, "*.wild.test"],
        &[(NAME, 443, origin.address)],
        vec![known],
    );
    (gateway, origin)
}

/// Checks that no event holds the token.
fn assert_unrecorded(gateway: &Gateway) {
    let all = serde_json::to_string(&gateway.events.all()).unwrap();
    assert!(!all.contains(&github_token()), "{all}");
}

#[tokio::test]
async fn a_token_in_a_body_is_refused_and_the_upstream_sees_no_connection() {
    let (gateway, origin) = gateway().await;
    let body = || text(&format!("{{\"key\": \"{}\"}}", github_token()));
    let mut old = gateway.http1(AUTHORITY).await;
    let answer = send1(&mut old, request("POST", NAME, "/", body())).await;
    answer.assert_refused("secret-found", IN_BODY);
    assert_eq!(answer.headers["x-pipelock-block-reason"], "dlp_match");
    assert_eq!(answer.problem("rule"), "allow allowed.test");
    let mut new = gateway.http2(AUTHORITY).await;
    let answer = send2(&mut new, request2("POST", NAME, "/", body())).await;
    answer.assert_refused("secret-found", IN_BODY);
    assert_eq!(origin.log.connections(), 0);
    let reasons: Vec<_> = gateway.events.refusals().into_iter().map(|r| r.0).collect();
    assert_eq!(reasons, [Reason::SecretFound, Reason::SecretFound]);
    assert_unrecorded(&gateway);
    // The connection is as good as before, and the next request is judged anew.
    let answer = send1(&mut old, request("POST", NAME, "/", text("clean"))).await;
    assert_eq!(answer.status, 200);
    let answer = send1(&mut old, request("POST", NAME, "/", body())).await;
    answer.assert_refused("secret-found", IN_BODY);
    assert_eq!(origin.log.requests().len(), 1);
}

#[tokio::test]
async fn a_token_in_a_body_of_unknown_length_is_refused() {
    let (gateway, origin) = gateway().await;
    let token = github_token();
    let (first, second) = token.split_at(17);
    let parts = [first.to_owned(), second.to_owned()];
    let mut old = gateway.http1(AUTHORITY).await;
    let answer = send1(&mut old, request("POST", NAME, "/", chunks(parts.clone()))).await;
    answer.assert_refused("secret-found", IN_BODY);
    let mut new = gateway.http2(AUTHORITY).await;
    let answer = send2(&mut new, request2("POST", NAME, "/", chunks(parts))).await;
    answer.assert_refused("secret-found", IN_BODY);
    assert_eq!(origin.log.connections(), 0);
    assert_unrecorded(&gateway);
}

#[tokio::test]
async fn a_token_in_a_long_body_aborts_it_before_the_token_is_out() {
    let (gateway, origin) = gateway().await;
    let filler = Bytes::from(vec![b'.'; 1 << 20]);
    let long = |known: bool| {
        let token = Bytes::from(format!(" {} ", github_token()));
        let parts = vec![filler.clone(), token, filler.clone()];
        if known { sized(&parts) } else { chunks(parts) }
    };
    for (count, known) in [(1, true), (2, false)] {
        let mut sender = gateway.http2(AUTHORITY).await;
        let answer = send2(&mut sender, request2("POST", NAME, "/count", long(known))).await;
        answer.assert_refused("secret-found", IN_BODY);
        until("the abort", || {
            origin.log.broken.load(Ordering::SeqCst) == count
        })
        .await;
    }
    let mut sender = gateway.http1(AUTHORITY).await;
    let answer = send1(&mut sender, request("POST", NAME, "/count", long(true))).await;
    answer.assert_refused("secret-found", IN_BODY);
    assert!(
        gateway.events.allowed().is_empty(),
        "{:?}",
        gateway.events.all()
    );
    assert_unrecorded(&gateway);
}

#[tokio::test]
async fn a_token_in_any_part_of_the_head_is_refused() {
    let (gateway, origin) = gateway().await;
    let token = github_token();
    let encoded: String = token.bytes().map(|b| format!("%{b:02x}")).collect();
    let header = |name: &str, value: &str| {
        let mut request = request("GET", NAME, "/", empty());
        request.headers_mut().insert(
            http::HeaderName::from_bytes(name.as_bytes()).unwrap(),
            value.parse().unwrap(),
        );
        request
    };
    let basic = base64(&format!("x-access-token:{token}"));
    let cases = [
        (request("GET", NAME, &format!("/a/{token}"), empty()), "URL"),
        (
            request("GET", NAME, &format!("/a?b={token}"), empty()),
            "URL",
        ),
        (
            request("GET", NAME, &format!("/a?b={encoded}"), empty()),
            "URL",
        ),
        (
            header("authorization", &format!("Bearer {token}")),
            "header",
        ),
        (header("authorization", &format!("Basic {basic}")), "header"),
        (header("x-note", &token), "header"),
        (header("user-agent", &format!("curl {token}")), "header"),
        (header("cookie", &format!("a={token}; b=c")), "header"),
    ];
    let mut sender = gateway.http1(AUTHORITY).await;
    for (request, place) in cases {
        let shown = format!("{request:?}");
        let answer = send1(&mut sender, request).await;
        assert_eq!(answer.status, 403, "{shown}");
        let detail = format!("request {place} contains secret: GitHub Token");
        answer.assert_refused("secret-found", &detail);
    }
    assert_eq!(origin.log.connections(), 0);
    // Nothing of it stands in the record, a path that was refused included.
    assert_unrecorded(&gateway);
    assert!(matches!(
        &gateway.events.all()[0],
        Happening::Refused { path: None, .. }
    ));
}

#[tokio::test]
async fn a_token_on_its_way_to_a_refused_host_stays_out_of_the_record() {
    let (gateway, _origin) = gateway().await;
    let mut sender = gateway.http1("evil.test:443").await;
    let target = format!("/{}", github_token());
    let answer = send1(&mut sender, request("GET", "evil.test", &target, empty())).await;
    answer.assert_refused("secret-found", "request URL contains secret: GitHub Token");
    assert_unrecorded(&gateway);
}

#[tokio::test]
async fn a_known_value_is_refused_by_its_name() {
    let (gateway, origin) = gateway().await;
    let mut sender = gateway.http1(AUTHORITY).await;
    let body = text("it is correct horse battery staple, really");
    let answer = send1(&mut sender, request("POST", NAME, "/", body)).await;
    assert_eq!(answer.status, 403);
    assert!(answer.problem("detail").contains("DEPLOY_KEY"));
    assert_eq!(origin.log.connections(), 0);
}

#[tokio::test]
async fn a_token_in_a_trailer_is_refused_and_other_trailers_pass() {
    for alpn in [&["http/1.1"][..], &["h2"]] {
        let ca = TestCa::new();
        let origin = Origin::tls(&ca, NAME, alpn).await;
        let gateway = Gateway::new(&ca, &[NAME], &[(NAME, 443, origin.address)]);
        let send = async |sum: &str| -> Answer {
            let mut trailers = http::HeaderMap::new();
            trailers.insert("x-sum", sum.parse().unwrap());
            let frames = [
                Ok(Frame::data(Bytes::from_static(b"data"))),
                Ok(Frame::trailers(trailers)),
            ];
            let body: Body = StreamBody::new(stream::iter(frames)).boxed_unsync();
            let mut sender = gateway.http2(AUTHORITY).await;
            send2(&mut sender, request2("POST", NAME, "/", body)).await
        };
        send(&github_token()).await.assert_refused(
            "secret-found",
            "request trailer contains secret: GitHub Token",
        );
        assert_eq!(origin.log.connections(), 0);
        assert_eq!(send("42").await.status, 200);
        let arrived = origin.log.requests().pop().unwrap();
        assert_eq!(arrived.trailers.unwrap()["x-sum"], "42");
    }
}

#[tokio::test]
async fn a_token_in_a_name_is_refused_before_it_is_resolved() {
    let known = "correct-horse-battery-staple";
    let ca = TestCa::new();
    let secret = Secret::new("DEPLOY_KEY", known).unwrap();
    let wild = Gateway::with_secrets(&ca, &["*.wild.test"], &[], vec![secret]);
    let name = format!("{known}.wild.test");
    let head = wild.tunnel(&format!("{name}:443")).await.unwrap_err();
    assert!(head.contains("dlp_match"), "{head}");
    let all = serde_json::to_string(&wild.events.all()).unwrap();
    assert!(!all.contains(known), "{all}");
}

fn base64(text: &str) -> String {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let mut bytes = [0; 3];
        bytes[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
        for place in 0..=chunk.len() {
            out.push(char::from(digits[(bits >> (18 - 6 * place) & 63) as usize]));
        }
    }
    out
}
