//! What may pass does, in every combination of protocols.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::origin::Origin;
use crate::support::{Gateway, TestCa, empty, http1_on, request, request2, send1, send2, text};

const NAME: &str = "allowed.test";
const AUTHORITY: &str = "allowed.test:443";

async fn gateway(alpn: &[&str]) -> (Gateway, Origin) {
    let ca = TestCa::new();
    let origin = Origin::tls(&ca, NAME, alpn).await;
    let gateway = Gateway::new(&ca, &[NAME], &[(NAME, 443, origin.address)]);
    (gateway, origin)
}

#[tokio::test]
async fn every_pair_of_protocols_is_translated() {
    for upstream in [&["http/1.1"][..], &["h2"], &["h2", "http/1.1"], &[]] {
        let (gateway, origin) = gateway(upstream).await;
        let mut old = gateway.http1(AUTHORITY).await;
        let answer = send1(&mut old, request("GET", NAME, "/a?b=c", empty())).await;
        assert_eq!((answer.status, &answer.body[..]), (200, &b"hello"[..]));
        let answer = send1(&mut old, request("POST", NAME, "/p", text("data"))).await;
        assert_eq!(answer.status, 200);
        let mut new = gateway.http2(AUTHORITY).await;
        let answer = send2(&mut new, request2("GET", NAME, "/a?b=c", empty())).await;
        assert_eq!((answer.status, &answer.body[..]), (200, &b"hello"[..]));
        assert_eq!(answer.headers["x-origin"], "yes");
        assert!(!answer.headers.contains_key("alt-svc"));
        let answer = send2(&mut new, request2("POST", NAME, "/p", text("data"))).await;
        assert_eq!(answer.status, 200);
        let lines: Vec<_> = origin.log.requests().into_iter().map(|r| r.line).collect();
        assert_eq!(lines, ["GET /a?b=c", "POST /p", "GET /a?b=c", "POST /p"]);
        assert_eq!(&origin.log.requests()[3].body[..], b"data");
        let path = |path: &str| (NAME.to_owned(), Some(path.to_owned()), Some(200));
        assert_eq!(
            gateway.events.allowed(),
            [path("/a"), path("/p"), path("/a"), path("/p")]
        );
        assert_eq!(gateway.events.refusals(), []);
    }
}

#[tokio::test]
async fn a_captured_connection_is_its_synthetic_name() {
    let (gateway, origin) = gateway(&["h2"]).await;
    let address = gateway.address_of(NAME);
    let stream = gateway.open((address, 443).into());
    let stream = gateway.tls(stream, NAME, &[]).await.unwrap();
    let mut sender = http1_on(stream).await;
    let answer = send1(&mut sender, request("GET", NAME, "/", empty())).await;
    assert_eq!(answer.status, 200);
    assert_eq!(origin.log.connections(), 1);
}

#[tokio::test]
async fn each_bottle_has_an_issuer_of_its_own() {
    let (one, _origin) = gateway(&["h2"]).await;
    let (two, _origin2) = gateway(&["h2"]).await;
    assert_ne!(one.egress.ca_pem(), two.egress.ca_pem());
    let stream = one.https(AUTHORITY, &[]).await;
    let chain = stream.get_ref().1.peer_certificates().unwrap().to_vec();
    let ca = CertificateDer::from_pem_slice(one.egress.ca_pem().as_bytes()).unwrap();
    // The distinguished name holds the bottle's.
    for certificate in [&chain[0], &ca] {
        let needle = b"bottle web egress CA";
        assert!(certificate.windows(needle.len()).any(|w| w == needle));
    }
    // A guest of one bottle does not trust the other's CA.
    let stream = two.tunnel(AUTHORITY).await.unwrap();
    one.tls(stream, NAME, &[]).await.unwrap_err();
}

#[tokio::test]
async fn names_are_compared_in_one_form() {
    let (gateway, _origin) = gateway(&["http/1.1"]).await;
    let stream = gateway.tunnel("ALLOWED.test.:443").await.unwrap();
    let stream = gateway.tls(stream, "Allowed.TEST", &[]).await.unwrap();
    let mut sender = http1_on(stream).await;
    let host = "aLLowed.test.:443";
    let answer = send1(&mut sender, request("GET", host, "/", empty())).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn hop_by_hop_headers_stay_behind() {
    let (gateway, origin) = gateway(&["http/1.1"]).await;
    let mut sender = gateway.http1(AUTHORITY).await;
    let mut request = request("POST", NAME, "/", text("x"));
    for (name, value) in [
        ("connection", "x-private, keep-alive"),
        ("x-private", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-authorization", "Basic eDp5"),
        ("te", "trailers"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABkAAQAAP__"),
        ("x-kept", "1"),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    assert_eq!(send1(&mut sender, request).await.status, 200);
    let arrived = &origin.log.requests()[0].headers;
    let mut names: Vec<_> = arrived.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-length", "host", "x-kept"]);
}

#[tokio::test]
async fn plain_http_passes_on_port_80_only_where_it_is_named() {
    let ca = TestCa::new();
    let origin = Origin::plain().await;
    let gateway = Gateway::new(
        &ca,
        &["plain.test:80"],
        &[("plain.test", 80, origin.address)],
    );
    let mut sender = http1_on(gateway.tunnel("plain.test:80").await.unwrap()).await;
    let answer = send1(&mut sender, request("GET", "plain.test", "/t", empty())).await;
    assert_eq!(answer.status, 200);
    // The same in absolute form, twice on one connection.
    let mut sender = http1_on(gateway.proxy()).await;
    for _ in 0..2 {
        let target = "http://plain.test/p";
        let answer = send1(&mut sender, request("GET", "plain.test", target, empty())).await;
        assert_eq!(answer.status, 200);
    }
    let lines: Vec<_> = origin.log.requests().into_iter().map(|r| r.line).collect();
    assert_eq!(lines, ["GET /t", "GET /p", "GET /p"]);
}

#[test]
fn the_policys_the_proxys_and_the_tripwires_are_the_ports() {
    let gateway = Gateway::new(&TestCa::new(), &["a.test:9000"], &[]);
    let ports = gateway.egress.ports();
    for port in [22, 25, 80, 443, 3128, 8080, 9000] {
        assert!(ports.contains(&port), "{port}");
    }
    assert!(!ports.contains(&53), "DNS is the filter's");
    assert!(ports.is_sorted());
}
