//! The connections of one guest connection to one host: kept, shared, replaced.
//!
//! An [`Upstream`] belongs to one guest connection, so a stalled one holds nobody else back.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bottle_core::policy::HostName;
use bytes::Bytes;
use http::header::{CONNECTION, COOKIE, HOST, HeaderValue, TE};
use http::{Request, Response, Uri, Version, uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::body::{Body, BodyError};
use crate::dial::ANSWER_TIMEOUT;
use crate::dial::{DialError, Dialer, Dialled, Sender};
use crate::request::Scheme;
use crate::shared::Reach;

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
    http1: Vec<Kept1>,
    /// The upstream chose HTTP/1.1 before: dial without waiting for each other.
    is_http1: bool,
}

/// An idle HTTP/1.1 connection.
struct Kept1 {
    address: IpAddr,
    needs: Reach,
    sender: http1::SendRequest<Body>,
}

/// An HTTP/2 connection that several requests may share.
struct Shared2 {
    address: IpAddr,
    needs: Reach,
    sender: http2::SendRequest<Body>,
    lane: Lane,
}

/// Says whether a request under a rule with this reach may go where another one led.
fn leads(needs: Reach, reach: Reach) -> bool {
    needs == Reach::Public || reach == Reach::Private
}

impl Shared2 {
    fn lend(&self, is_stream: bool) -> Sender {
        let lane = is_stream.then(|| Arc::clone(&self.lane));
        Sender::Http2(self.sender.clone(), lane)
    }
}

/// Held by a connection and by whoever streams a long body on it. A stalled body can use up the
/// window of its whole connection, so nothing else is sent there meanwhile.
pub(crate) type Lane = Arc<()>;

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

    /// Returns the error of an upstream that does not answer.
    pub(crate) fn is_late(&self) -> DialError {
        DialError::Late {
            name: self.name.clone(),
        }
    }

    /// Sends one request and returns the address it went to and the head of its answer.
    ///
    /// A connection that turns out to be closed before anything was written is replaced.
    pub(crate) async fn send(
        &self,
        mut request: Request<Body>,
        is_stream: bool,
        reach: Reach,
    ) -> Result<(IpAddr, Response<Incoming>), DialError> {
        for _ in 0..MAX_STALE {
            let dialled = self.connection(is_stream, reach).await?;
            let address = dialled.address;
            match self.send_on(dialled, request).await? {
                Sent::Answer(answer) => return Ok((address, answer)),
                Sent::Stale(back) => request = back,
            }
        }
        Err(DialError::Stale {
            name: self.name.clone(),
        })
    }

    /// Sends a request that asks for another protocol, on a connection of its own.
    pub(crate) async fn upgrade(
        &self,
        request: Request<Body>,
        reach: Reach,
    ) -> Result<(IpAddr, Response<Incoming>), DialError> {
        let dial = self
            .dialer
            .dial_http1(&self.name, self.port, self.scheme, reach);
        let dialled = dial.await?;
        let Sender::Http1(mut sender) = dialled.sender else {
            // It was offered nothing else.
            return Err(DialError::Stale {
                name: self.name.clone(),
            });
        };
        let answer = timeout(ANSWER_TIMEOUT, sender.send_request(self.for_http1(request)))
            .await
            .map_err(|_| self.is_late())?;
        let answer = answer.map_err(|source| DialError::Http {
            name: self.name.clone(),
            source,
        })?;
        Ok((dialled.address, answer))
    }

    async fn connection(&self, is_stream: bool, reach: Reach) -> Result<Dialled, DialError> {
        let mut open = self.open.lock().await;
        open.http1.retain(|kept| !kept.sender.is_closed());
        open.http2.retain(|shared| !shared.sender.is_closed());
        let is_free =
            |shared: &&Shared2| Arc::strong_count(&shared.lane) == 1 && leads(shared.needs, reach);
        if let Some(shared) = open.http2.iter().find(is_free) {
            return Ok(Dialled {
                address: shared.address,
                needs: shared.needs,
                sender: shared.lend(is_stream),
            });
        }
        let is_idle = |kept: &Kept1| kept.sender.is_ready() && leads(kept.needs, reach);
        if let Some(at) = open.http1.iter().position(is_idle) {
            let Kept1 {
                address,
                needs,
                sender,
            } = open.http1.swap_remove(at);
            return Ok(Dialled {
                address,
                needs,
                sender: Sender::Http1(sender),
            });
        }
        let dial = self.dialer.dial(&self.name, self.port, self.scheme, reach);
        if open.is_http1 {
            drop(open);
            return dial.await;
        }
        let mut dialled = dial.await?;
        match &mut dialled.sender {
            Sender::Http1(_) => open.is_http1 = true,
            Sender::Http2(sender, _) => {
                let shared = Shared2 {
                    address: dialled.address,
                    needs: dialled.needs,
                    sender: sender.clone(),
                    lane: Lane::default(),
                };
                dialled.sender = shared.lend(is_stream);
                open.http2.push(shared);
            }
        }
        Ok(dialled)
    }

    async fn send_on(&self, dialled: Dialled, request: Request<Body>) -> Result<Sent, DialError> {
        let Dialled {
            address,
            needs,
            sender,
        } = dialled;
        let sent = match sender {
            Sender::Http1(mut sender) => {
                if sender.ready().await.is_err() {
                    return Ok(Sent::Stale(request));
                }
                let sent = sender.try_send_request(self.for_http1(request)).await;
                if sent.is_ok() {
                    self.open.lock().await.http1.push(Kept1 {
                        address,
                        needs,
                        sender,
                    });
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
        // Whoever can take trailers has to say so on each connection.
        if headers.contains_key(TE) {
            headers.insert(CONNECTION, HeaderValue::from_static("TE"));
        }
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

const MAX_STALE: usize = 4;
