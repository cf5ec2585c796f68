//! One flow from its first byte: TLS, plain HTTP, or neither.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bottle_core::policy::Reason;
use rustls::server::Acceptor;
use tokio::time::timeout;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use crate::ca::{MintError, Subject};
use crate::denial::Refusal;
use crate::request::Scheme;
use crate::session::{Session, Target};
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
    let verdict = shared.judge(&target, port);
    if let Err(refusal) = &verdict
        && !shared.speaks_http(port)
    {
        shared.refuse_flow(&target, port, refusal);
        return;
    }
    let opened = timeout(OPENING_TIMEOUT, Peeked::open(stream)).await;
    let (opening, stream) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(_)) | Err(_) => {
            if let Err(refusal) = &verdict {
                shared.refuse_flow(&target, port, refusal);
            }
            return;
        }
    };
    match opening {
        Opening::Tls => tls(shared, target, port, verdict, stream).await,
        Opening::Http => {
            let verdict = verdict.and_then(|()| {
                if port == Scheme::Http.default_port() {
                    Ok(())
                } else {
                    Err(not_tls(&target, port))
                }
            });
            let session = Session::new(&shared, target, port, Scheme::Http, verdict);
            Arc::new(session).serve_http1(stream).await;
        }
        Opening::Nothing => {
            if let Err(refusal) = &verdict {
                shared.refuse_flow(&target, port, refusal);
            }
        }
        Opening::Other => {
            let refusal = verdict.err().unwrap_or_else(|| not_tls(&target, port));
            shared.refuse_flow(&target, port, &refusal);
        }
    }
}

fn not_tls(target: &Target, port: u16) -> Refusal {
    let host = match target {
        Target::Name(name) => name.to_string(),
        Target::Address(address) => address.to_string(),
    };
    Refusal::new(
        Reason::BadProtocol,
        format!("port {port} of {host} is allowed for TLS, and the first bytes are not TLS"),
    )
}

/// Ends the guest's TLS under the name it asked for, whatever the verdict, so that a refusal can
/// be read.
async fn tls(
    shared: Arc<Shared>,
    target: Target,
    port: u16,
    verdict: Result<(), Refusal>,
    stream: Peeked,
) {
    let acceptor = LazyConfigAcceptor::new(Acceptor::default(), stream);
    let start = match timeout(TLS_TIMEOUT, acceptor).await {
        Ok(Ok(start)) => start,
        Ok(Err(error)) => {
            let refusal = verdict.err().unwrap_or_else(|| handshake_failed(&error));
            shared.refuse_flow(&target, port, &refusal);
            return;
        }
        Err(_) => {
            let refusal = verdict
                .err()
                .unwrap_or_else(|| handshake_failed(&io::ErrorKind::TimedOut.into()));
            shared.refuse_flow(&target, port, &refusal);
            return;
        }
    };
    let (subject, verdict) = identity(&shared, &target, verdict, &start);
    let config = match shared.authority.server_config(&subject) {
        Ok(config) => config,
        Err(error) => {
            tracing::warn!(%error, "no certificate for a guest's connection");
            let reason = match error {
                MintError::Limit => Reason::LimitReached,
                MintError::Certificate(_) | MintError::Random | MintError::Tls(_) => {
                    Reason::BadProtocol
                }
            };
            let refusal = verdict
                .err()
                .unwrap_or_else(|| Refusal::new(reason, error.to_string()));
            shared.refuse_flow(&target, port, &refusal);
            return;
        }
    };
    let accepted = timeout(TLS_TIMEOUT, start.into_stream(config))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let stream = match accepted {
        Ok(stream) => stream,
        Err(error) => {
            let refusal = verdict.err().unwrap_or_else(|| handshake_failed(&error));
            shared.refuse_flow(&target, port, &refusal);
            return;
        }
    };
    let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let session = Arc::new(Session::new(&shared, target, port, Scheme::Https, verdict));
    if is_h2 {
        session.serve_http2(stream).await;
    } else {
        session.serve_http1(stream).await;
    }
}

/// Compares the name in the handshake with the flow's, and says which name to answer under.
fn identity(
    shared: &Shared,
    target: &Target,
    verdict: Result<(), Refusal>,
    start: &StartHandshake<Peeked>,
) -> (Subject, Result<(), Refusal>) {
    let hello = start.client_hello();
    let sni = hello.server_name().and_then(|name| name.parse().ok());
    let flow = match target {
        Target::Name(name) => Subject::Name(name.clone()),
        Target::Address(address) => Subject::Address(*address),
    };
    let Some(sni) = sni else {
        let verdict = verdict.and_then(|()| {
            Err(Refusal::new(
                Reason::AuthorityMismatch,
                "the TLS handshake names no host (SNI)",
            ))
        });
        return (flow, verdict);
    };
    let verdict = verdict.and_then(|()| match &flow {
        Subject::Name(name) if *name == sni => Ok(()),
        Subject::Name(name) => Err(Refusal::new(
            Reason::AuthorityMismatch,
            match shared.scanner.scan_text(sni.as_str().as_bytes()) {
                None => format!("the TLS handshake names {sni}, the connection is to {name}"),
                Some(_) => format!("the TLS handshake names another host than {name}"),
            },
        )),
        Subject::Address(address) => Err(crate::session::literal(*address)),
    });
    (Subject::Name(sni), verdict)
}

fn handshake_failed(error: &io::Error) -> Refusal {
    Refusal::new(
        Reason::BadProtocol,
        format!("the TLS handshake failed ({error}); does the client trust the bottle's CA?"),
    )
}

const OPENING_TIMEOUT: Duration = Duration::from_secs(30);
const TLS_TIMEOUT: Duration = Duration::from_secs(15);
