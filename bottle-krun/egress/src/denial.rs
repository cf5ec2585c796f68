//! How a refusal is put to its reader: the guest, as one explained response.
//!
//! No word of it is matched text: a secret is called by its kind.

use std::num::NonZero;

use bottle_core::policy::{HostName, Reason, Rule};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{HeaderName, Response, StatusCode};
use serde::Serialize;

use crate::body::{Body, full};

/// A refusal with everything its reader is told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    /// The reason in words.
    pub(crate) detail: String,
    /// The rule that let the request come this far, as written.
    pub(crate) rule: Option<String>,
    /// The rule whose absence is the reason, as it would be written.
    pub(crate) missing: Option<String>,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            rule: None,
            missing: None,
        }
    }

    /// A refusal for want of a rule for this name and port.
    pub(crate) fn unlisted(reason: Reason, name: &HostName, port: u16) -> Self {
        let detail = if reason == Reason::PortNotAllowed {
            format!("port {port} of {name} is not allowed")
        } else {
            format!("{name} is not allowed")
        };
        let missing = NonZero::new(port).map(|port| Rule::for_host(name.clone(), port));
        Self {
            missing: missing.map(|rule| rule.to_string()),
            ..Self::new(reason, detail)
        }
    }

    /// A refusal for a rule that denies.
    pub(crate) fn denied(rule: &Rule, name: &HostName) -> Self {
        let what = if rule.to_string() == format!("deny {}", rule.host()) {
            "is denied"
        } else {
            "is denied in part, and this is of that part"
        };
        Self::new(Reason::DeniedByRule, format!("{name} {what}")).under(&rule.to_string())
    }

    /// A refusal because no rule allows this method, or this path.
    pub(crate) fn uncovered(reason: Reason, name: &HostName, method: &str) -> Self {
        let detail = if reason == Reason::MethodNotAllowed {
            format!("{method} is not allowed on this path of {name}")
        } else {
            format!("this path of {name} is not allowed")
        };
        Self::new(reason, detail)
    }

    /// Names the rule under which the request was judged.
    pub(crate) fn under(self, rule: &str) -> Self {
        Self {
            rule: Some(rule.to_owned()),
            ..self
        }
    }

    /// Returns the response that explains the refusal recorded as `event`.
    pub(crate) fn response(&self, event: &str) -> Response<Body> {
        let wording = wording(self.reason);
        let problem = Problem {
            kind: "about:blank",
            title: wording.title,
            status: wording.status.as_u16(),
            detail: &self.detail,
            verdict: "refused",
            reason: self.reason,
            rule: self.rule.as_deref(),
            missing_rule: self.missing.as_deref(),
            event,
            help: self.help(event),
        };
        // Strings and numbers always serialize.
        let mut text = serde_json::to_vec_pretty(&problem).unwrap_or_default();
        text.push(b'\n');
        let mut response = Response::new(full(Bytes::from(text)));
        *response.status_mut() = wording.status;
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(
            HeaderName::from_static("x-content-type-options"),
            HeaderValue::from_static("nosniff"),
        );
        if let Ok(event) = HeaderValue::from_str(event) {
            headers.insert(HeaderName::from_static("x-bottle-event"), event);
        }
        if let Some(block) = wording.block {
            for (name, value) in [
                ("x-pipelock-block-reason", block.code),
                ("x-pipelock-block-reason-version", "1"),
                ("x-pipelock-block-reason-severity", block.severity),
                ("x-pipelock-block-reason-retry", block.retry),
            ] {
                headers.insert(
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                );
            }
        }
        response
    }

    fn help(&self, event: &str) -> String {
        let start = match &self.missing {
            Some(rule) => format!("whoever starts the bottle can add `--{rule}`"),
            None => wording(self.reason).help.to_owned(),
        };
        format!("{start}; the decision is event {event} of this bottle")
    }
}

/// The body of a denial (RFC 9457).
#[derive(Serialize)]
struct Problem<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    verdict: &'static str,
    reason: Reason,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    missing_rule: Option<&'a str>,
    event: &'a str,
    help: String,
}

struct Wording {
    status: StatusCode,
    title: &'static str,
    help: &'static str,
    block: Option<Block>,
}

/// The headers by which agents already know a block.
struct Block {
    code: &'static str,
    severity: &'static str,
    retry: &'static str,
}

fn wording(reason: Reason) -> Wording {
    let refused = |title, help, code, severity, retry| Wording {
        status: StatusCode::FORBIDDEN,
        title,
        help,
        block: Some(Block {
            code,
            severity,
            retry,
        }),
    };
    let failed = |title, help| Wording {
        status: StatusCode::BAD_GATEWAY,
        title,
        help,
        block: None,
    };
    match reason {
        Reason::AddressNotAllowed => refused(
            "The host's address may not be reached from a bottle",
            "whoever starts the bottle can name the address with `--resolve HOST:PORT:ADDR`",
            "ssrf_private_ip",
            "critical",
            "policy",
        ),
        Reason::AnswerWithheld => failed(
            "The answer cannot be passed on",
            "the host sends what could hold a credential of the bottle's owner",
        ),
        Reason::AuthorityMismatch => refused(
            "The request names different hosts",
            "use the same host in the address, in TLS and in `Host`",
            "authority_mismatch",
            "critical",
            "none",
        ),
        Reason::BadProtocol => refused(
            "The protocol is not the one that this port is allowed for",
            "use HTTPS, or HTTP on port 80",
            "parse_error",
            "warn",
            "none",
        ),
        Reason::BadRequest => refused(
            "The request cannot be judged",
            "send a plain HTTP request",
            "bad_request",
            "warn",
            "none",
        ),
        Reason::CredentialUnavailable => failed(
            "The credential for the host could not be had",
            "whoever starts the bottle sees why in its log",
        ),
        Reason::DeniedByRule => refused(
            "A rule forbids it",
            "do without it, or ask whoever started the bottle",
            "request_policy_deny",
            "warn",
            "policy",
        ),
        Reason::HostNotAllowed => refused(
            "The host is not allowed",
            "ask whoever started the bottle",
            "domain_blocklist",
            "warn",
            "policy",
        ),
        Reason::IpLiteral => refused(
            "Addresses are not allowed, only names",
            "use the host's name",
            "request_policy_deny",
            "warn",
            "none",
        ),
        Reason::LimitReached => refused(
            "A limit of the bottle was reached",
            "try again later with fewer at once",
            "rate_limit",
            "warn",
            "transient",
        ),
        Reason::MethodNotAllowed => refused(
            "The method is not allowed",
            "ask whoever started the bottle for a rule with this method",
            "request_policy_deny",
            "warn",
            "policy",
        ),
        Reason::PathNotAllowed => refused(
            "The path is not allowed",
            "ask whoever started the bottle for a rule with this path",
            "request_policy_deny",
            "warn",
            "policy",
        ),
        Reason::PortNotAllowed => refused(
            "The port is not allowed",
            "ask whoever started the bottle",
            "request_policy_deny",
            "warn",
            "policy",
        ),
        Reason::SecretFound => refused(
            "The request carries a secret",
            "remove the secret from the request",
            "dlp_match",
            "critical",
            "none",
        ),
        Reason::UdpNotAllowed => refused(
            "UDP is not allowed",
            "use TCP",
            "request_policy_deny",
            "warn",
            "none",
        ),
        Reason::UpstreamNotResolved => failed(
            "The host could not be resolved",
            "check the name; it was looked up outside the bottle",
        ),
        Reason::UpstreamUnreachable => failed(
            "The host could not be reached",
            "try again later; the connection was made outside the bottle",
        ),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_denial_names_reason_missing_rule_and_event() {
        let name = "evil.test".parse().unwrap();
        let refusal = Refusal::unlisted(Reason::HostNotAllowed, &name, 8443);
        let response = refusal.response("abcd2345");
        assert_eq!(response.status(), 403);
        assert_eq!(
            response.headers()["x-pipelock-block-reason"],
            "domain_blocklist"
        );
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem["reason"], "host-not-allowed");
        assert_eq!(problem["missing_rule"], "allow evil.test:8443");
        assert_eq!(problem["event"], "abcd2345");
        assert_eq!(problem["status"], 403);
    }
}
