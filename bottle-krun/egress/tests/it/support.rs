//! A CA of the test's own, a guest's side of the gateway, and the events in between.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bottle_core::event::{EventSink, Happening};
use bottle_core::policy::{Policy, Reason, WrittenRule};
use bottle_core::secret::Secret;
use bottle_core::spec::Resolve;
use bottle_egress::{Egress, EgressConfig, GATEWAY, HostSide, PROXY_PORT};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Fails a test that waits for what does not come.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), future)
        .await
        .unwrap_or_else(|_| panic!("{what} did not happen within 30 s"))
}

/// Waits until a condition holds.
pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    soon(what, async {
        while !holds() {
            sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A GitHub token with a right checksum, made at run time so that none stands in the tree.
pub(crate) fn github_token() -> String {
    let random = "0123456789abcdefghijklmnopqrst";
    let mut crc = u32::MAX;
    for byte in random.bytes() {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0xedb8_8320
            } else {
                crc >> 1
            };
        }
    }
    let mut crc = !crc;
    let digits = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut sum = [b'0'; 6];
    for place in sum.iter_mut().rev() {
        *place = digits[(crc % 62) as usize];
        crc /= 62;
    }
    format!(
        "{}{random}{}",
        ["gh", "p_"].concat(),
        String::from_utf8_lossy(&sum)
    )
}

/// A rule with nothing but a host.
pub(crate) fn rule(host: &str) -> WrittenRule {
    WrittenRule {
        host: host.to_owned(),
        ..WrittenRule::default()
    }
}

/// Collects events.
#[derive(Debug, Default)]
pub(crate) struct Events(Mutex<Vec<Happening>>);

impl EventSink for Events {
    fn record(&self, what: Happening) {
        self.0.lock().unwrap().push(what);
    }
}

impl Events {
    pub(crate) fn all(&self) -> Vec<Happening> {
        self.0.lock().unwrap().clone()
    }

    /// Returns reason, host and detail of every refusal.
    pub(crate) fn refusals(&self) -> Vec<(Reason, String, String)> {
        self.all()
            .into_iter()
            .filter_map(|event| match event {
                Happening::Refused {
                    reason,
                    host,
                    detail,
                    ..
                } => Some((reason, host, detail)),
                Happening::Stage { .. } | _ => None,
            })
            .collect()
    }

    /// Returns host, path and status of every permission.
    pub(crate) fn allowed(&self) -> Vec<(String, Option<String>, Option<u16>)> {
        self.all()
            .into_iter()
            .filter_map(|event| match event {
                Happening::Allowed {
                    host, path, status, ..
                } => Some((host, path, status)),
                Happening::Stage { .. } | _ => None,
            })
            .collect()
    }
}

/// The CA of the test's own servers.
pub(crate) struct TestCa {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

impl TestCa {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "test origin CA");
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    pub(crate) fn server_config(&self, name: &str, alpn: &[&str]) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![name.to_owned()])
            .unwrap()
            .signed_by(&key, &self.issuer)
            .unwrap()
            .der()
            .clone();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf], key)
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

pub(crate) fn text(text: &str) -> Body {
    Full::new(Bytes::copy_from_slice(text.as_bytes())).boxed_unsync()
}

pub(crate) fn empty() -> Body {
    Empty::new().boxed_unsync()
}

/// A body of these chunks, its length not said beforehand.
pub(crate) fn chunks<S: Into<Bytes>>(chunks: impl IntoIterator<Item = S>) -> Body {
    let frames: Vec<_> = chunks
        .into_iter()
        .map(|chunk| Ok(Frame::data(chunk.into())))
        .collect();
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}

/// The gateway of one bottle.
pub(crate) struct Gateway {
    pub(crate) egress: Egress,
    pub(crate) events: Arc<Events>,
}

impl Gateway {
    /// `allow` as the flag; `resolve` as name, port and where to dial.
    pub(crate) fn new(ca: &TestCa, allow: &[&str], resolve: &[(&str, u16, SocketAddr)]) -> Self {
        Self::with_secrets(ca, allow, resolve, Vec::new())
    }

    pub(crate) fn with_secrets(
        ca: &TestCa,
        allow: &[&str],
        resolve: &[(&str, u16, SocketAddr)],
        known_values: Vec<Secret>,
    ) -> Self {
        let rules = allow.iter().map(|rule| rule.parse().unwrap());
        Self::made(ca, Policy::new(rules), resolve, known_values)
    }

    /// With whole rules.
    pub(crate) fn with_rules(
        ca: &TestCa,
        rules: impl IntoIterator<Item = WrittenRule>,
        resolve: &[(&str, u16, SocketAddr)],
    ) -> Self {
        let rules = rules.into_iter().map(|rule| rule.try_into().unwrap());
        Self::made(ca, Policy::new(rules), resolve, Vec::new())
    }

    fn made(
        ca: &TestCa,
        policy: Policy,
        resolve: &[(&str, u16, SocketAddr)],
        known_values: Vec<Secret>,
    ) -> Self {
        Self::with_host(ca, policy, resolve, known_values, HostSide::default())
    }

    pub(crate) fn with_host(
        ca: &TestCa,
        policy: Policy,
        resolve: &[(&str, u16, SocketAddr)],
        known_values: Vec<Secret>,
        host: HostSide,
    ) -> Self {
        let events = Arc::new(Events::default());
        let config = EgressConfig {
            bottle: "web".to_owned(),
            policy,
            resolve: resolve
                .iter()
                .map(|(host, port, address)| Resolve {
                    host: host.parse().unwrap(),
                    port: *port,
                    address: address.ip(),
                    dial_port: address.port(),
                })
                .collect(),
            upstream_roots: vec![ca.pem.clone()],
            known_values,
            events: Arc::<Events>::clone(&events),
        };
        let egress = Egress::with_host(config, host).unwrap();
        Self { egress, events }
    }

    /// Opens a captured connection to a destination.
    pub(crate) fn open(&self, destination: SocketAddr) -> DuplexStream {
        let (guest, ours) = duplex(64 << 10);
        let egress = self.egress.clone();
        tokio::spawn(async move { egress.serve(destination, ours).await });
        guest
    }

    /// Opens a connection to the explicit proxy.
    pub(crate) fn proxy(&self) -> DuplexStream {
        self.open(SocketAddr::new(GATEWAY, PROXY_PORT))
    }

    /// Opens a tunnel through the explicit proxy; the head of a refusal is the error.
    pub(crate) async fn tunnel(&self, authority: &str) -> Result<DuplexStream, String> {
        self.tunnel_with_host(authority, authority).await
    }

    /// The same, with a `Host` of the test's choice.
    pub(crate) async fn tunnel_with_host(
        &self,
        authority: &str,
        host: &str,
    ) -> Result<DuplexStream, String> {
        let mut stream = self.proxy();
        let head = format!("CONNECT {authority} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(
                soon("an answer to CONNECT", stream.read_u8())
                    .await
                    .unwrap(),
            );
        }
        if answer.starts_with(b"HTTP/1.1 200") {
            Ok(stream)
        } else {
            Err(String::from_utf8_lossy(&answer).into_owned())
        }
    }

    /// Asks the DNS filter for a name's address, as the guest's stub does.
    pub(crate) fn address_of(&self, name: &str) -> IpAddr {
        let mut query = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(u8::try_from(label.len()).unwrap());
            query.extend(label.as_bytes());
        }
        query.extend([0, 0, 1, 0, 1]);
        let answer = self.egress.answer(&query).unwrap();
        assert!(answer.len() > query.len(), "no address for {name}");
        let last = answer.last_chunk::<4>().unwrap();
        IpAddr::V4(Ipv4Addr::from(*last))
    }

    /// Opens a TLS connection through the proxy, under the name in `authority`.
    pub(crate) async fn https(&self, authority: &str, alpn: &[&str]) -> TlsStream<DuplexStream> {
        let name = authority.split(':').next().unwrap().to_owned();
        let stream = self.tunnel(authority).await.unwrap();
        self.tls(stream, &name, alpn).await.unwrap()
    }

    /// Does the guest's side of TLS, trusting the bottle's CA alone.
    pub(crate) async fn tls(
        &self,
        stream: DuplexStream,
        sni: &str,
        alpn: &[&str],
    ) -> io::Result<TlsStream<DuplexStream>> {
        tls_trusting(&self.egress.ca_pem(), stream, sni, alpn).await
    }

    /// Opens HTTP/1.1 inside TLS through the proxy.
    pub(crate) async fn http1(&self, authority: &str) -> http1::SendRequest<Body> {
        http1_on(self.https(authority, &["http/1.1"]).await).await
    }

    /// Opens HTTP/2 inside TLS through the proxy.
    pub(crate) async fn http2(&self, authority: &str) -> http2::SendRequest<Body> {
        let stream = self.https(authority, &["h2"]).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        sender
    }
}

/// Does a client's side of TLS, trusting this certificate alone.
pub(crate) async fn tls_trusting(
    pem: &str,
    stream: DuplexStream,
    sni: &str,
    alpn: &[&str],
) -> io::Result<TlsStream<DuplexStream>> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap())
        .unwrap();
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(sni.to_owned()).unwrap();
    soon(
        "the TLS handshake",
        TlsConnector::from(Arc::new(config)).connect(name, stream),
    )
    .await
}

/// Speaks HTTP/1.1 on a stream.
pub(crate) async fn http1_on<S>(stream: S) -> http1::SendRequest<Body>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// A request as an HTTP/1.1 client writes it.
pub(crate) fn request(method: &str, host: &str, target: &str, body: Body) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(target)
        .header("host", host)
        .body(body)
        .unwrap()
}

/// A request as an HTTP/2 client writes it.
pub(crate) fn request2(method: &str, host: &str, target: &str, body: Body) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(format!("https://{host}{target}"))
        .body(body)
        .unwrap()
}

/// Status, headers and body of an answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// Returns a field of an explained refusal.
    pub(crate) fn problem(&self, field: &str) -> String {
        let problem: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_else(|_| {
            panic!(
                "{} is no explained refusal: {}",
                self.status,
                String::from_utf8_lossy(&self.body)
            )
        });
        problem[field].as_str().unwrap_or_default().to_owned()
    }

    #[track_caller]
    pub(crate) fn assert_refused(&self, reason: &str, detail: &str) {
        assert_eq!(self.status, 403, "{}", String::from_utf8_lossy(&self.body));
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert_eq!(self.problem("reason"), reason);
        assert_eq!(self.problem("detail"), detail);
        assert_eq!(self.problem("event").len(), 8);
    }
}

/// Sends on HTTP/1.1 and reads the whole answer.
pub(crate) async fn send1(sender: &mut http1::SendRequest<Body>, request: Request<Body>) -> Answer {
    soon("readiness for a request", sender.ready())
        .await
        .unwrap();
    read(
        soon("an answer", sender.send_request(request))
            .await
            .unwrap(),
    )
    .await
}

/// Sends on HTTP/2 and reads the whole answer.
pub(crate) async fn send2(sender: &mut http2::SendRequest<Body>, request: Request<Body>) -> Answer {
    soon("readiness for a request", sender.ready())
        .await
        .unwrap();
    read(
        soon("an answer", sender.send_request(request))
            .await
            .unwrap(),
    )
    .await
}

pub(crate) async fn read(answer: Response<Incoming>) -> Answer {
    let (parts, body) = answer.into_parts();
    let body = soon("the answer's end", body.collect()).await.unwrap();
    Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: body.to_bytes(),
    }
}

/// A body whose length is known from its start.
pub(crate) fn sized(parts: &[Bytes]) -> Body {
    Full::new(Bytes::from(parts.concat())).boxed_unsync()
}
