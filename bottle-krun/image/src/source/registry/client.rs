//! Requests to one repository: retries, redirects, credentials, the mirrors before the registry.

use std::collections::HashMap;
use std::fmt::{self, Debug, Formatter};
use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, SystemTime};

use bottle_core::image::DEFAULT_HOST;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use tracing::{debug, warn};

use super::auth::{self, Authorization};
use super::error::RegistryError;
use super::http::{HttpError, Proxy, Request, Response, Route, exchange};
use super::seconds;
use super::url::Url;
use crate::options::SourceOptions;

/// A registry or a mirror of it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// As references, rules and credentials spell it.
    pub(crate) host: String,
    plain: bool,
    authorization: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    value: Option<Authorization>,
    /// Made of stored credentials.
    stored: bool,
}

impl Debug for Held {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("Held(..)")
    }
}

/// What is wanted, and what errors call it.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Behind `/v2/REPOSITORY/`: `manifests/…` or `blobs/…`.
    pub(crate) path: String,
    pub(crate) accept: &'static str,
    /// The first byte that is wanted, if not all are.
    pub(crate) from: Option<u64>,
    pub(crate) what: String,
    pub(crate) kind: WantedKind,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum WantedKind {
    /// One that a document refers to.
    Blob,
    /// What the user asked for by tag or digest.
    Manifest,
}

/// Everything that is needed to talk about one repository.
#[derive(Debug)]
pub(crate) struct Client {
    options: SourceOptions,
    repository: String,
    /// The mirrors, then the registry itself.
    pub(crate) endpoints: Vec<Endpoint>,
    tls: Mutex<HashMap<Option<PathBuf>, Arc<ClientConfig>>>,
    system_roots: OnceLock<Vec<CertificateDer<'static>>>,
}

impl Client {
    pub(crate) fn new(host: &str, repository: &str, options: &SourceOptions) -> Self {
        let endpoint = |host: &str| Endpoint {
            host: host.to_owned(),
            plain: options.rule(host).is_some_and(|rule| rule.plain_http),
            authorization: Mutex::default(),
        };
        let mirrors = options.rule(host).map(|rule| rule.mirrors.as_slice());
        let mirrors = mirrors.unwrap_or_default().iter().map(String::as_str);
        Self {
            options: options.clone(),
            repository: repository.to_owned(),
            endpoints: mirrors.chain([host]).map(endpoint).collect(),
            tls: Mutex::default(),
            system_roots: OnceLock::new(),
        }
    }

    pub(crate) fn options(&self) -> &SourceOptions {
        &self.options
    }

    pub(crate) fn repository(&self) -> &str {
        &self.repository
    }

    /// How long a small document may take in all.
    pub(crate) fn document_limit(&self) -> Duration {
        self.options.timeouts.stall * 4
    }

    /// Asks one endpoint, with whatever it takes to be answered; the status is 200 or 206.
    pub(crate) fn get(
        &self,
        endpoint: &Endpoint,
        wanted: &Wanted,
    ) -> Result<Response, RegistryError> {
        let mut attempts = Attempts::default();
        loop {
            let held = endpoint.authorization.lock();
            let used = {
                let held = held.unwrap_or_else(PoisonError::into_inner);
                (held.value.clone(), held.stored)
            };
            let mut response = match self.follow(endpoint, wanted, used.0.as_ref()) {
                Ok(response) => response,
                Err(error @ RegistryError::Cut { .. }) => {
                    attempts.failed += 1;
                    if attempts.failed >= MAX_TRIES {
                        return Err(error);
                    }
                    pause(self.backoff(attempts.failed));
                    continue;
                }
                Err(error) => return Err(error),
            };
            match response.status {
                200 | 206 => return Ok(response),
                // Whoever the registry sent on to has no say in who gets its credentials.
                401 if !response.own => {
                    return Err(self.refusal(endpoint, wanted, &mut response));
                }
                401 if !attempts.authorized => {
                    attempts.authorized = true;
                    let (value, stored) = auth::answer(self, endpoint, &response)?;
                    let answerable = value.is_some();
                    let held = endpoint.authorization.lock();
                    *held.unwrap_or_else(PoisonError::into_inner) = Held { value, stored };
                    if !answerable {
                        return Err(self.unauthorized(endpoint, stored, &mut response));
                    }
                }
                401 => return Err(self.unauthorized(endpoint, used.1, &mut response)),
                429 => {
                    let asked = response.header("retry-after").and_then(retry_after);
                    attempts.limited += 1;
                    let wait =
                        asked.map_or_else(|| self.backoff(attempts.limited), Duration::from_secs);
                    if attempts.limited > MAX_LIMITED || wait > self.options.timeouts.retry_after {
                        return Err(RegistryError::TooManyRequests {
                            host: endpoint.host.clone(),
                            after: asked,
                        });
                    }
                    debug!(host = %endpoint.host, seconds = wait.as_secs(), "registry is busy");
                    pause(wait);
                }
                500.. => {
                    attempts.failed += 1;
                    if attempts.failed >= MAX_TRIES {
                        return Err(RegistryError::ServerFault {
                            host: endpoint.host.clone(),
                            what: wanted.what.clone(),
                            status: response.status,
                            tries: attempts.failed,
                            message: self.message(&mut response),
                        });
                    }
                    pause(self.backoff(attempts.failed));
                }
                _ => return Err(self.refusal(endpoint, wanted, &mut response)),
            }
        }
    }

    /// Asks once, redirects followed; credentials stay with the endpoint.
    fn follow(
        &self,
        endpoint: &Endpoint,
        wanted: &Wanted,
        authorization: Option<&Authorization>,
    ) -> Result<Response, RegistryError> {
        let start = self.url(endpoint, &wanted.path)?;
        let mut url = start.clone();
        let range = wanted.from.map(|from| format!("bytes={from}-"));
        for _ in 0..=MAX_REDIRECTS {
            let mut headers = vec![("Accept", wanted.accept)];
            headers.extend(range.as_deref().map(|range| ("Range", range)));
            if url.same_origin(&start) {
                headers.extend(authorization.map(|value| ("Authorization", value.as_str())));
            }
            let request = Request {
                url: &url,
                headers: &headers,
                form: None,
            };
            let mut response = self.exchange(&request, endpoint, &wanted.what)?;
            response.own = url.same_origin(&start);
            if !matches!(response.status, 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let location = response.header("location").unwrap_or_default();
            let Some(next) = url.join(location) else {
                return Err(RegistryError::Protocol {
                    host: url.authority(),
                    what: wanted.what.clone(),
                    reason: "it sends on to what is no URL of a server".to_owned(),
                });
            };
            if !next.tls && !self.may_be_plain(&next, endpoint) {
                return Err(RegistryError::PlainHttp {
                    host: url.authority(),
                    url: next.to_string(),
                });
            }
            url = next;
        }
        Err(RegistryError::Protocol {
            host: endpoint.host.clone(),
            what: wanted.what.clone(),
            reason: "it sends on and on".to_owned(),
        })
    }

    fn url(&self, endpoint: &Endpoint, path: &str) -> Result<Url, RegistryError> {
        let authority = if endpoint.host == DEFAULT_HOST {
            HUB_SERVER
        } else {
            &endpoint.host
        };
        let target = format!("/v2/{}/{path}", self.repository);
        let url = Url::at(!endpoint.plain, authority, target);
        url.ok_or_else(|| RegistryError::Protocol {
            host: endpoint.host.clone(),
            what: path.to_owned(),
            reason: "it is no host of a registry".to_owned(),
        })
    }

    /// True if plain HTTP was named for this host, or for the registry at the same one.
    pub(crate) fn may_be_plain(&self, url: &Url, endpoint: &Endpoint) -> bool {
        let same_host = || {
            let own = Url::at(false, &endpoint.host, String::new());
            own.is_some_and(|own| own.host == url.host)
        };
        let named = self.options.rule(&url.authority());
        named.is_some_and(|rule| rule.plain_http) || (endpoint.plain && same_host())
    }

    /// One request and the head of its answer.
    pub(crate) fn exchange(
        &self,
        request: &Request<'_>,
        endpoint: &Endpoint,
        what: &str,
    ) -> Result<Response, RegistryError> {
        let url = request.url;
        let own = self.url(endpoint, "").is_ok_and(|own| own.same_origin(url));
        let host = if own {
            endpoint.host.clone()
        } else {
            url.authority()
        };
        let tls = if url.tls {
            Some(self.tls(&host)?)
        } else {
            None
        };
        let route = Route {
            tls,
            proxy: self.proxy(url)?,
        };
        let answer = exchange(request, &route, &self.options.timeouts);
        answer.map_err(|error| self.explain(error, host, what))
    }

    /// What an error while a body was read means.
    pub(crate) fn failed(&self, error: io::Error, url: &Url, what: &str) -> RegistryError {
        self.explain(HttpError::of(error), url.authority(), what)
    }

    pub(crate) fn explain(&self, error: HttpError, host: String, what: &str) -> RegistryError {
        let what = what.to_owned();
        match error {
            HttpError::Connect(source) => RegistryError::Connect { host, source },
            HttpError::Cut(source) => RegistryError::Cut { host, what, source },
            HttpError::Malformed(reason) => RegistryError::Protocol {
                host,
                what,
                reason: reason.to_owned(),
            },
            HttpError::Proxy(reason) => RegistryError::Proxy { host, reason },
            HttpError::Stalled => RegistryError::Stalled {
                host,
                what,
                limit: seconds(self.options.timeouts.stall),
            },
            HttpError::Tls(source) => RegistryError::Tls { host, source },
        }
    }

    fn proxy(&self, url: &Url) -> Result<Option<Proxy>, RegistryError> {
        let proxies = &self.options.proxies;
        let named = if url.tls {
            &proxies.https
        } else {
            &proxies.http
        };
        let Some(named) = named else {
            return Ok(None);
        };
        if url.is_loopback() || is_exempt(&proxies.none, url) {
            return Ok(None);
        }
        let proxy = Proxy::parse(named).ok_or_else(|| RegistryError::Proxy {
            host: url.authority(),
            reason: "its URL is not `http://[USER:PASSWORD@]HOST:PORT`".to_owned(),
        })?;
        Ok(Some(proxy))
    }

    /// TLS with the system's roots and the CA that was named for this host.
    fn tls(&self, host: &str) -> Result<Arc<ClientConfig>, RegistryError> {
        let ca = self.options.rule(host).and_then(|rule| rule.ca.clone());
        let mut known = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = known.get(&ca) {
            return Ok(Arc::clone(config));
        }
        let mut roots = RootCertStore::empty();
        if let Some(path) = &ca {
            let unusable = |source| RegistryError::Ca {
                host: host.to_owned(),
                path: path.clone(),
                source,
            };
            let text = fs::read(path).map_err(unusable)?;
            for certificate in CertificateDer::pem_slice_iter(&text) {
                let certificate = certificate.map_err(|error| unusable(io::Error::other(error)))?;
                let added = roots.add(certificate);
                added.map_err(|error| unusable(io::Error::other(error)))?;
            }
            if roots.is_empty() {
                let none = "it holds no certificate in PEM form";
                return Err(unusable(io::Error::other(none)));
            }
        }
        let system = self.system_roots.get_or_init(|| {
            let system = rustls_native_certs::load_native_certs();
            for error in &system.errors {
                warn!(%error, "some of the system's root certificates cannot be read");
            }
            system.certs
        });
        roots.add_parsable_certificates(system.iter().cloned());
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| RegistryError::Tls {
                host: host.to_owned(),
                source: io::Error::other(error),
            })?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let config = Arc::new(config);
        known.insert(ca, Arc::clone(&config));
        Ok(config)
    }

    fn unauthorized(
        &self,
        endpoint: &Endpoint,
        had_credentials: bool,
        response: &mut Response,
    ) -> RegistryError {
        RegistryError::Unauthorized {
            host: endpoint.host.clone(),
            repository: self.repository.clone(),
            had_credentials,
            message: self.message(response),
        }
    }

    fn refusal(
        &self,
        endpoint: &Endpoint,
        wanted: &Wanted,
        response: &mut Response,
    ) -> RegistryError {
        let host = endpoint.host.clone();
        let message = self.message(response);
        match (response.status, wanted.kind) {
            (403, _) => RegistryError::Forbidden {
                host,
                repository: self.repository.clone(),
                message,
            },
            (404, WantedKind::Blob) => RegistryError::MissingBlob {
                host,
                what: wanted.what.clone(),
                message,
            },
            (404, WantedKind::Manifest) => RegistryError::NotFound {
                host,
                repository: self.repository.clone(),
                reference: wanted.path.trim_start_matches("manifests/").to_owned(),
                message,
            },
            (status, _) => RegistryError::UnexpectedStatus {
                host,
                what: wanted.what.clone(),
                status,
                message,
            },
        }
    }

    /// What a registry says besides a status; nothing if it says it at length or slowly.
    fn message(&self, response: &mut Response) -> String {
        response
            .body
            .wait_at_most(Some(self.options.timeouts.stall));
        let mut bytes = Vec::new();
        let mut limited = (&mut response.body).take(MAX_MESSAGE);
        if limited.read_to_end(&mut bytes).is_err() {
            return String::new();
        }
        let said: Option<Errors> = serde_json::from_slice(&bytes).ok();
        let first = said.and_then(|said| said.errors.into_iter().next());
        first
            .map(|error| error.message.unwrap_or(error.code))
            .unwrap_or_default()
    }

    fn backoff(&self, failed: u32) -> Duration {
        self.options.timeouts.backoff * 2u32.saturating_pow(failed.saturating_sub(1))
    }
}

/// How often something was tried.
#[derive(Default)]
struct Attempts {
    authorized: bool,
    failed: u32,
    limited: u32,
}

/// The form of errors (OCI distribution specification).
#[derive(Deserialize)]
struct Errors {
    errors: Vec<Said>,
}

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    code: String,
    message: Option<String>,
}

/// Seconds of a `Retry-After`, a date's from now.
fn retry_after(value: &str) -> Option<u64> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(seconds);
    }
    let date = httpdate::parse_http_date(value.trim()).ok()?;
    let left = date.duration_since(SystemTime::now());
    Some(left.map_or(0, |left| left.as_secs() + 1))
}

/// True if `none`, a value of `NO_PROXY`, lists the host.
fn is_exempt(none: &str, url: &Url) -> bool {
    none.split(',').map(str::trim).any(|entry| {
        let entry = entry.to_ascii_lowercase();
        let (name, port) = match entry.rsplit_once(':') {
            Some((name, port)) if !name.contains(':') => (name, Some(port)),
            Some(_) | None => (entry.as_str(), None),
        };
        let name = name.trim_start_matches("*.").trim_start_matches('.');
        let is_name = name == "*"
            || url.host == name
            || (url.host.strip_suffix(name)).is_some_and(|rest| rest.ends_with('.'));
        !name.is_empty() && is_name && port.is_none_or(|port| port == url.port.to_string())
    })
}

/// Waits; there is nothing that could happen in the meantime.
fn pause(time: Duration) {
    let (_open, never) = mpsc::channel::<()>();
    let _ = never.recv_timeout(time);
}

/// Where Docker Hub answers.
const HUB_SERVER: &str = "registry-1.docker.io";
const MAX_REDIRECTS: usize = 5;
/// After a fault of the server or a broken connection.
const MAX_TRIES: u32 = 3;
/// After "too many requests".
const MAX_LIMITED: u32 = 2;
const MAX_MESSAGE: u64 = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_exempt_from_the_proxy_by_name_and_by_what_is_above_them() {
        let exempt = |none: &str, url: &str| is_exempt(none, &Url::parse(url).unwrap());
        assert!(exempt("a.test", "https://a.test/"));
        assert!(exempt("x, .a.test", "https://b.a.test/"));
        assert!(exempt("*.A.test", "https://b.a.test/"));
        assert!(exempt("*", "https://b.test/"));
        assert!(exempt("a.test:8443", "https://a.test:8443/"));
        assert!(exempt("10.0.0.1", "http://10.0.0.1/"));
        assert!(!exempt("a.test:8443", "https://a.test/"));
        assert!(!exempt("a.test", "https://ba.test/"));
        assert!(!exempt("", "https://a.test/"));
        assert!(!exempt(",", "https://a.test/"));
    }

    #[test]
    fn a_wait_is_a_number_or_a_date() {
        assert_eq!(retry_after("7"), Some(7));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(0));
        assert_eq!(retry_after("soon"), None);
        assert_eq!(retry_after("-1"), None);
    }
}
