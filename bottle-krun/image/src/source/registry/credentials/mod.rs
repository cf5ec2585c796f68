//! Credentials for a registry: from docker's `config.json` and its helpers, podman's `auth.json`.
//!
//! ```text
//! credHelpers[HOST]  else  credsStore  -> docker-credential-NAME get
//! auths[HOST/path…, HOST]              -> identity token, or user and password
//! ```
//!
//! The first file that knows the registry decides. A helper is a program of the user's PATH,
//! started without a shell in a process group of its own, and killed with it if it takes too long.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::fmt::{self, Debug, Formatter};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use bottle_core::image::DEFAULT_HOST;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::error::CredentialError;
use super::seconds;
use crate::options::SourceOptions;
use crate::source::layout::open_regular;

/// What a registry is shown.
#[derive(Clone)]
pub(crate) enum Credentials {
    /// Exchanged for a token, again and again.
    IdentityToken(Zeroizing<String>),
    Password {
        user: Zeroizing<String>,
        password: Zeroizing<String>,
    },
}

impl Debug for Credentials {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

impl Credentials {
    fn new(user: Zeroizing<String>, password: Zeroizing<String>) -> Option<Self> {
        if user.as_str() == TOKEN_USER {
            return Some(Self::IdentityToken(password));
        }
        (!user.is_empty() || !password.is_empty()).then_some(Self::Password { user, password })
    }

    /// `Basic …`.
    pub(crate) fn basic(&self) -> Option<Zeroizing<String>> {
        let Self::Password { user, password } = self else {
            return None;
        };
        let plain = Zeroizing::new(format!("{}:{}", user.as_str(), password.as_str()));
        Some(Zeroizing::new(format!(
            "Basic {}",
            STANDARD.encode(plain.as_bytes())
        )))
    }
}

/// Looks for the credentials of a repository; `host` as references spell it.
pub(crate) fn find(
    options: &SourceOptions,
    host: &str,
    repository: &str,
) -> Result<Option<Credentials>, CredentialError> {
    let docker = options
        .docker_config
        .iter()
        .map(|dir| dir.join("config.json"));
    for path in docker.chain(options.auth_files.iter().cloned()) {
        if let Some(found) = find_in(&path, options, host, repository)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    auths: BTreeMap<String, Entry>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

fn find_in(
    path: &Path,
    options: &SourceOptions,
    host: &str,
    repository: &str,
) -> Result<Option<Credentials>, CredentialError> {
    let read_error = |source| CredentialError::Io {
        op: "read",
        path: path.to_owned(),
        source,
    };
    let opened = open_regular(path).map_err(|error| read_error(io::Error::other(error)))?;
    let Some(opened) = opened else {
        return Ok(None);
    };
    let mut bytes = Zeroizing::new(Vec::with_capacity(16 << 10));
    let mut limited = opened.take(MAX_FILE + 1);
    limited.read_to_end(&mut bytes).map_err(read_error)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(read_error(io::ErrorKind::FileTooLarge.into()));
    }
    // What serde says may quote a secret.
    let file: File = serde_json::from_slice(&bytes).map_err(|error| CredentialError::Config {
        path: path.to_owned(),
        line: error.line(),
    })?;
    let helper = (file.cred_helpers.iter())
        .find_map(|(key, name)| (normal(key) == host).then_some(name))
        .or(Some(&file.creds_store))
        .filter(|name| !name.is_empty());
    if let Some(name) = helper
        && let Some(found) = ask(name, host, path, options)?
    {
        return Ok(Some(found));
    }
    // The longest key wins: podman keeps logins per namespace.
    let whole = format!("{host}/{repository}");
    let ends = whole
        .match_indices('/')
        .map(|(at, _)| at)
        .chain([whole.len()]);
    let mut keys: Vec<&str> = ends.map(|end| &whole[..end]).collect();
    keys.reverse();
    for wanted in keys {
        let mut entries = file.auths.iter();
        let Some((key, entry)) = entries.find(|(key, _)| normal(key) == wanted) else {
            continue;
        };
        let malformed = || CredentialError::Auth {
            path: path.to_owned(),
            key: key.clone(),
        };
        let found = entry.credentials().ok_or_else(malformed)?;
        if let Some(found) = found {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

impl Entry {
    /// `None` if it is malformed.
    fn credentials(&self) -> Option<Option<Credentials>> {
        let secret = |text: &str| Zeroizing::new(text.to_owned());
        let given =
            |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(secret);
        if let Some(token) = given(&self.identitytoken) {
            return Some(Some(Credentials::IdentityToken(token)));
        }
        if let Some(auth) = given(&self.auth) {
            let auth = auth.trim_end_matches('=');
            let plain = Zeroizing::new(STANDARD_NO_PAD.decode(auth).ok()?);
            let plain = str::from_utf8(&plain).ok()?;
            let (user, password) = plain.split_once(':')?;
            // An older docker filled it up with NULs.
            let password = password.trim_end_matches('\0');
            return Some(Credentials::new(secret(user), secret(password)));
        }
        match (given(&self.username), given(&self.password)) {
            (Some(user), Some(password)) => Some(Credentials::new(user, password)),
            (None | Some(_), None) | (None, Some(_)) => Some(None),
        }
    }
}

/// What docker keeps in memory of a file is not zeroised by serde, so it is done here.
impl Drop for Entry {
    fn drop(&mut self) {
        let Self {
            auth,
            username,
            password,
            identitytoken,
        } = self;
        for text in [auth, username, password, identitytoken] {
            drop(text.take().map(Zeroizing::new));
        }
    }
}

/// A key of a file as references spell a host (and podman a namespace).
fn normal(key: &str) -> String {
    let rest = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"));
    let rest = rest.unwrap_or(key).trim_end_matches('/');
    let rest = ["/v1", "/v2"]
        .iter()
        .find_map(|version| rest.strip_suffix(version))
        .unwrap_or(rest);
    let (host, path) = match rest.split_once('/') {
        None => (rest, None),
        Some((host, path)) => (host, Some(path)),
    };
    let host = host.to_ascii_lowercase();
    let host = match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_HOST,
        other => other,
    };
    match path {
        None => host.to_owned(),
        Some(path) => format!("{host}/{path}"),
    }
}

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks a credential helper; `None` if it knows nothing of the registry.
fn ask(
    name: &str,
    host: &str,
    config: &Path,
    options: &SourceOptions,
) -> Result<Option<Credentials>, CredentialError> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.len() > 64 || name.starts_with(['.', '-']) || !name.bytes().all(legal) {
        return Err(CredentialError::HelperName {
            path: config.to_owned(),
            name: name.to_owned(),
        });
    }
    let helper = format!("docker-credential-{name}");
    let search = options
        .helper_path
        .as_deref()
        .unwrap_or_else(|| OsStr::new(""));
    let program = find_program(search, &helper).ok_or_else(|| CredentialError::HelperMissing {
        helper: helper.clone(),
        path: config.to_owned(),
    })?;
    let server = if host == DEFAULT_HOST { HUB_KEY } else { host };
    let limit = options.timeouts.helper;
    let (output, status) = run(&program, server, limit)
        .map_err(|source| CredentialError::Io {
            op: "run",
            path: program,
            source,
        })?
        .ok_or_else(|| CredentialError::HelperTimeout {
            helper: helper.clone(),
            limit: seconds(limit),
        })?;
    let failed = |reason| CredentialError::Helper {
        helper: helper.clone(),
        reason,
    };
    if output.len() as u64 > MAX_ANSWER {
        return Err(failed("its answer is too long"));
    }
    if !status.success() {
        let output = String::from_utf8_lossy(&output);
        return if NOT_FOUND.iter().any(|known| output.trim() == *known) {
            Ok(None)
        } else {
            Err(failed("it ended with an error"))
        };
    }
    let Answer { username, secret } =
        serde_json::from_slice(&output).map_err(|_| failed("its answer is malformed"))?;
    Ok(Credentials::new(
        Zeroizing::new(username),
        Zeroizing::new(secret),
    ))
}

fn find_program(search: &OsStr, name: &str) -> Option<PathBuf> {
    let dirs = env::split_paths(search).filter(|dir| dir.is_absolute());
    dirs.map(|dir| dir.join(name)).find(|program| {
        fs::metadata(program)
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    })
}

type Output = (Zeroizing<Vec<u8>>, ExitStatus);

/// Runs a helper; `None` if it did not end in time.
fn run(program: &Path, server: &str, limit: Duration) -> io::Result<Option<Output>> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    let group = Pid::from_raw(child.id().cast_signed());
    if let Some(mut stdin) = child.stdin.take() {
        // It fits into the pipe; a helper that does not want it says what it says.
        let _ = stdin.write_all(server.as_bytes());
    }
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::spawn(move || {
        // Nobody listens any more if it took too long.
        let _ = sender.send(wait(child));
    });
    match receiver.recv_timeout(limit) {
        Ok(output) => output.map(Some),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            // What it started may hold its output open: the whole group goes. The thread reaps
            // it; what left the group could keep the thread, so it is not waited for long.
            let _ = killpg(group, Signal::SIGKILL);
            let _ = receiver.recv_timeout(REAPED);
            Ok(None)
        }
    }
}

fn wait(mut child: Child) -> io::Result<Output> {
    let mut output = Zeroizing::new(Vec::with_capacity(16 << 10));
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_ANSWER + 1).read_to_end(&mut output)?;
    }
    Ok((output, child.wait()?))
}

/// Docker Hub's key in the files of docker, from when there was no other registry.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// The user of an identity token.
const TOKEN_USER: &str = "<token>";
/// What helpers say of a registry that they do not know.
const NOT_FOUND: [&str; 2] = [
    "credentials not found in native keychain",
    "no credentials server URL",
];
const REAPED: Duration = Duration::from_secs(1);
const MAX_FILE: u64 = 4 << 20;
const MAX_ANSWER: u64 = 64 << 10;

#[cfg(test)]
mod tests;
