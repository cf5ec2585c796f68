//! What a rule says about secrets: refuse, overwrite, report, or do not look.

use bottle_core::event::Happening;
use bottle_core::policy::{Dlp, WrittenRule};
use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::mpsc;

use crate::origin::Origin;
use crate::support::{
    Body, Gateway, TestCa, chunks, github_token, request, request2, rule, send1, send2, soon, text,
};

const NAME: &str = "allowed.test";
const AUTHORITY: &str = "allowed.test:443";

/// A gateway whose rule treats secrets in this way.
async fn gateway(dlp: Dlp) -> (Gateway, Origin) {
    let ca = TestCa::new();
    let origin = Origin::tls(&ca, NAME, &["h2", "http/1.1"]).await;
    let rule = WrittenRule {
        dlp: Some(dlp),
        ..rule(NAME)
    };
    let gateway = Gateway::with_rules(&ca, [rule], &[(NAME, 443, origin.address)]);
    (gateway, origin)
}

/// Returns what was told of secrets that did not lead to a refusal.
fn told(gateway: &Gateway) -> Vec<(String, bool)> {
    let all = gateway.events.all().into_iter();
    all.filter_map(|event| match event {
        Happening::SecretSeen {
            detail,
            overwritten,
            ..
        } => Some((detail, overwritten)),
        Happening::Stage { .. } | _ => None,
    })
    .collect()
}

fn in_place(place: &str) -> String {
    format!("request {place} contains secret: GitHub Token")
}

#[tokio::test]
async fn a_secret_is_overwritten_in_headers_bodies_and_trailers() {
    let (gateway, origin) = gateway(Dlp::Redact).await;
    let token = github_token();
    let stars = "*".repeat(token.len());
    let mut sender = gateway.http2(AUTHORITY).await;
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-end", token.parse().unwrap());
    let frames = [
        Ok(Frame::data(Bytes::from(format!("a {}", &token[..20])))),
        Ok(Frame::data(Bytes::from(format!("{} b", &token[20..])))),
        Ok(Frame::trailers(trailers)),
    ];
    let body: Body = StreamBody::new(stream::iter(frames)).boxed_unsync();
    let mut request = request2("POST", NAME, "/", body);
    let bearer = format!("Bearer {token}");
    request
        .headers_mut()
        .insert("authorization", bearer.parse().unwrap());
    assert_eq!(send2(&mut sender, request).await.status, 200);
    let arrived = &origin.log.requests()[0];
    assert_eq!(arrived.headers["authorization"], format!("Bearer {stars}"));
    assert_eq!(&arrived.body[..], format!("a {stars} b").as_bytes());
    assert_eq!(arrived.trailers.as_ref().unwrap()["x-end"], stars);
    let places = ["header", "body", "trailer"].map(|place| (in_place(place), true));
    assert_eq!(told(&gateway), places);
    let all = serde_json::to_string(&gateway.events.all()).unwrap();
    assert!(!all.contains(&token), "{all}");
}

#[tokio::test]
async fn a_secret_in_a_stream_is_overwritten_and_the_rest_streams() {
    let (gateway, _origin) = gateway(Dlp::Redact).await;
    let token = github_token();
    let (pieces, receiver) = mpsc::channel::<Bytes>(1);
    let frames = stream::unfold(receiver, |mut receiver| async move {
        Some((Ok(Frame::data(receiver.recv().await?)), receiver))
    });
    let body = StreamBody::new(frames).boxed_unsync();
    let mut sender = gateway.http2(AUTHORITY).await;
    pieces.send(Bytes::from_static(b"begin\n")).await.unwrap();
    let answer = soon(
        "an answer",
        sender.send_request(request2("POST", NAME, "/echo", body)),
    );
    let mut answer = answer.await.unwrap().into_body();
    let mut echoed = Vec::new();
    // The last ends in the beginning of something, and waits for its echo all the same.
    for piece in [&token[..9], &token[9..], "\nends in g"] {
        pieces
            .send(Bytes::copy_from_slice(piece.as_bytes()))
            .await
            .unwrap();
    }
    let wanted = format!("begin\n{}\nends in g", "*".repeat(token.len()));
    while echoed.len() < wanted.len() {
        let frame = soon("the echo", answer.frame()).await.unwrap().unwrap();
        echoed.extend(frame.into_data().unwrap());
    }
    assert_eq!(String::from_utf8(echoed).unwrap(), wanted);
}

#[tokio::test]
async fn a_secret_that_cannot_be_overwritten_is_refused() {
    let (gateway, origin) = gateway(Dlp::Redact).await;
    let token = github_token();
    let mut sender = gateway.http1(AUTHORITY).await;
    let answer = send1(
        &mut sender,
        request("GET", NAME, &format!("/{token}"), text("")),
    )
    .await;
    answer.assert_refused("secret-found", &in_place("URL"));
    let mut encoded = request("POST", NAME, "/", text("x"));
    encoded
        .headers_mut()
        .insert("content-encoding", "compress".parse().unwrap());
    let answer = send1(&mut sender, encoded).await;
    assert_eq!(answer.problem("reason"), "bad-request");
    assert_eq!(origin.log.connections(), 0);
}

#[tokio::test]
async fn a_secret_passes_with_a_note_or_without_one() {
    for (dlp, notes) in [(Dlp::Warn, true), (Dlp::Off, false)] {
        let (gateway, origin) = gateway(dlp).await;
        let token = github_token();
        let mut sender = gateway.http1(AUTHORITY).await;
        let target = format!("/a?b={token}");
        let body = chunks([token.clone(), " and ".to_owned(), token.clone()]);
        let answer = send1(&mut sender, request("POST", NAME, &target, body)).await;
        assert_eq!(answer.status, 200);
        let mut encoded = request("POST", NAME, "/", text("not even this"));
        encoded
            .headers_mut()
            .insert("content-encoding", "compress".parse().unwrap());
        assert_eq!(send1(&mut sender, encoded).await.status, 200);
        let arrived = origin.log.requests();
        assert!(arrived[0].line.contains(&token));
        assert_eq!(
            &arrived[0].body[..],
            format!("{token} and {token}").as_bytes()
        );
        let wanted = if notes {
            let unknown =
                "request body is encoded in a way that cannot be scanned (use gzip, or none)";
            vec![
                (in_place("URL"), false),
                (in_place("body"), false),
                (unknown.to_owned(), false),
            ]
        } else {
            Vec::new()
        };
        assert_eq!(told(&gateway), wanted);
        let all = serde_json::to_string(&gateway.events.all()).unwrap();
        assert!(!all.contains(&token), "{all}");
    }
}

#[tokio::test]
async fn the_identity_of_the_host_is_checked_whatever_is_said_about_secrets() {
    let (gateway, origin) = gateway(Dlp::Off).await;
    let mut sender = gateway.http1(AUTHORITY).await;
    let answer = send1(&mut sender, request("GET", "other.test", "/", text(""))).await;
    assert_eq!(answer.problem("reason"), "authority-mismatch");
    assert_eq!(origin.log.connections(), 0);
}
