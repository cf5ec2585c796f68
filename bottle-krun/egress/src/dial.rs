//! The way out: a name is resolved here, its addresses are checked, the checked one is dialled.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bottle_core::policy::{HostName, Reason};
use bottle_core::spec::Resolve;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::address;
use crate::body::Body;
use crate::denial::Refusal;
use crate::request::Scheme;
use crate::shared::Reach;
use crate::sniff::Duplex;
use crate::upstream::Lane;

/// Opens connections to names.
#[derive(Debug)]
pub(crate) struct Dialer {
    pub(crate) resolve: Vec<Resolve>,
    pub(crate) tls: Arc<ClientConfig>,
}

/// A connection to an upstream, its protocol not begun.
pub(crate) struct Connected {
    pub(crate) stream: TcpStream,
    pub(crate) address: IpAddr,
    /// What a rule has to allow for its requests to go this way.
    pub(crate) needs: Reach,
}

/// A connection to an upstream, its protocol known.
pub(crate) struct Dialled {
    pub(crate) address: IpAddr,
    pub(crate) needs: Reach,
    pub(crate) sender: Sender,
}

pub(crate) enum Sender {
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
    async fn addresses(
        &self,
        name: &HostName,
        port: u16,
        reach: Reach,
    ) -> Result<Vec<(SocketAddr, Reach)>, DialError> {
        let named: Vec<_> = self
            .resolve
            .iter()
            .filter(|entry| entry.host == *name && entry.port == port)
            .map(|entry| SocketAddr::new(entry.address, entry.dial_port))
            .map(|target| (target, Reach::Public))
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
        check(name, found, reach)
    }

    /// Opens a connection to a name, speaking nothing yet.
    pub(crate) async fn connect(
        &self,
        name: &HostName,
        port: u16,
        reach: Reach,
    ) -> Result<Connected, DialError> {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for (target, needs) in self.addresses(name, port, reach).await? {
            match timeout(CONNECT_TIMEOUT, TcpStream::connect(target)).await {
                Ok(Ok(stream)) => {
                    let _ = stream.set_nodelay(true);
                    return Ok(Connected {
                        stream,
                        address: target.ip(),
                        needs,
                    });
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

    /// Opens a connection to a name and agrees on a version of HTTP.
    pub(crate) async fn dial(
        &self,
        name: &HostName,
        port: u16,
        scheme: Scheme,
        reach: Reach,
    ) -> Result<Dialled, DialError> {
        let connected = self.connect(name, port, reach).await?;
        self.speak(name, connected, scheme).await
    }

    async fn speak(
        &self,
        name: &HostName,
        connected: Connected,
        scheme: Scheme,
    ) -> Result<Dialled, DialError> {
        let Connected {
            stream: tcp,
            address,
            needs,
        } = connected;
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
        Ok(Dialled {
            address,
            needs,
            sender,
        })
    }
}

/// Keeps the addresses that may be dialled.
fn check(
    name: &HostName,
    found: impl IntoIterator<Item = SocketAddr>,
    reach: Reach,
) -> Result<Vec<(SocketAddr, Reach)>, DialError> {
    let mut refused = None;
    let mut allowed = Vec::new();
    for target in found {
        match address::forbidden(target.ip()) {
            None => allowed.push((target, Reach::Public)),
            Some(_) if reach == Reach::Private && address::is_near(target.ip()) => {
                allowed.push((target, Reach::Private));
            }
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
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;
const FRAME_SIZE: u32 = 64 << 10;
const SEND_BUFFER: usize = 256 << 10;
const MAX_ANSWER_HEADERS: u32 = 256 << 10;
const MAX_ANSWER_HEADER_COUNT: usize = 256;
const MAX_ANSWER_BUFFER: usize = 512 << 10;
