//! Long bodies stream both ways, and who stalls holds back himself only.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{advance, pause, resume};

use crate::origin::{BIG, Origin};
use crate::support::{
    Body, Gateway, TestCa, empty, request, request2, send1, send2, sized, soon, until,
};

const NAME: &str = "allowed.test";
const AUTHORITY: &str = "allowed.test:443";

async fn gateway(alpn: &[&str]) -> (Gateway, Origin) {
    let ca = TestCa::new();
    let origin = Origin::tls(&ca, NAME, alpn).await;
    let gateway = Gateway::new(&ca, &[NAME], &[(NAME, 443, origin.address)]);
    (gateway, origin)
}

/// `count` mebibytes, made as they are read.
fn mebibytes(count: usize) -> Body {
    let chunk = Bytes::from(vec![b'x'; 64 << 10]);
    let frames = stream::iter(0..count * 16).map(move |_| Ok(Frame::data(chunk.clone())));
    StreamBody::new(frames).boxed_unsync()
}

/// Returns the most memory that this process had at once, in KiB.
fn peak_memory() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn two_hundred_megabytes_pass_either_way_in_little_memory() {
    for alpn in [&["http/1.1"][..], &["h2"]] {
        let (gateway, origin) = gateway(alpn).await;
        let mut sender = gateway.http1(AUTHORITY).await;
        let answer = send1(&mut sender, request("POST", NAME, "/count", mebibytes(200))).await;
        assert_eq!(&answer.body[..], (200_usize << 20).to_string().as_bytes());
        assert_eq!(origin.log.received.load(Ordering::SeqCst), 200 << 20);
        soon("readiness", sender.ready()).await.unwrap();
        let answer = sender
            .send_request(request("GET", NAME, "/big", empty()))
            .await
            .unwrap();
        let mut body = answer.into_body();
        let mut count = 0;
        while let Some(frame) = soon("the next frame", body.frame()).await {
            count += frame.unwrap().data_ref().map_or(0, Bytes::len);
        }
        assert_eq!(count, BIG);
    }
    let peak = peak_memory();
    assert!(peak < 150 << 10, "peak memory was {peak} KiB");
}

#[tokio::test]
async fn a_stalled_upload_holds_back_itself_only() {
    for alpn in [&["http/1.1"][..], &["h2"]] {
        let (gateway, origin) = gateway(alpn).await;
        let mut sender = gateway.http2(AUTHORITY).await;
        let mut stalled = sender.clone();
        let upload = tokio::spawn(async move {
            stalled
                .send_request(request2("POST", NAME, "/stall", mebibytes(200)))
                .await
        });
        until("the stall", || {
            origin.log.received.load(Ordering::SeqCst) >= 1 << 20
        })
        .await;
        // On the same connection of the guest and on another one.
        let body = sized(&[Bytes::from(vec![b'x'; 300 << 10])]);
        let answer = send2(&mut sender, request2("POST", NAME, "/", body)).await;
        assert_eq!(answer.status, 200);
        let mut other = gateway.http1(AUTHORITY).await;
        assert_eq!(
            send1(&mut other, request("GET", NAME, "/", empty()))
                .await
                .status,
            200
        );
        assert!(gateway.egress.answer(b"").is_none());
        assert!(!upload.is_finished());
        upload.abort();
    }
}

#[tokio::test]
async fn what_is_released_flows_before_the_body_ends() {
    for alpn in [&["http/1.1"][..], &["h2"]] {
        let (gateway, _origin) = gateway(alpn).await;
        let (chunks, receiver) = mpsc::channel::<Bytes>(1);
        let frames = stream::unfold(receiver, |mut receiver| async move {
            Some((Ok(Frame::data(receiver.recv().await?)), receiver))
        });
        let mut sender = gateway.http2(AUTHORITY).await;
        let body = StreamBody::new(frames).boxed_unsync();
        chunks.send(Bytes::from_static(b"ping\n")).await.unwrap();
        let sending = sender.send_request(request2("POST", NAME, "/echo", body));
        let answer = soon("the answer before the request's end", sending)
            .await
            .unwrap();
        let mut answer = answer.into_body();
        for _ in 0..3 {
            let frame = soon("the echo", answer.frame()).await.unwrap().unwrap();
            assert_eq!(&frame.into_data().unwrap()[..], b"ping\n");
            chunks.send(Bytes::from_static(b"ping\n")).await.unwrap();
        }
        drop(chunks);
        soon("the end", answer.collect()).await.unwrap();
    }
}

#[tokio::test]
async fn an_early_answer_arrives_while_the_upload_goes_on() {
    for alpn in [&["http/1.1"][..], &["h2"]] {
        let (gateway, _origin) = gateway(alpn).await;
        let mut sender = gateway.http2(AUTHORITY).await;
        let answer = send2(&mut sender, request2("POST", NAME, "/early", mebibytes(4))).await;
        assert_eq!(answer.status, 413);
        let mut sender = gateway.http1(AUTHORITY).await;
        let answer = send1(&mut sender, request("POST", NAME, "/early", mebibytes(4))).await;
        assert_eq!(answer.status, 413);
    }
}

#[tokio::test]
async fn an_upstream_that_breaks_off_is_explained_and_the_next_request_passes() {
    for alpn in [&["http/1.1"][..], &["h2"]] {
        let (gateway, _origin) = gateway(alpn).await;
        let mut sender = gateway.http1(AUTHORITY).await;
        let answer = send1(&mut sender, request("GET", NAME, "/reset", empty())).await;
        assert_eq!(answer.status, 502);
        assert_eq!(answer.problem("reason"), "upstream-unreachable");
        let answer = send1(&mut sender, request("GET", NAME, "/", empty())).await;
        assert_eq!(answer.status, 200);
    }
}

#[tokio::test]
async fn a_guest_that_goes_away_takes_its_upload_with_it() {
    let (gateway, origin) = gateway(&["http/1.1"]).await;
    let mut stream = gateway.https(AUTHORITY, &["http/1.1"]).await;
    let head = format!("POST /count HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 1000000\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b'x'; 200_000]).await.unwrap();
    stream.flush().await.unwrap();
    until("the upload", || {
        origin.log.received.load(Ordering::SeqCst) > 0
    })
    .await;
    drop(stream);
    until("the abort", || {
        origin.log.broken.load(Ordering::SeqCst) == 1
    })
    .await;
}

#[tokio::test]
async fn a_guest_that_gives_up_waiting_ends_its_request() {
    for alpn in [&["http/1.1"][..], &["h2"]] {
        let (gateway, origin) = gateway(alpn).await;
        let mut old = gateway.http1(AUTHORITY).await;
        let mut new = gateway.http2(AUTHORITY).await;
        let hang = || request2("GET", NAME, "/hang", empty());
        let one = tokio::spawn(async move {
            let request = request("GET", NAME, "/hang", empty());
            old.send_request(request).await
        });
        let two = tokio::spawn(async move { new.send_request(hang()).await });
        until("both requests", || {
            origin.log.hung.load(Ordering::SeqCst) == 2
        })
        .await;
        one.abort();
        two.abort();
        until("both ends", || {
            gateway.events.allowed().len() == 2 && origin.log.broken.load(Ordering::SeqCst) == 2
        })
        .await;
        assert!(
            gateway
                .events
                .allowed()
                .iter()
                .all(|allowed| allowed.2.is_none())
        );
    }
}

#[tokio::test]
async fn a_guest_that_waits_for_continue_is_told_to() {
    let (gateway, origin) = gateway(&["http/1.1"]).await;
    let mut stream = gateway.https(AUTHORITY, &["http/1.1"]).await;
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 25];
    soon("100 Continue", stream.read_exact(&mut answer))
        .await
        .unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"data").await.unwrap();
    let mut answer = [0; 15];
    soon("the answer", stream.read_exact(&mut answer))
        .await
        .unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    let arrived = &origin.log.requests()[0];
    assert_eq!(&arrived.body[..], b"data");
    assert!(!arrived.headers.contains_key("expect"));
}

#[tokio::test]
async fn an_upstream_that_never_answers_is_given_up() {
    let (gateway, origin) = gateway(&["http/1.1"]).await;
    let mut sender = gateway.http1(AUTHORITY).await;
    let sent =
        tokio::spawn(
            async move { send1(&mut sender, request("GET", NAME, "/hang", empty())).await },
        );
    until("the request", || {
        origin.log.hung.load(Ordering::SeqCst) == 1
    })
    .await;
    // More than any patience; the answer's own deadline in `soon` is later.
    pause();
    advance(Duration::from_secs(20 * 60 + 1)).await;
    resume();
    let answer = sent.await;
    drop(answer);
    until("the refusal", || !gateway.events.refusals().is_empty()).await;
    let (_, _, detail) = gateway.events.refusals().pop().unwrap();
    assert_eq!(detail, "allowed.test did not begin to answer within 1200 s");
}

#[tokio::test]
async fn an_event_of_a_stream_passes_while_the_next_is_not_there() {
    for alpn in [&["http/1.1"][..], &["h2"]] {
        let (gateway, _origin) = gateway(alpn).await;
        let mut sender = gateway.http2(AUTHORITY).await;
        let mut request = request2("GET", NAME, "/reflect?event", empty());
        request
            .headers_mut()
            .insert("x-api-key", "ab".parse().unwrap());
        let answer = soon("an answer", sender.send_request(request))
            .await
            .unwrap();
        let mut body = answer.into_body();
        let frame = soon("the event", body.frame()).await.unwrap().unwrap();
        assert_eq!(&frame.into_data().unwrap()[..], b"data: tick a\n\nab");
    }
}

#[tokio::test]
async fn the_trailers_of_an_answer_arrive() {
    for alpn in [&["http/1.1"][..], &["h2"]] {
        let (gateway, _origin) = gateway(alpn).await;
        let mut sender = gateway.http2(AUTHORITY).await;
        for _ in 0..2 {
            let mut request = request2("GET", NAME, "/reflect?trailer", empty());
            for (name, value) in [("te", "trailers"), ("x-api-key", "sum")] {
                request.headers_mut().insert(name, value.parse().unwrap());
            }
            let answer = soon("an answer", sender.send_request(request)).await;
            let body = soon("the end", answer.unwrap().into_body().collect()).await;
            let body = body.unwrap();
            assert_eq!(body.trailers().unwrap()["x-end"], "sum");
            assert_eq!(&body.to_bytes()[..], b"[sum]");
        }
    }
}
