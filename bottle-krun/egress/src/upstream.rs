//! The way out: a name is resolved here, its addresses are checked, the checked one is dialled.
//!
//! An [`Upstream`] belongs to one guest connection, so a stalled one holds nobody else back.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bottle_core::policy::{HostName, Reason};
use bottle_core::spec::Resolve;
use bytes::Bytes;
use http::header::{COOKIE, HOST, HeaderValue, TE};
use http::{Request, Response, Uri, Version, uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::address;
use crate::body::{Body, BodyError};
use crate::denial::Refusal;
use crate::request::Scheme;
use crate::sniff::Duplex;

/// Opens connections to names.
#[derive(Debug)]
pub(crate) struct Dialer {
    pub(crate) resolve: Vec<Resolve>,
    pub(crate) tls: Arc<ClientConfig>,
}

/// A connection to an upstream, its protocol known.
struct Dialled {
    address: IpAddr,
    sender: Sender,
}

enum Sender {
    Http1(http1::SendRequest<Body>),
    /// With its lane, if it was asked for a stream.
    Http2(http2::SendRequest<Body>, Option<Lane>),
}

impl Dialer {
    /// Returns the addresses that may be dialled for a name and port.
    ///
    /// # Security
    ///
    /// An address that was named on the host's side passes unchecked, for that name and port only.
    async fn addresses(&self, name: &HostName, port: u16) -> Result<Vec<SocketAddr>, DialError> {
        let named: Vec<_> = self
            .resolve
            .iter()
            .filter(|entry| entry.host == *name && entry.port == port)
            .map(|entry| SocketAddr::new(entry.address, entry.dial_port))
            .collect();
        if !named.is_empty() {
            return Ok(named);
        }
        let found = timeout(RESOLVE_TIMEOUT, lookup_host((name.as_str(), port)))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| DialError::NotResolved {
                name: name.clone(),
                source,
            })?;
        check(name, found)
    }

    async fn dial(&self, name: &HostName, port: u16, scheme: Scheme) -> Result<Dialled, DialError> {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for target in self.addresses(name, port).await? {
            match timeout(CONNECT_TIMEOUT, TcpStream::connect(target)).await {
                Ok(Ok(tcp)) => {
                    let _ = tcp.set_nodelay(true);
                    return self.speak(name, tcp, target.ip(), scheme).await;
                }
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(DialError::NotConnected {
            name: name.clone(),
            port,
            source: last,
        })
    }

    async fn speak(
        &self,
        name: &HostName,
        tcp: TcpStream,
        address: IpAddr,
        scheme: Scheme,
    ) -> Result<Dialled, DialError> {
        let (stream, is_h2): (Box<dyn Duplex>, bool) = match scheme {
            Scheme::Http => (Box::new(tcp), false),
            Scheme::Https => {
                let failed = |source| DialError::Tls {
                    name: name.clone(),
                    source,
                };
                let server = ServerName::try_from(name.as_str().to_owned())
                    .map_err(|error| failed(io::Error::other(error)))?;
                let connector = TlsConnector::from(Arc::clone(&self.tls));
                let stream = timeout(TLS_TIMEOUT, connector.connect(server, tcp))
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                    .map_err(failed)?;
                let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                (Box::new(stream), is_h2)
            }
        };
        let io = TokioIo::new(stream);
        let failed = |source| DialError::Http {
            name: name.clone(),
            source,
        };
        let sender = if is_h2 {
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_frame_size(FRAME_SIZE)
                .max_send_buf_size(SEND_BUFFER)
                .max_header_list_size(MAX_ANSWER_HEADERS)
                .keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE)
                .handshake(io)
                .await
                .map_err(failed)?;
            tokio::spawn(connection);
            Sender::Http2(sender, None)
        } else {
            let (sender, connection) = http1::Builder::new()
                .max_headers(MAX_ANSWER_HEADER_COUNT)
                .max_buf_size(MAX_ANSWER_BUFFER)
                .handshake(io)
                .await
                .map_err(failed)?;
            tokio::spawn(connection);
            Sender::Http1(sender)
        };
        Ok(Dialled { address, sender })
    }
}

/// Keeps the addresses that may be dialled.
fn check(
    name: &HostName,
    found: impl IntoIterator<Item = SocketAddr>,
) -> Result<Vec<SocketAddr>, DialError> {
    let mut refused = None;
    let mut allowed = Vec::new();
    for target in found {
        match address::forbidden(target.ip()) {
            None => allowed.push(target),
            Some(why) => refused = Some((target.ip(), why)),
        }
    }
    match refused {
        _ if !allowed.is_empty() => {
            allowed.truncate(MAX_ADDRESSES);
            Ok(allowed)
        }
        Some((address, why)) => Err(DialError::Forbidden {
            name: name.clone(),
            address,
            why,
        }),
        None => Err(DialError::NotResolved {
            name: name.clone(),
            source: io::ErrorKind::NotFound.into(),
        }),
    }
}

/// The connections that one guest connection has to one host and port.
pub(crate) struct Upstream {
    dialer: Arc<Dialer>,
    name: HostName,
    port: u16,
    scheme: Scheme,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    http2: Vec<Shared2>,
    http1: Vec<(IpAddr, http1::SendRequest<Body>)>,
    /// The upstream chose HTTP/1.1 before: dial without waiting for each other.
    is_http1: bool,
}

/// An HTTP/2 connection that several requests may share.
struct Shared2 {
    address: IpAddr,
    sender: http2::SendRequest<Body>,
    lane: Lane,
}

impl Shared2 {
    fn lend(&self, is_stream: bool) -> Sender {
        let lane = is_stream.then(|| Arc::clone(&self.lane));
        Sender::Http2(self.sender.clone(), lane)
    }
}

/// Held by a connection and by whoever streams a long body on it. A stalled body can use up the
/// window of its whole connection, so nothing else is sent there meanwhile.
type Lane = Arc<()>;

impl Upstream {
    pub(crate) fn new(dialer: Arc<Dialer>, name: HostName, port: u16, scheme: Scheme) -> Self {
        Self {
            dialer,
            name,
            port,
            scheme,
            open: Mutex::default(),
        }
    }

    /// Sends one request and returns the address it went to and the head of its answer.
    ///
    /// A connection that turns out to be closed before anything was written is replaced.
    pub(crate) async fn send(
        &self,
        mut request: Request<Body>,
        is_stream: bool,
    ) -> Result<(IpAddr, Response<Incoming>), DialError> {
        for _ in 0..MAX_STALE {
            let Dialled { address, sender } = self.connection(is_stream).await?;
            match self.send_on(address, sender, request).await? {
                Sent::Answer(answer) => return Ok((address, answer)),
                Sent::Stale(back) => request = back,
            }
        }
        Err(DialError::Stale {
            name: self.name.clone(),
        })
    }

    async fn connection(&self, is_stream: bool) -> Result<Dialled, DialError> {
        let mut open = self.open.lock().await;
        open.http1.retain(|(_, sender)| !sender.is_closed());
        open.http2.retain(|shared| !shared.sender.is_closed());
        let is_free = |shared: &&Shared2| Arc::strong_count(&shared.lane) == 1;
        if let Some(shared) = open.http2.iter().find(is_free) {
            return Ok(Dialled {
                address: shared.address,
                sender: shared.lend(is_stream),
            });
        }
        if let Some(at) = open.http1.iter().position(|(_, sender)| sender.is_ready()) {
            let (address, sender) = open.http1.swap_remove(at);
            return Ok(Dialled {
                address,
                sender: Sender::Http1(sender),
            });
        }
        if open.is_http1 {
            drop(open);
            return self.dialer.dial(&self.name, self.port, self.scheme).await;
        }
        let mut dialled = self.dialer.dial(&self.name, self.port, self.scheme).await?;
        match &mut dialled.sender {
            Sender::Http1(_) => open.is_http1 = true,
            Sender::Http2(sender, _) => {
                let shared = Shared2 {
                    address: dialled.address,
                    sender: sender.clone(),
                    lane: Lane::default(),
                };
                dialled.sender = shared.lend(is_stream);
                open.http2.push(shared);
            }
        }
        Ok(dialled)
    }

    async fn send_on(
        &self,
        address: IpAddr,
        sender: Sender,
        request: Request<Body>,
    ) -> Result<Sent, DialError> {
        let sent = match sender {
            Sender::Http1(mut sender) => {
                if sender.ready().await.is_err() {
                    return Ok(Sent::Stale(request));
                }
                let sent = sender.try_send_request(self.for_http1(request)).await;
                if sent.is_ok() {
                    self.open.lock().await.http1.push((address, sender));
                }
                sent
            }
            Sender::Http2(mut sender, lane) => {
                if sender.ready().await.is_err() {
                    return Ok(Sent::Stale(request));
                }
                let mut request = self.for_http2(request);
                if let Some(lane) = &lane {
                    request = request.map(|body| on_lane(body, Arc::clone(lane)));
                }
                // The lane is kept until the whole body is out and the answer begins.
                let sent = sender.try_send_request(request).await;
                drop(lane);
                sent
            }
        };
        match sent {
            Ok(answer) => Ok(Sent::Answer(answer)),
            Err(mut error) => match error.take_message() {
                Some(request) => Ok(Sent::Stale(request)),
                None => Err(DialError::Http {
                    name: self.name.clone(),
                    source: error.into_error(),
                }),
            },
        }
    }

    /// HTTP/1.1: the target is a path, the host a header, cookies are one header.
    fn for_http1(&self, mut request: Request<Body>) -> Request<Body> {
        *request.version_mut() = Version::HTTP_11;
        if let Some(target) = request.uri().path_and_query()
            && let Ok(uri) = target.as_str().parse()
        {
            *request.uri_mut() = uri;
        }
        let headers = request.headers_mut();
        headers.remove(TE);
        if let Ok(host) = HeaderValue::from_str(&self.authority()) {
            headers.insert(HOST, host);
        }
        if headers.get_all(COOKIE).iter().nth(1).is_some() {
            let crumbs: Vec<_> = headers.get_all(COOKIE).iter().collect();
            let crumbs: Vec<_> = crumbs.into_iter().map(HeaderValue::as_bytes).collect();
            if let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
                headers.insert(COOKIE, whole);
            }
        }
        request
    }

    /// HTTP/2: scheme and authority are in the target.
    fn for_http2(&self, mut request: Request<Body>) -> Request<Body> {
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().remove(HOST);
        let mut uri = uri::Parts::default();
        uri.scheme = self.scheme.as_str().parse().ok();
        uri.authority = self.authority().parse().ok();
        uri.path_and_query = request.uri().path_and_query().cloned();
        if let Ok(uri) = Uri::from_parts(uri) {
            *request.uri_mut() = uri;
        }
        request
    }

    fn authority(&self) -> String {
        if self.port == self.scheme.default_port() {
            self.name.to_string()
        } else {
            format!("{}:{}", self.name, self.port)
        }
    }
}

enum Sent {
    Answer(Response<Incoming>),
    Stale(Request<Body>),
}

/// Keeps the lane as long as the body.
fn on_lane(body: Body, lane: Lane) -> Body {
    OnLane { body, _lane: lane }.boxed_unsync()
}

struct OnLane {
    body: Body,
    _lane: Lane,
}

impl HttpBody for OnLane {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Why a request did not reach its host.
#[derive(Debug, Error)]
pub(crate) enum DialError {
    #[error("{name} resolves to {address} only, which a bottle may not reach: {why}")]
    Forbidden {
        name: HostName,
        address: IpAddr,
        why: &'static str,
    },
    #[error("{name} broke off")]
    Http {
        name: HostName,
        source: hyper::Error,
    },
    #[error("cannot connect to {name}:{port}")]
    NotConnected {
        name: HostName,
        port: u16,
        source: io::Error,
    },
    #[error("cannot resolve {name}")]
    NotResolved { name: HostName, source: io::Error },
    #[error("{name} closes every connection at once")]
    Stale { name: HostName },
    #[error("cannot verify {name} by TLS")]
    Tls { name: HostName, source: io::Error },
}

impl DialError {
    /// Returns what the guest is told.
    pub(crate) fn refusal(&self) -> Refusal {
        match self {
            Self::Forbidden { .. } => Refusal::new(Reason::AddressNotAllowed, self.to_string()),
            Self::NotResolved { source, .. } => {
                Refusal::new(Reason::UpstreamNotResolved, format!("{self}: {source}"))
            }
            Self::Http { source, .. } => {
                Refusal::new(Reason::UpstreamUnreachable, format!("{self}: {source}"))
            }
            Self::NotConnected { source, .. } | Self::Tls { source, .. } => {
                Refusal::new(Reason::UpstreamUnreachable, format!("{self}: {source}"))
            }
            Self::Stale { .. } => Refusal::new(Reason::UpstreamUnreachable, self.to_string()),
        }
    }
}

const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const MAX_ADDRESSES: usize = 6;
const MAX_STALE: usize = 4;
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;
const FRAME_SIZE: u32 = 64 << 10;
const SEND_BUFFER: usize = 256 << 10;
const MAX_ANSWER_HEADERS: u32 = 256 << 10;
const MAX_ANSWER_HEADER_COUNT: usize = 256;
const MAX_ANSWER_BUFFER: usize = 512 << 10;
