//! A real credential reaches its upstream and nobody else, however it is asked for or sent back.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bottle_core::credential::{Credential, WrittenCredential};
use bottle_core::event::Happening;
use bottle_core::policy::{Policy, WrittenRule};
use bottle_egress::{CredentialSource, FixedSource, HostSide, SourceError};
use bytes::Bytes;
use http::{HeaderName, Request};
use http_body_util::BodyExt;
use zeroize::Zeroizing;

use crate::origin::Origin;
use crate::support::{
    Answer, Body, Gateway, TestCa, chunks, empty, request, request2, rule, send1, send2, soon, text,
};

const NAME: &str = "api.test";
const AUTHORITY: &str = "api.test:443";
const SECRET: &str = "owner+Secret.value-0123456789";

fn credential(header: &str, basic: Option<&str>) -> Credential {
    let written = WrittenCredential {
        name: "api".to_owned(),
        header: header.to_owned(),
        from: "env:X".to_owned(),
        format: None,
        basic: basic.map(str::to_owned),
    };
    written.try_into().unwrap()
}

/// A gateway that puts the credential into what `/reflect` and `/auth` get, and another rule.
async fn gateway_of(
    credential: Credential,
    source: Box<dyn CredentialSource>,
    alpn: &[&str],
) -> (Gateway, Origin) {
    let ca = TestCa::new();
    let origin = Origin::tls(&ca, NAME, alpn).await;
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    let rules = [
        WrittenRule {
            methods: texts(&["GET", "POST"]),
            paths: texts(&["/reflect", "/auth"]),
            credential: Some("api".to_owned()),
            ..rule(NAME)
        },
        rule(NAME),
    ];
    let policy = Policy::new(rules.map(|rule| rule.try_into().unwrap()));
    let resolve = [(NAME, 443, origin.address)];
    let host = HostSide {
        credentials: vec![(credential, source)],
        proxy: None,
    };
    let gateway = Gateway::with_host(&ca, policy, &resolve, Vec::new(), host);
    (gateway, origin)
}

async fn gateway(alpn: &[&str]) -> (Gateway, Origin) {
    let source = FixedSource::new(SECRET.as_bytes().to_vec());
    gateway_of(credential("x-api-key", None), Box::new(source), alpn).await
}

fn with(mut request: Request<Body>, headers: &[(&str, &str)]) -> Request<Body> {
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    request
}

/// Checks that the record holds the value in no form.
fn assert_unrecorded(gateway: &Gateway) {
    let all = serde_json::to_string(&gateway.events.all()).unwrap();
    for part in [SECRET, "Secret.v", "value-0"] {
        assert!(!all.contains(part), "{all}");
    }
}

#[tokio::test]
async fn the_upstream_gets_the_value_and_nothing_of_the_guests() {
    for alpn in [&["http/1.1"][..], &["h2"]] {
        let (gateway, origin) = gateway(alpn).await;
        let sent = [
            ("x-api-key", "guest-1"),
            ("X-Api-Key", "guest-2"),
            ("x_api_key", "guest-3"),
            ("authorization", "Bearer guest-4"),
            ("proxy-authorization", "Basic guest-5"),
            ("connection", "x-api-key"),
            ("accept-encoding", "gzip, br"),
        ];
        let mut old = gateway.http1(AUTHORITY).await;
        let target = format!("/auth?{SECRET}");
        let answer = send1(
            &mut old,
            with(request("POST", NAME, &target, text("x")), &sent),
        )
        .await;
        assert_eq!(answer.status, 200);
        let mut new = gateway.http2(AUTHORITY).await;
        let sent: Vec<_> = sent
            .into_iter()
            .filter(|(name, _)| *name != "connection")
            .collect();
        let answer = send2(
            &mut new,
            with(request2("POST", NAME, &target, text("x")), &sent),
        )
        .await;
        assert_eq!(answer.status, 200);
        for arrived in origin.log.requests() {
            let all = format!("{:?}", arrived.headers);
            assert!(!all.contains("guest"), "{all}");
            assert_eq!(arrived.headers.get_all("x-api-key").iter().count(), 1);
            assert_eq!(arrived.headers["accept-encoding"], "identity");
        }
        assert_eq!(origin.log.requests().len(), 2);
    }
}

#[tokio::test]
async fn only_requests_of_the_rule_that_names_it_carry_it() {
    let (gateway, origin) = gateway(&["http/1.1"]).await;
    let mut sender = gateway.http1(AUTHORITY).await;
    for (method, path) in [
        ("GET", "/other"),
        ("PUT", "/elsewhere"),
        ("GET", "/reflecting"),
    ] {
        let request = with(
            request(method, NAME, path, empty()),
            &[("x-api-key", "guest")],
        );
        assert_eq!(send1(&mut sender, request).await.status, 200);
    }
    for arrived in origin.log.requests() {
        assert_eq!(arrived.headers["x-api-key"], "guest", "{}", arrived.line);
    }
    // A wrong Host, another method by a header, a TRACE: none reaches the upstream with it.
    let answer = send1(
        &mut sender,
        request("GET", "other.test", "/reflect?plain", empty()),
    )
    .await;
    assert_eq!(answer.problem("reason"), "authority-mismatch");
    let overriding = [("x-http-method-override", "DELETE")];
    let answer = send1(
        &mut sender,
        with(
            request("POST", NAME, "/reflect?plain", empty()),
            &overriding,
        ),
    )
    .await;
    assert_eq!(answer.problem("reason"), "bad-request");
    assert_eq!(origin.log.requests().len(), 3);
}

#[tokio::test]
async fn a_reflected_value_is_taken_out_of_the_answer() {
    for alpn in [&["http/1.1"][..], &["h2"]] {
        let (gateway, _origin) = gateway(alpn).await;
        let mut sender = gateway.http2(AUTHORITY).await;
        let get = |how: &str| request2("GET", NAME, &format!("/reflect?{how}"), empty());
        for how in [
            "plain",
            "base64",
            "base64url",
            "hex",
            "percent",
            "json",
            "split",
        ] {
            let answer = send2(&mut sender, get(how)).await;
            assert_eq!(answer.status, 200, "{how}");
            let body = String::from_utf8(answer.body.to_vec()).unwrap();
            let stars = body.bytes().filter(|byte| *byte == b'*').count();
            // In base64 the first and the last character may belong to neighbours.
            assert!(
                stars >= SECRET.len() && stars + 12 >= body.len(),
                "{how}: {body}"
            );
            assert!(
                body.starts_with('[') && body.ends_with(']'),
                "{how}: {body}"
            );
        }
        let answer = send2(&mut sender, get("header")).await;
        let stars = "*".repeat(SECRET.len());
        assert_eq!(answer.headers["x-echo"], format!("you said {stars}"));
        assert!(
            !format!("{:?}", answer.headers)
                .to_lowercase()
                .contains("owner"),
            "{:?}",
            answer.headers
        );
        // HTTP/1.1 sends trailers to those alone who ask for them.
        if alpn == ["h2"] {
            let answer = soon("an answer", sender.send_request(get("trailer")))
                .await
                .unwrap();
            let body = soon("the end", answer.into_body().collect()).await.unwrap();
            assert_eq!(body.trailers().unwrap()["x-end"], stars);
        }
        assert_unrecorded(&gateway);
    }
}

#[tokio::test]
async fn an_encoded_answer_with_the_value_breaks_off_and_an_unknown_encoding_is_withheld() {
    let (gateway, _origin) = gateway(&["http/1.1"]).await;
    let mut sender = gateway.http2(AUTHORITY).await;
    let get = |how: &str| request2("GET", NAME, &format!("/reflect?{how}"), empty());
    // Depending on how far it came, its head is there or not.
    if let Ok(answer) = soon("an answer", sender.send_request(get("gzip"))).await {
        let body = soon("the end", answer.into_body().collect()).await;
        assert!(body.is_err(), "{body:?}");
    }
    let answer = send2(&mut sender, get("unknown")).await;
    assert_eq!(
        (answer.status, answer.problem("reason").as_str()),
        (502, "answer-withheld")
    );
}

#[tokio::test]
async fn a_basic_credential_is_found_in_its_base64() {
    let source = FixedSource::new(SECRET.as_bytes().to_vec());
    let basic = credential("authorization", Some("owner"));
    let (gateway, _origin) = gateway_of(basic, Box::new(source), &["http/1.1"]).await;
    let mut sender = gateway.http1(AUTHORITY).await;
    let answer = send1(&mut sender, request("GET", NAME, "/reflect?plain", empty())).await;
    let body = String::from_utf8(answer.body.to_vec()).unwrap();
    assert!(body.starts_with("[Basic b3duZXI6"), "{body}");
    assert!(
        body.bytes().filter(|b| *b == b'*').count() > SECRET.len(),
        "{body}"
    );
}

#[tokio::test]
async fn an_event_is_not_kept_because_it_may_be_the_beginning_of_the_value() {
    let (gateway, _origin) = gateway(&["http/1.1"]).await;
    let mut sender = gateway.http1(AUTHORITY).await;
    soon("readiness", sender.ready()).await.unwrap();
    let sent = sender.send_request(request("GET", NAME, "/reflect?event", empty()));
    let mut body = soon("an answer", sent).await.unwrap().into_body();
    let wanted = format!("data: tick {}\n\n{}", &SECRET[..1], &SECRET[..2]);
    let mut seen = Vec::new();
    while seen.len() < wanted.len() {
        let frame = soon("the event", body.frame()).await.unwrap().unwrap();
        seen.extend(frame.into_data().unwrap());
    }
    assert_eq!(seen, wanted.as_bytes());
}

/// Gives its values one after the other, the last for ever.
#[derive(Debug)]
struct Rotating {
    values: Mutex<Vec<&'static str>>,
    asked: Arc<AtomicUsize>,
}

#[async_trait]
impl CredentialSource for Rotating {
    async fn fetch(&self) -> Result<Zeroizing<Vec<u8>>, SourceError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let mut values = self.values.lock().unwrap();
        let value = if values.len() > 1 {
            values.remove(0)
        } else {
            values[0]
        };
        Ok(Zeroizing::new(value.as_bytes().to_vec()))
    }

    fn is_renewable(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_value_that_is_no_longer_taken_is_asked_for_once_more() {
    let asked = Arc::new(AtomicUsize::new(0));
    let source = Rotating {
        values: Mutex::new(vec!["stale-value-1", "fresh-value-2"]),
        asked: Arc::clone(&asked),
    };
    let key = credential("x-api-key", None);
    let (gateway, origin) = gateway_of(key, Box::new(source), &["http/1.1"]).await;
    let mut sender = gateway.http1(AUTHORITY).await;
    let send = async |sender: &mut _, target: &str, body: Body| -> Answer {
        send1(sender, request("POST", NAME, target, body)).await
    };
    // The guest sees one answer; the body went out twice.
    let answer = send(&mut sender, "/auth?fresh-value-2", text("data")).await;
    assert_eq!(answer.status, 200);
    let bodies: Vec<_> = origin.log.requests().into_iter().map(|r| r.body).collect();
    assert_eq!(bodies, [Bytes::from("data"), Bytes::from("data")]);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    // What is refused for good is refused, without asking again and again.
    for _ in 0..3 {
        let answer = send(&mut sender, "/auth?never", text("data")).await;
        assert_eq!(answer.status, 401);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    assert_eq!(origin.log.requests().len(), 5);
    let allowed = gateway.events.all().into_iter();
    let allowed = allowed.filter(|event| matches!(event, Happening::Allowed { .. }));
    assert_eq!(allowed.count(), 4, "one for each request of the guest");
}

#[tokio::test]
async fn a_long_body_is_not_sent_again_and_the_next_request_has_the_newer_value() {
    let asked = Arc::new(AtomicUsize::new(0));
    let source = Rotating {
        values: Mutex::new(vec!["stale-value-1", "fresh-value-2"]),
        asked: Arc::clone(&asked),
    };
    let key = credential("x-api-key", None);
    let (gateway, origin) = gateway_of(key, Box::new(source), &["http/1.1"]).await;
    let mut sender = gateway.http1(AUTHORITY).await;
    let long = chunks((0..4).map(|_| Bytes::from(vec![b'x'; 40 << 10])));
    let answer = send1(
        &mut sender,
        request("POST", NAME, "/auth?fresh-value-2", long),
    )
    .await;
    assert_eq!(answer.status, 401);
    let answer = send1(
        &mut sender,
        request("GET", NAME, "/auth?fresh-value-2", empty()),
    )
    .await;
    assert_eq!(answer.status, 200);
    assert_eq!(origin.log.requests().len(), 2);
}

#[tokio::test]
async fn without_its_value_nothing_is_sent() {
    let source = Box::new(FixedSource::new(b"short".to_vec()));
    let key = credential("x-api-key", None);
    let (gateway, origin) = gateway_of(key, source, &["http/1.1"]).await;
    let mut sender = gateway.http1(AUTHORITY).await;
    let answer = send1(&mut sender, request("GET", NAME, "/reflect?plain", empty())).await;
    assert_eq!(
        (answer.status, answer.problem("reason").as_str()),
        (502, "credential-unavailable")
    );
    assert_eq!(origin.log.connections(), 0);
}

#[tokio::test]
async fn a_web_socket_carries_no_credential() {
    let (gateway, origin) = gateway(&["http/1.1"]).await;
    let mut sender = gateway.http1(AUTHORITY).await;
    let handshake = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let request = with(request("GET", NAME, "/reflect?plain", empty()), &handshake);
    send1(&mut sender, request).await.assert_refused(
        "bad-request",
        "a WebSocket is not allowed where a credential is put in",
    );
    assert_eq!(origin.log.connections(), 0);
}
