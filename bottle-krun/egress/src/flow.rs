//! One flow from its first byte: TLS, plain HTTP, or what a rule allows without a look.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bottle_core::policy::{HostName, Reason};
use rustls::server::Acceptor;
use tokio::time::timeout;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use crate::ca::Subject;
use crate::denial::Refusal;
use crate::hello::{self, MAX_OPENING};
use crate::request::Scheme;
use crate::session::{Session, Target, literal};
use crate::shared::{Leave, Look, Shared};
use crate::sniff::{Duplex, Opening, Peeked};
use crate::tunnel;

/// Where a captured connection goes: a synthetic address is its name, anything else a literal.
pub(crate) fn target_of(shared: &Shared, address: IpAddr) -> Target {
    let address = address.to_canonical();
    let name = match address {
        IpAddr::V4(address) => shared.names.name_of(address),
        IpAddr::V6(_) => None,
    };
    name.map_or(Target::Address(address), Target::Name)
}

/// Serves one flow to its end. Returning without having answered means a reset.
pub(crate) async fn serve(shared: Arc<Shared>, target: Target, port: u16, stream: Box<dyn Duplex>) {
    let flow = Flow {
        shared: Arc::clone(&shared),
        target: target.clone(),
        port,
    };
    if let Err(refusal) = flow.run(stream).await {
        shared.refuse_flow(&target, port, &refusal);
    }
}

/// One flow whose target is known and whose protocol is not.
struct Flow {
    shared: Arc<Shared>,
    target: Target,
    port: u16,
}

impl Flow {
    /// Serves the flow. The error is a refusal that no request could be answered with.
    async fn run(self, stream: Box<dyn Duplex>) -> Result<(), Refusal> {
        let verdict = self.shared.judge(&self.target, self.port);
        if let (Ok(leave), Target::Name(name)) = (&verdict, &self.target)
            && leave.look == Look::Tcp
        {
            // Nobody knows who speaks first.
            return tunnel::carry(&self.shared, name, self.port, leave, stream).await;
        }
        if !self.shared.speaks_http(self.port) {
            verdict.clone()?;
        }
        let Ok(Ok((opening, stream))) = timeout(OPENING_TIMEOUT, Peeked::open(stream)).await else {
            return verdict.map(drop);
        };
        match (opening, verdict) {
            (Opening::Tls, Ok(leave)) if leave.look == Look::Splice => {
                self.splice(leave, stream).await
            }
            (Opening::Tls, verdict) => self.tls(verdict, stream).await,
            (Opening::Http, verdict) => {
                let verdict = verdict.and_then(|leave| {
                    if self.port == Scheme::Http.default_port() {
                        Ok(leave)
                    } else {
                        Err(self.not_tls())
                    }
                });
                self.session(Scheme::Http, verdict)
                    .serve_http1(stream)
                    .await;
                Ok(())
            }
            (Opening::Nothing, verdict) => verdict.map(drop),
            (Opening::Other, verdict) => verdict.and_then(|_| Err(self.not_tls())),
        }
    }

    /// Passes TLS on if its handshake names the flow's host and no other; else ends it, so that the
    /// refusal can be read.
    async fn splice(self, leave: Leave, stream: Peeked) -> Result<(), Refusal> {
        let look = stream.look(MAX_OPENING, |bytes| hello::read(bytes).transpose());
        let (hello, stream) = match timed(look).await {
            Ok((Some(Ok(hello)), stream)) => (hello, stream),
            Ok((None | Some(Err(_)), _)) => {
                let error = io::Error::from(io::ErrorKind::InvalidData);
                return Err(handshake_failed(&error));
            }
            Err(error) => return Err(handshake_failed(&error)),
        };
        let sni = hello.name.as_deref().and_then(|name| name.parse().ok());
        let verdict = self.agrees(sni.as_ref()).and_then(|()| {
            if hello.is_veiled {
                return Err(Refusal::new(
                    Reason::AuthorityMismatch,
                    "the TLS handshake may hold a second, encrypted name (ECH)",
                ));
            }
            Ok(())
        });
        match (verdict, &self.target) {
            (Ok(()), Target::Name(name)) => {
                tunnel::carry(&self.shared, name, self.port, &leave, stream).await
            }
            (Ok(()), Target::Address(address)) => Err(literal(*address)),
            (Err(refusal), _) => self.tls(Err(refusal.under(&leave.rule)), stream).await,
        }
    }

    /// Ends the guest's TLS under the name it asked for, whatever the verdict, so that a refusal
    /// can be read.
    async fn tls(self, verdict: Result<Leave, Refusal>, stream: Peeked) -> Result<(), Refusal> {
        let acceptor = LazyConfigAcceptor::new(Acceptor::default(), stream);
        let start = match timed(acceptor).await {
            Ok(start) => start,
            Err(error) => return verdict.and_then(|_| Err(handshake_failed(&error))),
        };
        let (subject, verdict) = self.identity(verdict, &start);
        let config = match self.shared.authority.server_config(&subject) {
            Ok(config) => config,
            Err(error) => {
                tracing::warn!(%error, "no certificate for a guest's connection");
                return verdict
                    .and_then(|_| Err(Refusal::new(Reason::LimitReached, error.to_string())));
            }
        };
        let stream = match timed(start.into_stream(config)).await {
            Ok(stream) => stream,
            Err(error) => return verdict.and_then(|_| Err(handshake_failed(&error))),
        };
        let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let session = self.session(Scheme::Https, verdict);
        if is_h2 {
            session.serve_http2(stream).await;
        } else {
            session.serve_http1(stream).await;
        }
        Ok(())
    }

    fn session(self, scheme: Scheme, verdict: Result<Leave, Refusal>) -> Arc<Session> {
        Arc::new(Session::new(
            &self.shared,
            self.target,
            self.port,
            scheme,
            verdict,
        ))
    }

    fn not_tls(&self) -> Refusal {
        let host = self.target.shown(&self.shared);
        Refusal::new(
            Reason::BadProtocol,
            format!(
                "port {} of {host} is allowed for TLS, and the first bytes are not TLS",
                self.port
            ),
        )
    }

    /// Compares the name in the handshake with the flow's, and says which name to answer under.
    fn identity(
        &self,
        verdict: Result<Leave, Refusal>,
        start: &StartHandshake<Peeked>,
    ) -> (Subject, Result<Leave, Refusal>) {
        let hello = start.client_hello();
        let sni: Option<HostName> = hello.server_name().and_then(|name| name.parse().ok());
        let verdict = verdict.and_then(|leave| self.agrees(sni.as_ref()).map(|()| leave));
        let subject = match (sni, &self.target) {
            (Some(sni), _) => Subject::Name(sni),
            (None, Target::Name(name)) => Subject::Name(name.clone()),
            (None, Target::Address(address)) => Subject::Address(*address),
        };
        (subject, verdict)
    }

    /// The name in the handshake has to be the flow's.
    fn agrees(&self, sni: Option<&HostName>) -> Result<(), Refusal> {
        let mismatch = |detail: String| Err(Refusal::new(Reason::AuthorityMismatch, detail));
        match (sni, &self.target) {
            (None, _) => mismatch("the TLS handshake names no host (SNI)".to_owned()),
            (Some(sni), Target::Name(name)) if sni == name => Ok(()),
            (Some(sni), Target::Name(name)) => mismatch(format!(
                "the TLS handshake names {}, the connection is to {name}",
                Target::Name(sni.clone()).shown(&self.shared)
            )),
            (Some(_), Target::Address(address)) => Err(literal(*address)),
        }
    }
}

/// Bounds a step of a handshake.
async fn timed<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(TLS_TIMEOUT, step)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn handshake_failed(error: &io::Error) -> Refusal {
    Refusal::new(
        Reason::BadProtocol,
        format!("the TLS handshake failed ({error}); does the client trust the bottle's CA?"),
    )
}

const OPENING_TIMEOUT: Duration = Duration::from_secs(30);
const TLS_TIMEOUT: Duration = Duration::from_secs(15);
