//! The way out: a name is resolved here, its addresses are checked, the checked one is dialled.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bottle_core::policy::{HostName, Reason};
use bottle_core::spec::Resolve;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::address;
use crate::body::Body;
use crate::denial::Refusal;
use crate::host_proxy::HostProxy;
use crate::request::Scheme;
use crate::shared::Reach;
use crate::sniff::Duplex;
use crate::upstream::Lane;

/// Opens connections to names.
#[derive(Debug)]
pub(crate) struct Dialer {
    pub(crate) resolve: Vec<Resolve>,
    pub(crate) proxy: Option<HostProxy>,
    pub(crate) tls: Arc<ClientConfig>,
    /// Offers HTTP/1.1 alone.
    pub(crate) tls_http1: Arc<ClientConfig>,
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
        let failed = |source| DialError::NotConnected {
            name: name.clone(),
            port,
            source,
        };
        if let Some(proxy) = &self.proxy
            && proxy.serves(name, port)
            && !self.is_named(name, port)
        {
            let stream = proxy.connect(name, port).await.map_err(failed)?;
            let address = stream.peer_addr().map_err(failed)?.ip();
            return Ok(Connected {
                stream,
                address,
                needs: Reach::Public,
            });
        }
        let targets = self.addresses(name, port, reach).await?;
        let connect = |(target, needs): (SocketAddr, Reach)| async move {
            let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(target))
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
            let _ = stream.set_nodelay(true);
            Ok(Connected {
                stream,
                address: target.ip(),
                needs,
            })
        };
        race(targets, connect).await.map_err(failed)
    }

    /// Says whether the host's side has named an address for it.
    fn is_named(&self, name: &HostName, port: u16) -> bool {
        let mut resolve = self.resolve.iter();
        resolve.any(|entry| entry.host == *name && entry.port == port)
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
        self.speak(name, connected, scheme, &self.tls).await
    }

    /// Opens a connection that will be something else than HTTP after its first request.
    pub(crate) async fn dial_http1(
        &self,
        name: &HostName,
        port: u16,
        scheme: Scheme,
        reach: Reach,
    ) -> Result<Dialled, DialError> {
        let connected = self.connect(name, port, reach).await?;
        self.speak(name, connected, scheme, &self.tls_http1).await
    }

    async fn speak(
        &self,
        name: &HostName,
        connected: Connected,
        scheme: Scheme,
        tls: &Arc<ClientConfig>,
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
                let connector = TlsConnector::from(Arc::clone(tls));
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
            tokio::spawn(connection.with_upgrades());
            Sender::Http1(sender)
        };
        Ok(Dialled {
            address,
            needs,
            sender,
        })
    }
}

/// Tries one address after the other, without waiting long for any, and takes the first that works
/// (RFC 8305).
async fn race<A, T, F>(targets: Vec<A>, connect: impl Fn(A) -> F) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let mut waiting = targets.into_iter();
    let mut running = FuturesUnordered::new();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        let next = waiting.next();
        let is_last = next.is_none();
        running.extend(next.map(&connect));
        if running.is_empty() {
            return Err(last);
        }
        tokio::select! {
            Some(done) = running.next() => match done {
                Ok(connected) => return Ok(connected),
                Err(error) => last = error,
            },
            () = sleep(STAGGER), if !is_last => {}
        }
    }
}

/// Puts addresses of the two families in turns, beginning with the first one's.
fn in_turns(targets: Vec<(SocketAddr, Reach)>) -> Vec<(SocketAddr, Reach)> {
    let is_v6 = targets.first().is_some_and(|(target, _)| target.is_ipv6());
    let (first, second): (Vec<_>, Vec<_>) = targets
        .into_iter()
        .partition(|(target, _)| target.is_ipv6() == is_v6);
    let mut second = second.into_iter();
    let mut turns = Vec::new();
    for target in first {
        turns.push(target);
        turns.extend(second.next());
    }
    turns.extend(second);
    turns
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
            let mut allowed = in_turns(allowed);
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
    #[error("{name} did not begin to answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Late { name: HostName },
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
            Self::Late { .. } | Self::Stale { .. } => {
                Refusal::new(Reason::UpstreamUnreachable, self.to_string())
            }
        }
    }
}

const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// So long is waited for one address before the next is tried beside it.
const STAGGER: Duration = Duration::from_millis(250);
/// So long an upstream may think once it has the whole request: models do.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(20 * 60);
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::pending;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_that_does_not_answer_holds_nobody_up() {
        let tried = RefCell::new(Vec::new());
        let connect = |target: u8| {
            tried.borrow_mut().push(target);
            async move {
                match target {
                    0 => pending().await,
                    1 => Err(io::ErrorKind::ConnectionRefused.into()),
                    works => Ok(works),
                }
            }
        };
        let first = timeout(Duration::from_secs(60), race(vec![0, 1, 2, 3], connect)).await;
        assert_eq!(first.expect("one of them works").unwrap(), 2);
        assert_eq!(*tried.borrow(), [0, 1, 2]);
        let error = race(vec![1, 1], connect).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let none = race(Vec::new(), connect).await.unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::AddrNotAvailable);
    }

    #[test]
    fn families_take_turns_and_what_is_forbidden_is_left_out() {
        let name = "a.test".parse().unwrap();
        let found = [
            "[2606:4700::1]:443",
            "[2606:4700::2]:443",
            "10.0.0.1:443",
            "1.1.1.1:443",
            "1.1.1.2:443",
        ]
        .map(|text| text.parse().unwrap());
        let addresses = |reach| -> Vec<String> {
            let checked = check(&name, found, reach).unwrap();
            checked
                .into_iter()
                .map(|(target, _)| target.ip().to_string())
                .collect()
        };
        assert_eq!(
            addresses(Reach::Public),
            ["2606:4700::1", "1.1.1.1", "2606:4700::2", "1.1.1.2"]
        );
        let all = [
            "2606:4700::1",
            "10.0.0.1",
            "2606:4700::2",
            "1.1.1.1",
            "1.1.1.2",
        ];
        assert_eq!(addresses(Reach::Private), all);
    }
}
