//! Servers on the host's loopback that count what reaches them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use anyhow::Result;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::token::hex;

/// How much `/stall` reads before it stops reading for good.
pub const STALL_AFTER: u64 = 1 << 20;

/// What the certificate authority of the servers is called; no guest may ever see it.
pub const CA_NAME: &str = "Upstream Test CA";

/// An HTTPS server (HTTP/1.1 and HTTP/2) that remembers every request.
///
/// * `/echo` answers what it got: method, version, headers, length and SHA-256 of the body
/// * `/big?bytes=N` answers N bytes
/// * `/stall` reads [`STALL_AFTER`] bytes of the body and then neither reads nor answers
/// * everything else answers a line of text
#[derive(Debug)]
pub struct Upstream {
    /// Where it listens.
    pub address: SocketAddr,
    /// The root that its certificate chains to, PEM.
    pub ca_pem: String,
    state: Arc<State>,
}

/// A request that reached the server.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// `Host` or `:authority`.
    pub authority: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: String,
}

#[derive(Debug, Default)]
struct State {
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    stalled: AtomicU64,
}

impl Upstream {
    /// Starts a server whose certificate is good for these names.
    ///
    /// # Errors
    ///
    /// What sockets and certificates say.
    pub async fn start(names: &[&str]) -> Result<Self> {
        let (ca_pem, config) = certificate(names)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                shared.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, acceptor.clone(), Arc::clone(&shared)));
            }
        });
        Ok(Self {
            address,
            ca_pem,
            state,
        })
    }

    /// Returns the requests whose path and query contain `part`.
    pub fn seen(&self, part: &str) -> Vec<Seen> {
        let seen = self
            .state
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        seen.iter()
            .filter(|seen| seen.target.contains(part))
            .cloned()
            .collect()
    }

    /// Returns how many connections were accepted.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Returns how much all requests to `/stall` have sent together.
    pub fn stalled(&self) -> u64 {
        self.state.stalled.load(Ordering::SeqCst)
    }
}

/// A listener that takes connections, says nothing, and counts.
#[derive(Debug)]
pub struct Tripwire {
    /// Where it listens.
    pub address: SocketAddr,
    count: Arc<AtomicUsize>,
}

impl Tripwire {
    /// Listens on a free port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// What the socket says.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                kept.push(stream);
            }
        });
        Ok(Self { address, count })
    }

    /// Returns how many connections it has seen.
    pub fn connections(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

/// Makes a root of this server's own and a leaf for the names.
fn certificate(names: &[&str]) -> Result<(String, ServerConfig)> {
    let mut root = CertificateParams::new(Vec::<String>::new())?;
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    root.distinguished_name.push(DnType::CommonName, CA_NAME);
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate()?)?;
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let key = KeyPair::generate()?;
    let mut leaf = CertificateParams::new(names)?;
    leaf.distinguished_name
        .push(DnType::CommonName, "upstream leaf");
    let leaf = leaf.signed_by(&key, &root)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok((root.pem(), config))
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, state: Arc<State>) {
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(answer(request, &state).await) }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    // A client that goes away is its own affair.
    let _ = builder
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

async fn answer(request: Request<Incoming>, state: &State) -> Answer {
    let (head, body) = request.into_parts();
    let target = head
        .uri
        .path_and_query()
        .map_or("/", |target| target.as_str())
        .to_owned();
    let host = head
        .headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let authority = head
        .uri
        .authority()
        .map(|name| name.as_str())
        .or(host)
        .unwrap_or_default();
    let seen = Seen {
        method: head.method.to_string(),
        target: target.clone(),
        authority: authority.to_owned(),
        version: format!("{:?}", head.version),
    };
    state
        .seen
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(seen.clone());
    match head.uri.path() {
        path if path.starts_with("/echo") => {
            let (bytes, sha256) = digest(body).await;
            let headers: BTreeMap<_, _> = head
                .headers
                .iter()
                .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes())))
                .collect();
            text(
                json!({
                    "method": seen.method, "target": seen.target, "version": seen.version,
                    "authority": seen.authority, "headers": headers,
                    "bytes": bytes, "sha256": sha256,
                })
                .to_string(),
            )
        }
        path if path.starts_with("/big") => {
            let bytes = head
                .uri
                .query()
                .and_then(|query| query.strip_prefix("bytes="));
            let left = bytes.and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
            Response::new(Pattern { left }.boxed())
        }
        path if path.starts_with("/stall") => {
            stall(body, state).await;
            text(String::new())
        }
        _ => text("hello from the upstream\n".to_owned()),
    }
}

fn text(text: String) -> Answer {
    Response::new(Full::new(Bytes::from(text)).boxed())
}

async fn digest(mut body: Incoming) -> (u64, String) {
    let mut hash = Sha256::new();
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(data) = frame.data_ref() {
            bytes += data.len() as u64;
            hash.update(data);
        }
    }
    (bytes, hex(&hash.finalize()))
}

/// Reads the beginning of the body and then holds it, unread, for ever.
async fn stall(mut body: Incoming, state: &State) {
    let mut bytes = 0;
    while bytes < STALL_AFTER {
        match body.frame().await {
            Some(Ok(frame)) => {
                let more = frame.data_ref().map_or(0, |data| data.len() as u64);
                bytes += more;
                state.stalled.fetch_add(more, Ordering::SeqCst);
            }
            Some(Err(_)) | None => return,
        }
    }
    pending::<()>().await;
    drop(body);
}

/// A body of so many bytes, in pieces of 64 KiB.
#[derive(Debug)]
struct Pattern {
    left: u64,
}

impl Body for Pattern {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        static PIECE: [u8; 1 << 16] = [b'.'; 1 << 16];
        let piece = self.left.min(PIECE.len() as u64);
        self.left -= piece;
        let bytes = usize::try_from(piece).unwrap_or(PIECE.len());
        Poll::Ready((bytes > 0).then(|| Ok(Frame::data(Bytes::from_static(&PIECE[..bytes])))))
    }
}
