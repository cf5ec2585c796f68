//! From a 401 to an `Authorization` header.
//!
//! ```text
//! WWW-Authenticate: Basic               -> user and password themselves
//! WWW-Authenticate: Bearer realm=URL    -> a token, for pulling this repository and nothing else
//!     anonymous                         GET URL?service=…&scope=repository:…:pull
//!     user and password                 the same with `Authorization: Basic`
//!     identity token                    POST URL, grant_type=refresh_token
//! ```
//!
//! The realm is the registry's word: it is called by TLS only, unless plain HTTP was named for it
//! or for the registry at the same host. It is not followed anywhere else.

use std::io::Read;

use serde::Deserialize;
use zeroize::Zeroizing;

use super::client::{Client, Endpoint};
use super::credentials::{self, Credentials};
use super::error::RegistryError;
use super::http::{Request, Response};
use super::url::{Url, encode};

/// A value of `Authorization`.
pub(crate) type Authorization = Zeroizing<String>;

/// A challenge of `WWW-Authenticate`.
#[derive(Debug, Eq, PartialEq)]
struct Challenge {
    /// In lower case.
    scheme: String,
    /// Names in lower case.
    params: Vec<(String, String)>,
}

impl Challenge {
    fn param(&self, name: &str) -> Option<&str> {
        let mut params = self.params.iter();
        params.find_map(|(known, value)| (known == name).then_some(value.as_str()))
    }
}

/// Answers the challenge in `refused`; `None` if there is nothing to answer with.
///
/// The second value tells whether stored credentials were used.
pub(crate) fn answer(
    client: &Client,
    endpoint: &Endpoint,
    refused: &Response,
) -> Result<(Option<Authorization>, bool), RegistryError> {
    let challenges: Vec<Challenge> = refused.all("www-authenticate").flat_map(parse).collect();
    let find = |scheme: &str| challenges.iter().find(|known| known.scheme == scheme);
    let repository = client.repository();
    let stored = credentials::find(client.options(), &endpoint.host, repository);
    let stored = stored.map_err(|source| RegistryError::Credentials {
        host: endpoint.host.clone(),
        source,
    })?;
    if let Some(bearer) = find("bearer") {
        let token = token(client, endpoint, bearer, stored.as_ref())?;
        return Ok((Some(token), stored.is_some()));
    }
    if find("basic").is_some() {
        let basic = stored.as_ref().and_then(Credentials::basic);
        return Ok((basic, stored.is_some()));
    }
    Ok((None, stored.is_some()))
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

fn token(
    client: &Client,
    endpoint: &Endpoint,
    challenge: &Challenge,
    stored: Option<&Credentials>,
) -> Result<Authorization, RegistryError> {
    let realm = challenge.param("realm").unwrap_or_default();
    let refuse = |reason: &str| RegistryError::Token {
        host: endpoint.host.clone(),
        realm: realm.split('?').next().unwrap_or_default().to_owned(),
        reason: reason.to_owned(),
    };
    let mut url = Url::parse(realm).ok_or_else(|| refuse("it is no URL of a server"))?;
    if !url.tls && !client.may_be_plain(&url, endpoint) {
        return Err(refuse(
            "it is plain HTTP; name that host as a plain-HTTP registry if you trust the way to it",
        ));
    }
    let service = challenge.param("service").unwrap_or_default();
    let scope = format!("repository:{}:pull", client.repository());
    let basic = stored.and_then(Credentials::basic);
    let mut headers = vec![("Accept", "application/json")];
    let mut form = None;
    if let Some(Credentials::IdentityToken(token)) = stored {
        form = Some(Zeroizing::new(format!(
            "grant_type=refresh_token&client_id=bottle&service={}&scope={}&refresh_token={}",
            encode(service),
            encode(&scope),
            encode(token)
        )));
    } else {
        let joint = if url.target.contains('?') { '&' } else { '?' };
        url.target.push(joint);
        if !service.is_empty() {
            url.target
                .push_str(&format!("service={}&", encode(service)));
        }
        url.target.push_str(&format!("scope={}", encode(&scope)));
        if let Some(basic) = &basic {
            headers.push(("Authorization", basic));
        }
    }
    let request = Request {
        url: &url,
        headers: &headers,
        form: form.as_deref().map(String::as_str),
    };
    let mut response = client.exchange(&request, endpoint, "a token")?;
    match response.status {
        200 => {}
        401 | 403 if stored.is_some() => {
            return Err(RegistryError::Unauthorized {
                host: endpoint.host.clone(),
                repository: client.repository().to_owned(),
                had_credentials: true,
                message: String::new(),
            });
        }
        401 | 403 => return Err(refuse("it gives no token without a login")),
        status => return Err(refuse(&format!("it answered with status {status}"))),
    }
    response.body.wait_at_most(Some(client.document_limit()));
    let mut bytes = Zeroizing::new(Vec::with_capacity(16 << 10));
    let limited = (&mut response.body).take(MAX_TOKEN + 1);
    let read = { limited }.read_to_end(&mut bytes);
    if let Err(error) = read {
        return Err(client.failed(error, &url, "a token"));
    }
    if bytes.len() as u64 > MAX_TOKEN {
        return Err(refuse("its answer is too long"));
    }
    // What serde says may quote the token.
    let answer: TokenAnswer =
        serde_json::from_slice(&bytes).map_err(|_| refuse("its answer is malformed"))?;
    let token = answer
        .token
        .filter(|token| !token.is_empty())
        .or(answer.access_token);
    let token = Zeroizing::new(token.unwrap_or_default());
    // It becomes part of a head.
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(refuse("its answer has no token"));
    }
    Ok(Zeroizing::new(format!("Bearer {}", token.as_str())))
}

/// Parses what a `WWW-Authenticate` header lists; what is malformed is left out.
fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=', '"']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if rest.is_empty() {
            return challenges;
        }
        let Some(value) = after.trim_start().strip_prefix('=') else {
            if word.is_empty() {
                // A quotation out of place.
                rest = &rest[1..];
                continue;
            }
            challenges.push(Challenge {
                scheme: word.to_ascii_lowercase(),
                params: Vec::new(),
            });
            rest = after;
            continue;
        };
        let (value, after) = value_of(value.trim_start());
        if let Some(challenge) = challenges.last_mut() {
            challenge.params.push((word.to_ascii_lowercase(), value));
        }
        rest = after;
    }
}

/// A token or quoted string at the start of `text`, and what follows.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (value, &quoted[at + 1..]),
            _ => value.push(c),
        }
    }
    (value, "")
}

const MAX_TOKEN: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges_are_read_in_every_spelling() {
        let list = parse(
            "Bearer realm=\"https://a.test/token?x=1,2\",service=a.test , SCOPE=\"q\\\"q\",  basic realm=x",
        );
        let [bearer, basic] = list.as_slice() else {
            panic!("{list:?}");
        };
        assert_eq!(bearer.scheme, "bearer");
        assert_eq!(bearer.param("realm"), Some("https://a.test/token?x=1,2"));
        assert_eq!(bearer.param("service"), Some("a.test"));
        assert_eq!(bearer.param("scope"), Some("q\"q"));
        assert_eq!(
            (basic.scheme.as_str(), basic.param("realm")),
            ("basic", Some("x"))
        );
        assert_eq!(parse("Negotiate").len(), 1);
        assert_eq!(parse("realm=\"x\"").len(), 0);
        assert_eq!(
            parse("Bearer realm=\"never ends")[0].param("realm"),
            Some("never ends")
        );
    }

    proptest! {
        #[test]
        fn no_header_makes_the_parser_panic_or_loop(text in ".{0,80}") {
            parse(&text);
        }

        #[test]
        fn no_near_miss_makes_the_parser_panic(text in "[Ba=\", \\\\]{0,30}") {
            parse(&text);
        }
    }
}
