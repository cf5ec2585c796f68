//! How sources of images are read: credentials, registries, proxies, time limits.

use std::ffi::OsString;
use std::fmt::{self, Debug, Formatter};
use std::io::{self, IsTerminal, Read};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::ImageError;
use crate::source::archive::Archive;

/// How sources of images are read.
///
/// The default knows no credentials and no proxy, and trusts the system's roots.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct SourceOptions {
    /// Directory with docker's `config.json`: logins and credential helpers.
    pub docker_config: Option<PathBuf>,
    /// Files of the same form that are asked after it, in this order: podman's `auth.json`.
    pub auth_files: Vec<PathBuf>,
    /// Where credential helpers are looked for: a value of `PATH`. Nowhere if absent.
    pub helper_path: Option<OsString>,
    /// What differs from the usual for some registries.
    pub registries: Vec<RegistryRule>,
    /// Proxies between here and the registries.
    pub proxies: Proxies,
    /// How long is waited for what.
    pub timeouts: Timeouts,
    /// Where [`find`](crate::find()) keeps a copy of standard input; absent means the system's
    /// directory for temporary files, which may be in memory.
    pub spool_dir: Option<PathBuf>,
    /// What the image `-` is read from.
    pub stdin: Input,
}

impl SourceOptions {
    /// Takes files and proxies from where docker, podman and curl look, as `variable` gives them.
    ///
    /// | what | from |
    /// |---|---|
    /// | docker's `config.json` | `DOCKER_CONFIG`, else `$HOME/.docker` |
    /// | podman's `auth.json` | `REGISTRY_AUTH_FILE`, else `$XDG_RUNTIME_DIR/containers`, then `$XDG_CONFIG_HOME/containers` or `$HOME/.config/containers` |
    /// | credential helpers | `PATH` |
    /// | proxies | `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`, lower case first; `HTTP_PROXY` in lower case only |
    pub fn from_env(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = |name: &str| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let home = path("HOME");
        let below_home = |rest: &str| home.as_ref().map(|home| home.join(rest));
        let auth_files = match path("REGISTRY_AUTH_FILE") {
            Some(file) => vec![file],
            None => {
                let runtime = path("XDG_RUNTIME_DIR");
                let config = path("XDG_CONFIG_HOME").or_else(|| below_home(".config"));
                let dirs = runtime.into_iter().chain(config);
                dirs.map(|dir| dir.join("containers/auth.json")).collect()
            }
        };
        let text = |names: &[&str]| {
            let mut found = names.iter().filter_map(|name| variable(name));
            found.find_map(|value| value.into_string().ok().filter(|text| !text.is_empty()))
        };
        Self {
            docker_config: path("DOCKER_CONFIG").or_else(|| below_home(".docker")),
            auth_files,
            helper_path: variable("PATH"),
            registries: Vec::new(),
            proxies: Proxies {
                https: text(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]),
                // A web server may set HTTP_PROXY to what a request says.
                http: text(&["http_proxy", "all_proxy", "ALL_PROXY"]),
                none: text(&["no_proxy", "NO_PROXY"]).unwrap_or_default(),
            },
            timeouts: Timeouts::default(),
            spool_dir: None,
            stdin: Input::default(),
        }
    }

    /// The rule of a registry, by its host as references spell it.
    pub(crate) fn rule(&self, host: &str) -> Option<&RegistryRule> {
        let mut rules = self.registries.iter();
        rules.find(|rule| rule.host.eq_ignore_ascii_case(host))
    }
}

/// What differs from the usual for one registry.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct RegistryRule {
    /// `HOST` or `HOST:PORT`, as references spell it.
    pub host: String,
    /// PEM file with roots that it may also chain to.
    ///
    /// # Security
    ///
    /// They are trusted in addition to the system's roots, for this registry only.
    pub ca: Option<PathBuf>,
    /// Speak plain HTTP, never TLS.
    ///
    /// # Security
    ///
    /// Credentials for this registry travel readably, to it and to a token server at the same
    /// host. What arrives is checked by digest as ever, but a tag can be made to mean anything.
    pub plain_http: bool,
    /// `HOST[:PORT]` of registries with the same repositories, asked before it in this order.
    ///
    /// Each has its own rule, and credentials by its own name.
    pub mirrors: Vec<String>,
}

impl RegistryRule {
    /// A rule that changes nothing yet.
    pub fn new(host: impl Into<String>) -> Self {
        Self {
            host: host.into(),
            ..Self::default()
        }
    }
}

/// Proxies for HTTP, as URLs: `http://[USER:PASSWORD@]HOST:PORT`.
#[derive(Clone, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Proxies {
    /// For HTTPS: it is asked for a tunnel.
    pub https: Option<String>,
    /// For plain HTTP.
    pub http: Option<String>,
    /// Hosts that are reached without one: names, each with all names below it, or `*`.
    pub none: String,
}

/// A proxy's URL may hold a password.
impl Debug for Proxies {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { https, http, none } = self;
        f.debug_struct("Proxies")
            .field("https", &https.is_some())
            .field("http", &http.is_some())
            .field("none", none)
            .finish()
    }
}

/// How long is waited for what.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Timeouts {
    /// For a connection, name look-up excluded. Default 10 s.
    pub connect: Duration,
    /// For the next byte. Default 30 s; a manifest or token may take four times as long in all.
    pub stall: Duration,
    /// For a credential helper. Default 10 s: it may have to ask another server.
    pub helper: Duration,
    /// The longest wait that a registry may ask for before another try. Default 20 s.
    pub retry_after: Duration,
    /// Before the second try after a failure of the registry, doubled before the third.
    /// Default 500 ms.
    pub backoff: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            helper: Duration::from_secs(10),
            retry_after: Duration::from_secs(20),
            backoff: Duration::from_millis(500),
        }
    }
}

/// What the image `-` is read from: once, by whichever call needs it first.
///
/// Clones share what was read, so that one set of options serves [`find`](crate::find()) and then
/// [`to_disk`](crate::to_disk()).
#[derive(Clone)]
pub struct Input(Arc<Mutex<State>>);

enum State {
    Failed,
    Kept(Archive),
    Unread(Box<dyn Read + Send>),
    Unopened,
}

impl Input {
    /// Reads this instead of the process's standard input.
    pub fn from_reader(reader: impl Read + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(State::Unread(Box::new(reader)))))
    }

    /// The archive; an unnamed copy of it is kept below `work`.
    pub(crate) fn archive(&self, work: &Path) -> Result<Archive, ImageError> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = Path::new("standard input");
        let unusable = |reason: &str| ImageError::BadArchive {
            path: place.to_owned(),
            member: String::new(),
            reason: reason.to_owned(),
        };
        let reader: Box<dyn Read + Send> = match mem::replace(&mut *state, State::Failed) {
            State::Failed => return Err(unusable("it was read before, without success")),
            State::Kept(archive) => {
                *state = State::Kept(archive.clone());
                return Ok(archive);
            }
            State::Unopened if io::stdin().is_terminal() => {
                return Err(unusable("it is a terminal; pipe an archive into it"));
            }
            State::Unopened => Box::new(io::stdin()),
            State::Unread(reader) => reader,
        };
        let archive = Archive::spool(reader, place, work)?;
        *state = State::Kept(archive.clone());
        Ok(archive)
    }
}

impl Default for Input {
    /// The process's standard input.
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State::Unopened)))
    }
}

impl Debug for Input {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("Input")
    }
}

/// Equal are clones of one another.
impl PartialEq for Input {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Input {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_proxies_are_found_where_docker_podman_and_curl_look() {
        let options = SourceOptions::from_env(|name| match name {
            "HOME" => Some("/home/u".into()),
            "XDG_RUNTIME_DIR" => Some("/run/user/7".into()),
            "HTTPS_PROXY" => Some("http://upper:1".into()),
            "https_proxy" => Some("http://lower:1".into()),
            "HTTP_PROXY" => Some("http://from-a-request:1".into()),
            "NO_PROXY" => Some("localhost".into()),
            _ => None,
        });
        assert_eq!(options.docker_config, Some("/home/u/.docker".into()));
        let files = [
            "/run/user/7/containers/auth.json",
            "/home/u/.config/containers/auth.json",
        ];
        assert_eq!(options.auth_files, files.map(PathBuf::from));
        assert_eq!(options.proxies.https.as_deref(), Some("http://lower:1"));
        assert_eq!(options.proxies.http, None);
        assert_eq!(options.proxies.none, "localhost");
        let named = SourceOptions::from_env(|name| match name {
            "DOCKER_CONFIG" => Some("/etc/docker-config".into()),
            "REGISTRY_AUTH_FILE" => Some("/etc/auth.json".into()),
            _ => None,
        });
        assert_eq!(named.docker_config, Some("/etc/docker-config".into()));
        assert_eq!(named.auth_files, [PathBuf::from("/etc/auth.json")]);
    }

    #[test]
    fn a_proxys_password_is_not_debugged() {
        let mut options = SourceOptions::default();
        options.proxies.https = Some("http://u:hunter2@proxy:1".to_owned());
        assert!(!format!("{options:?}").contains("hunter2"));
    }
}
