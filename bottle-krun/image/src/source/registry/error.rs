//! Why a registry did not give what was asked for, or its credentials could not be found.

use std::fmt::{self, Display, Formatter};
use std::io;
use std::path::PathBuf;

use bottle_core::text::{Escaped, EscapedUpTo};
use thiserror::Error;

/// Why a registry did not give what was asked for.
///
/// What the registry said is printed escaped and cut; credentials are never printed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The file with a registry's roots cannot be used.
    #[error("cannot use the CA certificates in `{}` for registry `{host}`", path.display())]
    Ca {
        /// The registry.
        host: String,
        /// The file.
        path: PathBuf,
        /// What stopped it.
        source: io::Error,
    },
    /// No connection to the registry, or to the proxy before it.
    #[error("cannot connect to `{host}`; check the name, the network and the proxy variables")]
    Connect {
        /// Who was called.
        host: String,
        /// What stopped it.
        source: io::Error,
    },
    /// Credentials for the registry are configured and cannot be had.
    #[error("cannot find the credentials for registry `{host}`")]
    Credentials {
        /// The registry.
        host: String,
        /// What stopped it.
        source: CredentialError,
    },
    /// The connection broke off.
    #[error(
        "the connection to `{host}` broke off while it sent {}; try again: a layer continues where \
         it stopped",
        Escaped(what)
    )]
    Cut {
        /// Who was called.
        host: String,
        /// What it was sending.
        what: String,
        /// How it ended.
        source: io::Error,
    },
    /// 403.
    #[error(
        "registry `{host}` forbids access to `{repository}`; log in as a user who may pull it: \
         `docker login {host}`{}",
        Said(message)
    )]
    Forbidden {
        /// The registry.
        host: String,
        /// The repository.
        repository: String,
        /// What the registry said.
        message: String,
    },
    /// A blob that the image refers to is not there.
    #[error(
        "registry `{host}` lacks {what}, which the image refers to; push the image again{}",
        Said(message)
    )]
    MissingBlob {
        /// The registry.
        host: String,
        /// Which blob.
        what: String,
        /// What the registry said.
        message: String,
    },
    /// 404 for a tag or digest.
    #[error(
        "registry `{host}` has no `{reference}` of `{repository}`; check the name, or log in if \
         it is private: `docker login {host}`{}",
        Said(message)
    )]
    NotFound {
        /// The registry.
        host: String,
        /// The repository.
        repository: String,
        /// The tag or digest.
        reference: String,
        /// What the registry said.
        message: String,
    },
    /// It leads from TLS to plain HTTP.
    #[error(
        "`{host}` sends on to `{}`, which is plain HTTP; name that host as a plain-HTTP registry \
         if you trust the way to it",
        Escaped(url)
    )]
    PlainHttp {
        /// Who was called.
        host: String,
        /// Where it leads.
        url: String,
    },
    /// What it said is not HTTP, or not what was asked for.
    #[error(
        "`{host}` gave an answer that cannot be used for {}: {}",
        Escaped(what),
        Escaped(reason)
    )]
    Protocol {
        /// Who was called.
        host: String,
        /// What it was asked for.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The proxy cannot be used.
    #[error("the proxy for `{host}` cannot be used: {}", Escaped(reason))]
    Proxy {
        /// Who should have been called.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// 5xx, again and again.
    #[error(
        "`{host}` failed with status {status} for {} ({tries} tries); try again later{}",
        Escaped(what),
        Said(message)
    )]
    ServerFault {
        /// Who was called.
        host: String,
        /// What it was asked for.
        what: String,
        /// The status.
        status: u16,
        /// How often it was asked.
        tries: u32,
        /// What it said.
        message: String,
    },
    /// Nothing came for too long.
    #[error(
        "`{host}` sent nothing more of {} for {limit}; try again: a layer continues where it \
         stopped",
        Escaped(what)
    )]
    Stalled {
        /// Who was called.
        host: String,
        /// What it was asked for.
        what: String,
        /// How long was waited: `30 s`.
        limit: String,
    },
    /// No TLS with the registry.
    #[error(
        "cannot speak TLS with `{host}`; if its certificate is signed by a CA of your own, name \
         that CA's file for it, and if it speaks plain HTTP only, name it as such"
    )]
    Tls {
        /// Who was called.
        host: String,
        /// What stopped it.
        source: io::Error,
    },
    /// The token server that the registry names is unusable.
    #[error(
        "registry `{host}` sends for a token to `{}`, which cannot be used: {}",
        Escaped(realm),
        EscapedUpTo(reason, MAX_SAID)
    )]
    Token {
        /// The registry.
        host: String,
        /// The token server.
        realm: String,
        /// What is wrong with it.
        reason: String,
    },
    /// 429.
    #[error(
        "registry `{host}` wants fewer requests; try again {}, or log in for a higher limit: \
         `docker login {host}`",
        after.map_or_else(|| "later".to_owned(), |seconds| format!("in {seconds} s"))
    )]
    TooManyRequests {
        /// The registry.
        host: String,
        /// What it wants one to wait, in seconds.
        after: Option<u64>,
    },
    /// 401 with whatever credentials there are.
    #[error(
        "registry `{host}` {} `{repository}`: run `docker login {host}`{}{}",
        if *had_credentials {
            "does not accept the stored credentials for"
        } else {
            "wants a login for"
        },
        if *had_credentials { " again" } else { ", or check the name" },
        Said(message)
    )]
    Unauthorized {
        /// The registry.
        host: String,
        /// The repository.
        repository: String,
        /// False if none were found for it.
        had_credentials: bool,
        /// What it said.
        message: String,
    },
    /// Another status than any that means something here.
    #[error(
        "`{host}` answered with status {status} for {}{}",
        Escaped(what),
        Said(message)
    )]
    UnexpectedStatus {
        /// Who was called.
        host: String,
        /// What it was asked for.
        what: String,
        /// The status.
        status: u16,
        /// What it said.
        message: String,
    },
}

/// Why configured credentials cannot be had.
///
/// # Security
///
/// None of them tells anything of a secret: neither what a file holds nor what a helper said.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// The file is malformed.
    #[error("`{}` is malformed in line {line}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Where.
        line: usize,
    },
    /// An entry's `auth` is not what `docker login` writes.
    #[error("`{}` has a malformed `auth` for `{}`; log in again", path.display(), Escaped(key))]
    Auth {
        /// The file.
        path: PathBuf,
        /// Which entry.
        key: String,
    },
    /// The helper failed.
    #[error("the credential helper `{helper}` failed: {reason}; run `{helper} get` by hand")]
    Helper {
        /// Its program.
        helper: String,
        /// How.
        reason: &'static str,
    },
    /// The helper is not there.
    #[error(
        "the credential helper `{helper}` is not in PATH; install it, or take it out of `{}`",
        path.display()
    )]
    HelperMissing {
        /// Its program.
        helper: String,
        /// The file that names it.
        path: PathBuf,
    },
    /// What the file names as helper cannot be one.
    #[error("`{}` names the credential helper {}, which is no name of a program",
        path.display(), Escaped(name))]
    HelperName {
        /// The file.
        path: PathBuf,
        /// What it says.
        name: String,
    },
    /// The helper did not end in time.
    #[error("the credential helper `{helper}` did not answer within {limit}, and was killed")]
    HelperTimeout {
        /// Its program.
        helper: String,
        /// How long was waited: `10 s`.
        limit: String,
    },
    /// The file or the helper cannot be used.
    #[error("cannot {op} `{}`", path.display())]
    Io {
        /// The operation: a verb.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// What stopped it.
        source: io::Error,
    },
}

/// What a registry said, in brackets behind what we say.
struct Said<'s>(&'s str);

impl Display for Said<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(text) = *self;
        if text.is_empty() {
            Ok(())
        } else {
            write!(f, " (it says: {})", EscapedUpTo(text, MAX_SAID))
        }
    }
}

/// Enough for a sentence.
const MAX_SAID: usize = 200;
