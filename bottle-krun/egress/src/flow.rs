//! One flow from its first byte: TLS, plain HTTP, or neither.

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
use crate::request::Scheme;
use crate::session::{Session, Target, literal};
use crate::shared::Shared;
use crate::sniff::{Duplex, Opening, Peeked};

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
        if !self.shared.speaks_http(self.port) {
            verdict.clone()?;
        }
        let Ok(Ok((opening, stream))) = timeout(OPENING_TIMEOUT, Peeked::open(stream)).await else {
            return verdict;
        };
        match opening {
            Opening::Tls => self.tls(verdict, stream).await,
            Opening::Http => {
                let verdict = verdict.and_then(|()| {
                    if self.port == Scheme::Http.default_port() {
                        Ok(())
                    } else {
                        Err(self.not_tls())
                    }
                });
                self.session(Scheme::Http, verdict)
                    .serve_http1(stream)
                    .await;
                Ok(())
            }
            Opening::Nothing => verdict,
            Opening::Other => verdict.and_then(|()| Err(self.not_tls())),
        }
    }

    /// Ends the guest's TLS under the name it asked for, whatever the verdict, so that a refusal
    /// can be read.
    async fn tls(self, verdict: Result<(), Refusal>, stream: Peeked) -> Result<(), Refusal> {
        let acceptor = LazyConfigAcceptor::new(Acceptor::default(), stream);
        let start = match timed(acceptor).await {
            Ok(start) => start,
            Err(error) => return verdict.and_then(|()| Err(handshake_failed(&error))),
        };
        let (subject, verdict) = self.identity(verdict, &start);
        let config = match self.shared.authority.server_config(&subject) {
            Ok(config) => config,
            Err(error) => {
                tracing::warn!(%error, "no certificate for a guest's connection");
                return verdict
                    .and_then(|()| Err(Refusal::new(Reason::LimitReached, error.to_string())));
            }
        };
        let stream = match timed(start.into_stream(config)).await {
            Ok(stream) => stream,
            Err(error) => return verdict.and_then(|()| Err(handshake_failed(&error))),
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

    fn session(self, scheme: Scheme, verdict: Result<(), Refusal>) -> Arc<Session> {
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
        verdict: Result<(), Refusal>,
        start: &StartHandshake<Peeked>,
    ) -> (Subject, Result<(), Refusal>) {
        let hello = start.client_hello();
        let sni: Option<HostName> = hello.server_name().and_then(|name| name.parse().ok());
        let own = match &self.target {
            Target::Name(name) => Subject::Name(name.clone()),
            Target::Address(address) => Subject::Address(*address),
        };
        let mismatch = |detail: String| Err(Refusal::new(Reason::AuthorityMismatch, detail));
        let Some(sni) = sni else {
            let nameless = "the TLS handshake names no host (SNI)".to_owned();
            return (own, verdict.and_then(|()| mismatch(nameless)));
        };
        let verdict = verdict.and_then(|()| match &self.target {
            Target::Name(name) if *name == sni => Ok(()),
            Target::Name(name) => mismatch(format!(
                "the TLS handshake names {}, the connection is to {name}",
                Target::Name(sni.clone()).shown(&self.shared)
            )),
            Target::Address(address) => Err(literal(*address)),
        });
        (Subject::Name(sni), verdict)
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
