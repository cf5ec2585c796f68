//! The explicit proxy: CONNECT and absolute-form requests, under the same policy as captured flows.
//!
//! A refused CONNECT is accepted where its refusal can be explained inside the tunnel, because
//! clients hide the body of a refused one.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bottle_core::policy::Reason;
use bytes::Bytes;
use http::header::HOST;
use http::request::Parts;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::{self, OnUpgrade};
use hyper_util::rt::TokioIo;

use crate::body::{Body, full};
use crate::denial::Refusal;
use crate::flow;
use crate::ledger::Seen;
use crate::request::{self, Scheme};
use crate::session::{Session, Target, deny, http1_builder};
use crate::shared::Shared;
use crate::sniff::Duplex;

/// Serves one connection to the proxy port to its end, the tunnel included.
pub(crate) async fn serve(shared: Arc<Shared>, stream: Box<dyn Duplex>) {
    let front = Arc::new(Front {
        shared: Arc::clone(&shared),
        tunnel: Mutex::new(None),
        sessions: Mutex::new(HashMap::new()),
    });
    let service = {
        let front = Arc::clone(&front);
        service_fn(move |request| {
            let front = Arc::clone(&front);
            async move { Ok::<_, Infallible>(front.answer(request).await) }
        })
    };
    let served = http1_builder()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        if error.is_parse() {
            let refusal = Refusal::new(
                Reason::BadRequest,
                format!("the proxy request is not well-formed HTTP: {error}"),
            );
            shared.refuse_flow(
                &Target::Address(crate::GATEWAY),
                crate::PROXY_PORT,
                &refusal,
            );
        }
        return;
    }
    let tunnel = front
        .tunnel
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(Tunnel {
        target,
        port,
        upgrade,
    }) = tunnel
        && let Ok(stream) = upgrade.await
    {
        flow::serve(shared, target, port, Box::new(TokioIo::new(stream))).await;
    }
}

/// One connection to the proxy port.
struct Front {
    shared: Arc<Shared>,
    tunnel: Mutex<Option<Tunnel>>,
    /// What absolute-form requests on this connection have opened so far.
    sessions: Mutex<HashMap<(Target, u16), Arc<Session>>>,
}

/// An accepted CONNECT.
struct Tunnel {
    target: Target,
    port: u16,
    upgrade: OnUpgrade,
}

impl Front {
    async fn answer(&self, mut request: Request<Incoming>) -> Response<Body> {
        if request.method() == Method::CONNECT {
            let upgrade = upgrade::on(&mut request);
            let (parts, _) = request.into_parts();
            return self.connect(&parts, upgrade);
        }
        let Some(authority) = request.uri().authority() else {
            return self.refuse(
                &request,
                &Refusal::new(
                    Reason::BadRequest,
                    "this is the bottle's proxy: it takes CONNECT and requests for http:// URLs",
                ),
            );
        };
        if request.uri().scheme_str() != Some(Scheme::Http.as_str()) {
            return self.refuse(
                &request,
                &Refusal::new(
                    Reason::BadRequest,
                    "a proxy request is for an http:// URL; use CONNECT for https://",
                ),
            );
        }
        let Some((target, port)) = parse_target(authority.as_str()) else {
            return self.refuse(&request, &not_a_host());
        };
        let port = port.unwrap_or_else(|| Scheme::Http.default_port());
        let session = self.session(target, port);
        session.answer(request).await
    }

    /// Takes a CONNECT, or refuses it where nothing inside could explain why.
    fn connect(&self, parts: &Parts, upgrade: OnUpgrade) -> Response<Body> {
        let authority = parts.uri.authority().map_or("", |a| a.as_str());
        let Some((target, Some(port))) = parse_target(authority) else {
            return deny(&self.shared, &self.seen(parts), &not_a_host());
        };
        let named = target.clone();
        // A client may have looked the name up by itself.
        let target = match target {
            Target::Address(address) => flow::target_of(&self.shared, address),
            Target::Name(_) => target,
        };
        let seen = request::describe(
            &self.shared.scanner,
            target.shown(&self.shared),
            port,
            parts,
        );
        let seen = Seen { path: None, ..seen };
        if let Err(refusal) = request::secrets(&self.shared.scanner, parts) {
            return deny(&self.shared, &seen, &refusal);
        }
        if let Some(host) = parts.headers.get(HOST)
            && parse_host(host.as_bytes()).is_none_or(|(host, host_port)| {
                host != named || host_port.is_some_and(|host_port| host_port != port)
            })
        {
            let refusal = Refusal::new(
                Reason::AuthorityMismatch,
                "the Host header of the CONNECT is not the host it connects to",
            );
            return deny(&self.shared, &seen, &refusal);
        }
        if let Err(refusal) = self.shared.judge(&target, port)
            && !self.shared.speaks_http(port)
        {
            return deny(&self.shared, &seen, &refusal);
        }
        *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(Tunnel {
            target,
            port,
            upgrade,
        });
        Response::new(full(Bytes::new()))
    }

    fn session(&self, target: Target, port: u16) -> Arc<Session> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() >= MAX_SESSIONS {
            sessions.clear();
        }
        Arc::clone(
            sessions
                .entry((target, port))
                .or_insert_with_key(|(target, port)| {
                    let verdict = self.shared.judge(target, *port).and_then(|leave| {
                        if *port == Scheme::Http.default_port() {
                            Ok(leave)
                        } else {
                            Err(Refusal::new(
                                Reason::BadProtocol,
                                format!("port {port} is allowed for TLS only; use https://"),
                            ))
                        }
                    });
                    Arc::new(Session::new(
                        &self.shared,
                        target.clone(),
                        *port,
                        Scheme::Http,
                        verdict,
                    ))
                }),
        )
    }

    fn refuse(&self, request: &Request<Incoming>, refusal: &Refusal) -> Response<Body> {
        let (parts, ()) = Request::builder()
            .method(request.method())
            .uri(request.uri())
            .body(())
            .unwrap_or_default()
            .into_parts();
        deny(&self.shared, &self.seen(&parts), refusal)
    }

    fn seen(&self, parts: &Parts) -> Seen {
        request::describe(
            &self.shared.scanner,
            crate::GATEWAY.to_string(),
            crate::PROXY_PORT,
            parts,
        )
    }
}

fn parse_host(text: &[u8]) -> Option<(Target, Option<u16>)> {
    parse_target(str::from_utf8(text).ok()?)
}

/// Parses `name[:port]`, `v4[:port]` or `[v6][:port]`.
fn parse_target(text: &str) -> Option<(Target, Option<u16>)> {
    if let Some((name, port)) = request::parse_authority(text.as_bytes()) {
        return Some((Target::Name(name), port));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().ok()?)),
        Some(_) | None => (text, None),
    };
    let address = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(inner) => IpAddr::V6(inner.parse().ok()?),
        None => IpAddr::V4(host.parse().ok()?),
    };
    Some((Target::Address(address.to_canonical()), port))
}

fn not_a_host() -> Refusal {
    Refusal::new(
        Reason::BadRequest,
        "the proxy request names no host and port (as `example.com:443`)",
    )
}

const MAX_SESSIONS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_target_is_a_name_or_an_address_with_a_port() {
        let name = Target::Name("a.test".parse().unwrap());
        assert_eq!(parse_target("A.test.:443"), Some((name, Some(443))));
        let v4 = Target::Address("10.0.0.1".parse().unwrap());
        assert_eq!(parse_target("10.0.0.1:22"), Some((v4.clone(), Some(22))));
        assert_eq!(parse_target("[::ffff:10.0.0.1]:22"), Some((v4, Some(22))));
        assert_eq!(parse_target("user@a.test:443"), None);
        assert_eq!(parse_target("0x7f000001:443"), None);
        assert_eq!(parse_target("a.test:99999"), None);
    }
}
