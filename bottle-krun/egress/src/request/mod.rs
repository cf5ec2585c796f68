//! Judges the head of one request: authority, method, target, headers. Pure.

use std::sync::Arc;

use bottle_core::policy::{Dlp, HostName, MAX_METHOD, Reason};
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue,
    TE, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::uri::Authority;
use http::{Method, Version};

use crate::denial::Refusal;
use crate::ledger::Seen;
use crate::scan::{ContentEncoding, Finding, Scanner};
use crate::session::Terms;
use crate::websocket;

/// How the guest's side of the flow is protected.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    pub(crate) fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// Describes a request in words that may be recorded: what holds a secret is left out.
pub(crate) fn describe(scanner: &Arc<Scanner>, host: String, port: u16, parts: &Parts) -> Seen {
    let clean = |text: &str| scanner.scan_text(text.as_bytes()).is_none();
    let method = parts.method.as_str();
    let path = parts.uri.path();
    let cut: String = path.chars().take(MAX_RECORDED_PATH).collect();
    // Either alone may be clean while the two in sequence are not; both were judged as one below.
    Seen {
        host: if clean(&host) {
            host
        } else {
            WITHHELD.to_owned()
        },
        port,
        method: (method.len() <= MAX_METHOD && clean(method)).then(|| method.to_owned()),
        path: clean(path).then_some(cut),
    }
}

/// The flow that a request came on.
pub(crate) struct Flow<'a> {
    pub(crate) name: &'a HostName,
    pub(crate) port: u16,
    pub(crate) scheme: Scheme,
}

/// Judges everything of a request but its body, for a flow, under the terms of its rule.
pub(crate) fn judge(
    scanner: &Arc<Scanner>,
    parts: &Parts,
    flow: &Flow<'_>,
    terms: &Terms,
) -> Result<(), Refusal> {
    if terms.dlp == Dlp::Block {
        secrets(scanner, parts)?;
    }
    method_and_target(parts)?;
    if terms.hangs_on_method {
        one_method(&parts.headers)?;
    }
    authority(parts, flow)?;
    framing(&parts.headers)
}

/// Refuses headers by which some servers take a request for one of another method.
fn one_method(headers: &HeaderMap) -> Result<(), Refusal> {
    match OVERRIDES.iter().find(|name| headers.contains_key(**name)) {
        None => Ok(()),
        Some(name) => Err(Refusal::new(
            Reason::BadRequest,
            format!("{name} is not allowed where a rule names methods"),
        )),
    }
}

const OVERRIDES: [&str; 3] = [
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
];

/// Does to the secrets in a judged head what its rule says, if that is not to refuse it; returns
/// what is to be told of them.
pub(crate) fn treat(
    scanner: &Arc<Scanner>,
    parts: &mut Parts,
    dlp: Dlp,
) -> Result<Vec<String>, Refusal> {
    match dlp {
        Dlp::Block | Dlp::Off => Ok(Vec::new()),
        Dlp::Warn => Ok(secrets(scanner, parts)
            .err()
            .map(|refusal| refusal.detail)
            .into_iter()
            .collect()),
        Dlp::Redact => {
            let found = overwrite(scanner, &mut parts.headers);
            // What is left stands where it cannot be overwritten.
            secrets(scanner, parts)?;
            Ok(found
                .into_iter()
                .map(|finding| format!("request header contains secret: {}", finding.name))
                .collect())
        }
    }
}

/// Overwrites secrets in the values of headers or trailers.
pub(crate) fn overwrite(scanner: &Scanner, headers: &mut HeaderMap) -> Vec<Finding> {
    let mut found = Vec::new();
    for value in headers.values_mut() {
        let mut text = value.as_bytes().to_vec();
        let more = scanner.overwrite(&mut text);
        if !more.is_empty()
            && let Ok(text) = HeaderValue::from_bytes(&text)
        {
            *value = text;
            found.extend(more);
        }
    }
    found
}

/// Looks for secrets in method, target and headers.
pub(crate) fn secrets(scanner: &Arc<Scanner>, parts: &Parts) -> Result<(), Refusal> {
    let found = |place: &str, finding: Finding| {
        Refusal::new(
            Reason::SecretFound,
            format!("request {place} contains secret: {}", finding.name),
        )
    };
    if let Some(finding) = scanner.scan_text(parts.method.as_str().as_bytes()) {
        return Err(found("method", finding));
    }
    for text in [
        parts.uri.authority().map_or("", Authority::as_str),
        parts
            .uri
            .path_and_query()
            .map_or("", |target| target.as_str()),
    ] {
        if let Some(finding) = scanner.scan_text(text.as_bytes()) {
            return Err(found("URL", finding));
        }
    }
    headers(scanner, &parts.headers).map_or(Ok(()), |finding| Err(found("header", finding)))
}

/// Looks for secrets in header or trailer names and values.
pub(crate) fn headers(scanner: &Arc<Scanner>, headers: &HeaderMap) -> Option<Finding> {
    headers.iter().find_map(|(name, value)| {
        scanner
            .scan_text(name.as_str().as_bytes())
            .or_else(|| scanner.scan_text(value.as_bytes()))
            .or_else(|| scanner.scan_text(&basic_credentials(name, value)?))
    })
}

/// Decodes `Basic` credentials: a token used as a password hides in base64.
fn basic_credentials(name: &HeaderName, value: &HeaderValue) -> Option<Vec<u8>> {
    if name != AUTHORIZATION && name.as_str() != "proxy-authorization" {
        return None;
    }
    let (kind, text) = value.as_bytes().split_at_checked(6)?;
    kind.eq_ignore_ascii_case(b"basic ")
        .then(|| decode_base64(text.trim_ascii()))
}

/// Decodes base64 of either alphabet, skipping what is in neither.
fn decode_base64(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut bits, mut held) = (0_u32, 0_u32);
    for byte in text {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => continue,
        };
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held & 0xff) as u8);
        }
    }
    out
}

fn method_and_target(parts: &Parts) -> Result<(), Refusal> {
    let bad = |detail: &str| Err(Refusal::new(Reason::BadRequest, detail));
    if parts.method == Method::CONNECT {
        return bad("CONNECT inside a connection is not allowed");
    }
    if parts.method == Method::TRACE {
        return bad("TRACE is not allowed");
    }
    if parts.method.as_str().len() > MAX_METHOD {
        return bad("the method is too long");
    }
    let path = parts.uri.path();
    let is_whole_server = path == "*" && parts.method == Method::OPTIONS;
    if !path.starts_with('/') && !is_whole_server {
        return bad("the request target is not a path");
    }
    Ok(())
}

/// Refuses to change the protocol, but for a WebSocket where the connection can become one.
pub(crate) fn upgrade(parts: &Parts, may_upgrade: bool) -> Result<(), Refusal> {
    let is_asked = parts.headers.contains_key(UPGRADE) && !is_h2c(&parts.headers);
    if is_asked && !(may_upgrade && websocket::is_asked(parts)) {
        return Err(Refusal::new(
            Reason::BadRequest,
            "changing the protocol (Upgrade) is not allowed, but for a WebSocket of HTTP/1.1",
        ));
    }
    Ok(())
}

/// `Upgrade: h2c` is an offer that a server may pass over; it is removed like any hop-by-hop header.
fn is_h2c(headers: &HeaderMap) -> bool {
    headers
        .get_all(UPGRADE)
        .iter()
        .all(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"h2c"))
}

/// The name in `Host`, in `:authority` and in an absolute target has to be the flow's.
fn authority(parts: &Parts, flow: &Flow<'_>) -> Result<(), Refusal> {
    let Flow { name, port, scheme } = *flow;
    let mismatch = |detail: String| Err(Refusal::new(Reason::AuthorityMismatch, detail));
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return mismatch("the request has more than one Host header".to_owned());
    }
    if let Some(given) = parts.uri.scheme_str()
        && given != scheme.as_str()
    {
        return mismatch(format!(
            "the request says {given}, the connection is {}",
            scheme.as_str()
        ));
    }
    let mut named = false;
    for text in [
        parts
            .uri
            .authority()
            .map(|authority| authority.as_str().as_bytes()),
        host.map(HeaderValue::as_bytes),
    ]
    .into_iter()
    .flatten()
    {
        named = true;
        match parse_authority(text) {
            Some((given, given_port)) if given == *name && given_port.is_none_or(|p| p == port) => {
            }
            Some((given, Some(given_port))) => {
                return mismatch(format!(
                    "the request names {given}:{given_port}, the connection is to {name}:{port}"
                ));
            }
            Some((given, None)) => {
                return mismatch(format!(
                    "the request names {given}, the connection is to {name}"
                ));
            }
            None => {
                return mismatch(format!(
                    "the request's host is not a name, the connection is to {name}"
                ));
            }
        }
    }
    if !named {
        return mismatch(format!(
            "the request names no host, the connection is to {name}"
        ));
    }
    Ok(())
}

/// Parses `name[:port]`; user information, addresses and anything else are `None`.
pub(crate) fn parse_authority(text: &[u8]) -> Option<(HostName, Option<u16>)> {
    let text = str::from_utf8(text).ok()?;
    match text.split_once(':') {
        None => Some((text.parse().ok()?, None)),
        Some((name, port)) => {
            if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            Some((name.parse().ok()?, Some(port.parse().ok()?)))
        }
    }
}

/// Refuses what another reader could frame in another way.
fn framing(headers: &HeaderMap) -> Result<(), Refusal> {
    let bad = |detail: &str| Err(Refusal::new(Reason::BadRequest, detail));
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return bad("the only transfer coding that is understood is chunked");
        }
        if headers.contains_key(CONTENT_LENGTH) {
            return bad("the request has both Content-Length and Transfer-Encoding");
        }
    }
    if headers.get_all(CONTENT_LENGTH).iter().count() > 1 {
        return bad("the request has more than one Content-Length");
    }
    Ok(())
}

/// Reads how the body is encoded, as far as it can be decoded for scanning.
pub(crate) fn encoding(headers: &HeaderMap) -> Result<ContentEncoding, Refusal> {
    let mut values = headers.get_all("content-encoding").iter();
    let known = match (values.next(), values.next()) {
        (None, _) => Some(ContentEncoding::Identity),
        (Some(value), None) => ContentEncoding::parse(value.as_bytes()),
        (Some(_), Some(_)) => None,
    };
    known.ok_or_else(|| {
        Refusal::new(
            Reason::BadRequest,
            "request body is encoded in a way that cannot be scanned (use gzip, or none)",
        )
    })
}

/// Removes what concerns one connection only, in a request or an answer.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // These carry meaning end to end; naming them is an attempt to have them dropped.
        .filter(|name| name != CONTENT_LENGTH && name != HOST && name != AUTHORIZATION)
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [CONNECTION, TE, TRANSFER_ENCODING, UPGRADE, EXPECT] {
        headers.remove(name);
    }
    for name in [
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "http2-settings",
    ] {
        headers.remove(name);
    }
}

/// Readies a judged request for the upstream; the authority is set where it is sent.
pub(crate) fn rewrite(parts: &mut Parts) {
    let wants_trailers = parts.version == Version::HTTP_2
        && parts
            .headers
            .get(TE)
            .is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    strip_hop_by_hop(&mut parts.headers);
    if wants_trailers {
        parts
            .headers
            .insert(TE, HeaderValue::from_static("trailers"));
    }
}

const MAX_RECORDED_PATH: usize = 1024;
pub(crate) const WITHHELD: &str = "(withheld: it contains a secret)";

#[cfg(test)]
mod tests;
