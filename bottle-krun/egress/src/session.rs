//! One HTTP connection of the guest: every request on it is judged anew.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bottle_core::policy::{Dlp, HostName, Inspect, Reason, RequestPath, Verdict};
use http::request::Parts;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::upgrade;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use crate::body::Body;
use crate::credential::Keeper;
use crate::denial::Refusal;
use crate::forward::{Carrier, drain_short};
use crate::ledger::Seen;
use crate::pump::Notes;
use crate::request::{self, Scheme, WITHHELD};
use crate::shared::{Leave, Look, Reach, Shared};
use crate::sniff::Duplex;
use crate::upstream::Upstream;
use crate::websocket::{self, WebSocket};

/// Where a flow goes, as far as the guest said.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Target {
    Name(HostName),
    Address(IpAddr),
}

impl Target {
    /// Returns the target as text that may be recorded.
    pub(crate) fn shown(&self, shared: &Shared) -> String {
        match self {
            Self::Address(address) => address.to_string(),
            Self::Name(name) => match shared.secret_in(name) {
                None => name.to_string(),
                Some(_) => WITHHELD.to_owned(),
            },
        }
    }
}

/// Under which terms one request was allowed.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// The rule that allows it, as written.
    pub(crate) rule: String,
    pub(crate) reach: Reach,
    pub(crate) max_body: Option<u64>,
    /// What becomes of secrets.
    pub(crate) dlp: Dlp,
    /// What the gateway puts in.
    pub(crate) credential: Option<Arc<Keeper>>,
    /// Whether the request may have no method but the one in its head.
    pub(crate) hangs_on_method: bool,
}

/// What the requests of a connection meet.
pub(crate) enum Mode {
    /// They are judged.
    Open(Upstream),
    /// All of them are refused, for this.
    Refused(Refusal),
}

/// One connection, or what one connection of the explicit proxy has to do with one host.
pub(crate) struct Session {
    shared: Arc<Shared>,
    target: Target,
    port: u16,
    scheme: Scheme,
    mode: Mode,
    answered: AtomicBool,
    /// Whether the connection can become something else than HTTP.
    is_upgradable: AtomicBool,
    /// What it becomes when its last answer is out.
    upgraded: Mutex<Option<WebSocket>>,
}

impl Session {
    /// Prepares a connection whose flow was judged.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        target: Target,
        port: u16,
        scheme: Scheme,
        verdict: Result<Leave, Refusal>,
    ) -> Self {
        let mode = match (verdict, &target) {
            (Ok(leave), _) if leave.look != Look::Inspect => Mode::Refused(uninspected(port)),
            (Ok(_), Target::Name(name)) => Mode::Open(Upstream::new(
                Arc::clone(&shared.dialer),
                name.clone(),
                port,
                scheme,
            )),
            (Ok(_), Target::Address(address)) => Mode::Refused(literal(*address)),
            (Err(refusal), _) => Mode::Refused(refusal),
        };
        Self {
            shared: Arc::clone(shared),
            target,
            port,
            scheme,
            mode,
            answered: AtomicBool::new(false),
            is_upgradable: AtomicBool::new(false),
            upgraded: Mutex::new(None),
        }
    }

    /// Speaks HTTP/1.1 to the connection's end.
    pub(crate) async fn serve_http1(self: Arc<Self>, stream: impl Duplex + 'static) {
        self.is_upgradable.store(true, Ordering::Relaxed);
        let session = Arc::clone(&self);
        let service = service_fn(move |request| {
            let session = Arc::clone(&session);
            async move { Ok::<_, Infallible>(session.answer(request).await) }
        });
        let served = http1_builder()
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
        self.ended(served);
        let upgraded = self
            .upgraded
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(socket) = upgraded {
            socket.serve(self.shared.ledger.random()).await;
        }
    }

    /// Speaks HTTP/2 to the connection's end.
    pub(crate) async fn serve_http2(self: Arc<Self>, stream: impl Duplex + 'static) {
        let session = Arc::clone(&self);
        let service = service_fn(move |request| {
            let session = Arc::clone(&session);
            async move { Ok::<_, Infallible>(session.answer(request).await) }
        });
        let served = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            // One stalled stream never holds more than its own share of the connection's window.
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(STREAM_WINDOW * MAX_STREAMS)
            .max_frame_size(FRAME_SIZE)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(MAX_HEADERS)
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        self.ended(served);
    }

    /// Records what the connection's end says.
    fn ended(&self, served: Result<(), hyper::Error>) {
        if let Err(error) = served {
            if error.is_parse() {
                let refusal = Refusal::new(
                    Reason::BadRequest,
                    format!("the request is not well-formed HTTP: {error}"),
                );
                self.refuse_flow(&refusal);
                return;
            }
            tracing::debug!(%error, "guest connection ended");
        }
        if let Mode::Refused(refusal) = &self.mode
            && !self.answered.load(Ordering::Relaxed)
        {
            self.refuse_flow(refusal);
        }
    }

    fn refuse_flow(&self, refusal: &Refusal) {
        self.shared.refuse_flow(&self.target, self.port, refusal);
    }

    /// Answers one request.
    pub(crate) async fn answer(&self, mut request: Request<Incoming>) -> Response<Body> {
        self.answered.store(true, Ordering::Relaxed);
        let upgrade = upgrade::on(&mut request);
        let (mut parts, body) = request.into_parts();
        let shared = &self.shared;
        let host = self.target.shown(shared);
        let seen = request::describe(&shared.scanner, host, self.port, &parts);
        let judged = shared
            .begin_request()
            .and_then(|permit| Ok((permit, self.judge(&parts)?)));
        let (permit, (terms, name, upstream)) = match judged {
            Ok(judged) => judged,
            Err(refusal) => {
                drain_short(&parts.headers, body).await;
                return deny(shared, &seen, &refusal);
            }
        };
        let flow = request::Flow {
            name,
            port: self.port,
            scheme: self.scheme,
        };
        let may_upgrade = self.is_upgradable.load(Ordering::Relaxed);
        let judged = request::judge(&shared.scanner, &parts, &flow, &terms)
            .and_then(|()| request::upgrade(&parts, may_upgrade))
            .and_then(|()| request::treat(&shared.scanner, &mut parts, terms.dlp));
        match judged {
            Ok(noted) => noted
                .into_iter()
                .for_each(|detail| shared.ledger.secret_seen(&seen, &terms, detail)),
            Err(refusal) => {
                drain_short(&parts.headers, body).await;
                return deny(shared, &seen, &refusal.under(&terms.rule));
            }
        }
        if websocket::is_asked(&parts) {
            let notes = Notes {
                scanner: Arc::clone(&shared.scanner),
                ledger: shared.ledger.clone(),
                seen: seen.clone(),
                terms: terms.clone(),
            };
            let permit = Arc::new(permit);
            return match websocket::open(upstream, parts, upgrade, notes, permit).await {
                Ok((answer, socket)) => {
                    let mut upgraded = self.upgraded.lock().unwrap_or_else(PoisonError::into_inner);
                    *upgraded = socket;
                    answer
                }
                Err(refusal) => deny(shared, &seen, &refusal.under(&terms.rule)),
            };
        }
        let carrier = Carrier {
            scanner: &shared.scanner,
            ledger: &shared.ledger,
            upstream,
            terms,
            permit: Arc::new(permit),
        };
        carrier.carry(seen, parts, body).await
    }

    /// Finds the rule for this request; the connection's own verdict is not enough.
    fn judge(&self, parts: &Parts) -> Result<(Terms, &HostName, &Upstream), Refusal> {
        let (upstream, name) = match (&self.mode, &self.target) {
            (Mode::Open(upstream), Target::Name(name)) => (upstream, name),
            (Mode::Open(_), Target::Address(address)) => return Err(literal(*address)),
            (Mode::Refused(refusal), _) => return Err(self.or_secret(parts, refusal.clone())),
        };
        let (method, path) = (parts.method.as_str(), parts.uri.path());
        let refusal = match self.shared.policy.request(name, self.port, method, path) {
            Verdict::Allow(permit) => {
                let credential = self.credential(permit.inspect)?;
                let terms = Terms {
                    rule: permit.rule.to_string(),
                    reach: Reach::of(permit.grant.is_private()),
                    max_body: permit.inspect.max_body(),
                    dlp: permit.inspect.dlp(),
                    credential,
                    hangs_on_method: permit.hangs_on_method,
                };
                return Ok((terms, name, upstream));
            }
            Verdict::Deny(rule) => Refusal::denied(rule, name),
            Verdict::Refuse(reason @ (Reason::MethodNotAllowed | Reason::PathNotAllowed)) => {
                Refusal::uncovered(reason, name, method)
            }
            Verdict::Refuse(reason @ Reason::BadRequest) => {
                let why = RequestPath::parse(path).map_or_else(|error| error.why(), |_| "");
                Refusal::new(
                    reason,
                    format!("the path cannot be compared with a rule: {why}"),
                )
            }
            Verdict::Refuse(reason) => Refusal::unlisted(reason, name, self.port),
        };
        Err(self.or_secret(parts, refusal))
    }

    /// Finds what a rule says is to be put in. That such a credential exists and such a rule has no
    /// port without TLS was seen to before; nothing goes out if either is not so.
    fn credential(&self, inspect: &Inspect) -> Result<Option<Arc<Keeper>>, Refusal> {
        let Some(name) = inspect.credential() else {
            return Ok(None);
        };
        let keeper = self.shared.vault.keeper(name);
        if keeper.is_none() || self.scheme != Scheme::Https {
            return Err(Refusal::new(
                Reason::CredentialUnavailable,
                format!(
                    "the credential {} is not for this connection",
                    name.as_str()
                ),
            ));
        }
        Ok(keeper)
    }

    /// A secret on its way to where it may not go is the graver finding.
    fn or_secret(&self, parts: &Parts, refusal: Refusal) -> Refusal {
        request::secrets(&self.shared.scanner, parts)
            .err()
            .unwrap_or(refusal)
    }
}

/// Records a refusal and explains it.
pub(crate) fn deny(shared: &Shared, seen: &Seen, refusal: &Refusal) -> Response<Body> {
    let event = shared.ledger.refused(seen, refusal);
    refusal.response(&event)
}

/// The refusal of an address in place of a name.
pub(crate) fn literal(address: IpAddr) -> Refusal {
    Refusal::new(
        Reason::IpLiteral,
        format!("{address} is an address; only names can be allowed"),
    )
}

/// The refusal of a request where requests are not looked at.
fn uninspected(port: u16) -> Refusal {
    Refusal::new(
        Reason::BadProtocol,
        format!("port {port} is not allowed for requests to a proxy; use CONNECT"),
    )
}

/// HTTP/1.1 towards the guest, with the limits that hold everywhere.
pub(crate) fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADER_COUNT)
        .max_header_size(MAX_HEADERS as usize)
        .max_buf_size(MAX_BUFFER);
    builder
}

/// How long a guest may take for a head, and how long a kept connection may idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const MAX_STREAMS: u32 = 128;
const STREAM_WINDOW: u32 = 256 << 10;
const FRAME_SIZE: u32 = 64 << 10;
const SEND_BUFFER: usize = 256 << 10;
const MAX_HEADERS: u32 = 64 << 10;
const MAX_HEADER_COUNT: usize = 128;
const MAX_BUFFER: usize = 256 << 10;
