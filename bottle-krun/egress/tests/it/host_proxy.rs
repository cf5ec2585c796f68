//! A proxy of the host's is the only way out where it is configured.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use bottle_core::policy::{Policy, WrittenMode, WrittenRule};
use bottle_egress::{HostProxy, HostSide};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::origin::Origin;
use crate::support::{Gateway, TestCa, empty, http1_on, request, rule, send1, tls_trusting};

const NAME: &str = "far.test";

/// A proxy that connects everything to one place; keeps the heads it was sent.
async fn proxy(to: SocketAddr, answer: &'static str) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&heads);
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let kept = Arc::clone(&kept);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(tcp.read_u8().await.unwrap());
                }
                kept.lock().unwrap().push(String::from_utf8(head).unwrap());
                tcp.write_all(answer.as_bytes()).await.unwrap();
                if answer.contains(" 200 ") {
                    let mut far = TcpStream::connect(to).await.unwrap();
                    let _ = copy_bidirectional(&mut tcp, &mut far).await;
                }
            });
        }
    });
    (address, heads)
}

fn gateway(ca: &TestCa, rules: Vec<WrittenRule>, proxy: &str, no_proxy: &str) -> Gateway {
    let policy = Policy::new(rules.into_iter().map(|rule| rule.try_into().unwrap()));
    let host = HostSide {
        proxy: Some(HostProxy::parse(proxy, no_proxy).unwrap()),
        ..HostSide::default()
    };
    Gateway::with_host(ca, policy, &[], Vec::new(), host)
}

const OK: &str = "HTTP/1.1 200 Connection established\r\nx: y\r\n\r\n";

#[tokio::test]
async fn a_name_goes_to_the_proxy_as_a_name_and_its_upstream_is_verified_all_the_same() {
    let ca = TestCa::new();
    let origin = Origin::tls(&ca, NAME, &["h2", "http/1.1"]).await;
    let (address, heads) = proxy(origin.address, OK).await;
    let splice = WrittenRule {
        mode: Some(WrittenMode::Splice),
        ports: vec![8443],
        ..rule(NAME)
    };
    let rules = vec![rule(NAME), rule("other.test"), splice];
    let gateway = gateway(&ca, rules, &format!("http://me:pass@{address}"), "");
    let mut sender = gateway.http1("far.test:443").await;
    let answer = send1(&mut sender, request("GET", NAME, "/", empty())).await;
    assert_eq!(answer.status, 200);
    let head = heads.lock().unwrap()[0].clone();
    assert_eq!(
        head,
        "CONNECT far.test:443 HTTP/1.1\r\nHost: far.test:443\r\nProxy-Authorization: Basic bWU6cGFzcw==\r\n\r\n"
    );
    // Uninspected flows too.
    let stream = gateway.tunnel("far.test:8443").await.unwrap();
    let stream = tls_trusting(&ca.pem, stream, NAME, &["http/1.1"])
        .await
        .unwrap();
    let answer = send1(
        &mut http1_on(stream).await,
        request("GET", NAME, "/", empty()),
    )
    .await;
    assert_eq!(answer.status, 200);
    // The proxy leads to a host that is not the one.
    let mut sender = gateway.http1("other.test:443").await;
    let answer = send1(&mut sender, request("GET", "other.test", "/", empty())).await;
    assert_eq!(answer.problem("reason"), "upstream-unreachable");
    assert_eq!(origin.log.requests().len(), 2);
    // Its password is in no event.
    let all = serde_json::to_string(&gateway.events.all()).unwrap();
    assert!(!all.contains("pass@") && !all.contains("bWU6"), "{all}");
}

#[tokio::test]
async fn a_proxy_that_fails_is_not_gone_around() {
    let ca = TestCa::new();
    let origin = Origin::tls(&ca, "localhost", &["http/1.1"]).await;
    let port = origin.address.port();
    let near = WrittenRule {
        ports: vec![port],
        private: true,
        ..rule("localhost")
    };
    let host = format!("localhost:{port}");
    for (answer, why) in [
        (
            "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
            "answered with status 407",
        ),
        ("HTTP/1.1 503 x\r\n\r\n", "answered with status 503"),
        ("SSH-2.0-x\r\n\r\n", "does not speak HTTP"),
        ("", ""),
    ] {
        let (address, _) = proxy(origin.address, answer).await;
        let gateway = gateway(&ca, vec![near.clone()], &address.to_string(), "");
        let mut sender = gateway.http1(&host).await;
        let answer = send1(&mut sender, request("GET", &host, "/", empty())).await;
        assert_eq!(
            (answer.status, answer.problem("reason").as_str()),
            (502, "upstream-unreachable")
        );
        let detail = answer.problem("detail");
        assert!(detail.contains(why), "{detail}");
    }
    assert_eq!(origin.log.connections(), 0);
    // The same name where it is excepted.
    let (address, heads) = proxy(origin.address, "").await;
    let gateway = gateway(&ca, vec![near], &address.to_string(), "localhost");
    let mut sender = gateway.http1(&host).await;
    let answer = send1(&mut sender, request("GET", &host, "/", empty())).await;
    assert_eq!(answer.status, 200);
    assert!(heads.lock().unwrap().is_empty());
}
