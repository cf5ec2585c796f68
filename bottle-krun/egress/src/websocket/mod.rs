//! WebSockets: the handshake is a judged request, every message after it is scanned.
//!
//! Extensions are not offered to the upstream, so that messages are what they seem. Each message is
//! scanned by itself: a secret cut in two of them is not found.

mod frame;
mod relay;

use std::sync::Arc;

use bottle_core::policy::Reason;
use http::header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::upgrade::{self, OnUpgrade};
use hyper_util::rt::TokioIo;
use rustls::crypto::SecureRandom;
use tokio::io::split;
use tokio::sync::OwnedSemaphorePermit;

use crate::body::{Body, Held, Relayed};
use crate::denial::Refusal;
use crate::ledger::Allowed;
use crate::pump::Notes;
use crate::request;
use crate::scan::{Finding, Treatment};
use crate::upstream::Upstream;
use relay::{End, Watch};

/// Says whether a request asks for a WebSocket, in the one way that is understood.
pub(crate) fn is_asked(parts: &Parts) -> bool {
    let is = |name, wanted: &str| {
        let mut values = parts.headers.get_all(name).iter();
        let value = values.next().map(HeaderValue::as_bytes);
        values.next().is_none()
            && value.is_some_and(|value| {
                value
                    .split(|byte| *byte == b',')
                    .any(|word| word.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes()))
            })
    };
    let upgrade = parts.headers.get(UPGRADE).map(HeaderValue::as_bytes);
    parts.method == Method::GET
        && parts.version == Version::HTTP_11
        && upgrade.is_some_and(|value| value.eq_ignore_ascii_case(b"websocket"))
        && is(CONNECTION, "upgrade")
        && parts.headers.contains_key("sec-websocket-key")
}

/// A WebSocket whose handshake is done.
pub(crate) struct WebSocket {
    guest: OnUpgrade,
    upstream: OnUpgrade,
    notes: Notes,
    _allowed: Allowed,
    _permit: Arc<OwnedSemaphorePermit>,
}

/// Carries the handshake that was judged; returns the answer, and what follows it if it succeeds.
///
/// # Errors
///
/// A refusal if the upstream cannot be reached or answers with what nobody asked for.
pub(crate) async fn open(
    upstream: &Upstream,
    mut parts: Parts,
    guest: OnUpgrade,
    notes: Notes,
    permit: Arc<OwnedSemaphorePermit>,
) -> Result<(Response<Body>, Option<WebSocket>), Refusal> {
    if notes.terms.credential.is_some() {
        return Err(Refusal::new(
            Reason::BadRequest,
            "a WebSocket is not allowed where a credential is put in",
        ));
    }
    let terms = &notes.terms;
    let mut allowed = notes.ledger.allowed(notes.seen.clone(), terms.rule.clone());
    request::rewrite(&mut parts);
    upgrade_headers(&mut parts.headers);
    parts.headers.remove("sec-websocket-extensions");
    let body = Held::new([], None).boxed_unsync();
    let sent = upstream
        .upgrade(Request::from_parts(parts, body), terms.reach)
        .await;
    let (address, mut answer) = match sent {
        Ok(sent) => sent,
        Err(error) => {
            allowed.withdraw();
            return Err(error.refusal());
        }
    };
    allowed.dialled = Some(address);
    allowed.status = Some(answer.status().as_u16());
    let is_open = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
    let is_right = answer
        .headers()
        .get(UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && !answer.headers().contains_key("sec-websocket-extensions");
    if is_open && !is_right {
        return Err(Refusal::new(
            Reason::UpstreamUnreachable,
            "the host answered with a protocol that was not asked for",
        ));
    }
    let upstream = is_open.then(|| upgrade::on(&mut answer));
    let (mut head, body) = answer.into_parts();
    request::strip_hop_by_hop(&mut head.headers);
    head.headers.remove("alt-svc");
    let Some(upstream) = upstream else {
        let relayed = Relayed {
            answer: body,
            refused: None,
            _permit: permit,
        };
        return Ok((Response::from_parts(head, relayed.boxed_unsync()), None));
    };
    upgrade_headers(&mut head.headers);
    let empty = Held::new([], None).boxed_unsync();
    let socket = WebSocket {
        guest,
        upstream,
        notes,
        _allowed: allowed,
        _permit: permit,
    };
    Ok((Response::from_parts(head, empty), Some(socket)))
}

fn upgrade_headers(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

impl WebSocket {
    /// Carries messages both ways until either side ends.
    pub(crate) async fn serve(self, random: &'static dyn SecureRandom) {
        let (Ok(guest), Ok(upstream)) = (self.guest.await, self.upstream.await) else {
            return;
        };
        let (guest_read, guest_write) = split(TokioIo::new(guest));
        let (upstream_read, upstream_write) = split(TokioIo::new(upstream));
        let notes = &self.notes;
        let scanner = &notes.scanner;
        let out = Watch {
            scanner: Arc::clone(scanner),
            treatment: Treatment::of(notes.terms.dlp),
            random: Some(random),
        };
        // What comes in is framed and counted as strictly; a secret in it is no leak.
        let back = Watch {
            scanner: Arc::clone(scanner),
            treatment: Treatment::Ignore,
            random: None,
        };
        let detail =
            |finding: &Finding| format!("WebSocket message contains secret: {}", finding.name);
        let tell = |findings: &[Finding]| {
            for finding in findings {
                let detail = detail(finding);
                notes.ledger.secret_seen(&notes.seen, &notes.terms, detail);
            }
        };
        let going = relay::carry(&out, guest_read, upstream_write, tell);
        let coming = relay::carry(&back, upstream_read, guest_write, |_| {});
        tokio::pin!(going, coming);
        let end = tokio::select! {
            end = &mut going => match end {
                // The guest has said its last word; the upstream's may be under way.
                End::Over => coming.await,
                end @ (End::Broken | End::Secret(_)) => end,
            },
            end = &mut coming => match end {
                End::Over => going.await,
                end @ (End::Broken | End::Secret(_)) => end,
            },
        };
        let refusal = match end {
            End::Over => return,
            End::Broken => Refusal::new(Reason::BadProtocol, "what was sent is no WebSocket frame"),
            End::Secret(finding) => Refusal::new(Reason::SecretFound, detail(&finding)),
        };
        let refusal = refusal.under(&notes.terms.rule);
        notes.ledger.refused(&notes.seen, &refusal);
    }
}
