//! A bottle described: every field already legal, nothing yet created.
//!
//! [`Spec`] is what is meant; it is neither serialised nor stored. All launch paths consume it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::id::BottleId;
use crate::policy::{HostName, Policy};
use crate::secret::Secret;
use crate::units::{MiB, Vcpus};

/// Everything that is decided about a bottle before it is made.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The name the user gave, or that was made up; the id is derived from it when it is planned.
    pub name: BottleId,
    /// What to boot.
    pub image: ImageSource,
    /// What to run; absent means the image's own entrypoint and command.
    pub command: Option<Vec<String>>,
    /// Who runs it; absent means the image's own user, and root if it names none.
    pub user: Option<UserName>,
    /// Environment on top of the image's.
    pub env: Env,
    /// What the bottle may reach.
    pub policy: Policy,
    /// Addresses named on the host's side for a name and port.
    ///
    /// # Security
    ///
    /// Such an address is dialled even if it is loopback or private, for that name and port only.
    pub resolve: Vec<Resolve>,
    /// PEM text with roots that upstreams may also chain to.
    ///
    /// # Security
    ///
    /// They are trusted in addition to the system's roots, by the gateway only.
    pub upstream_roots: Vec<String>,
    /// Values that may not leave the bottle, in any encoding the scanner knows.
    pub known_values: Vec<Secret>,
    /// Size of the machine.
    pub resources: Resources,
}

impl Spec {
    /// Describes a bottle of this name and image with an empty policy and default resources.
    pub fn new(name: BottleId, image: ImageSource) -> Self {
        Self {
            name,
            image,
            command: None,
            user: None,
            env: Env::default(),
            policy: Policy::default(),
            resolve: Vec::new(),
            upstream_roots: Vec::new(),
            known_values: Vec::new(),
            resources: Resources::default(),
        }
    }
}

/// Where an image comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum ImageSource {
    /// An OCI image layout in a directory of the host.
    OciLayout {
        /// The directory that holds `oci-layout` and `index.json`.
        dir: PathBuf,
        /// The reference name (`org.opencontainers.image.ref.name`); absent means the only one.
        reference: Option<String>,
    },
}

/// A machine's size.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Resources {
    /// Virtual CPUs. Default 1: each further one costs boot time.
    pub vcpus: Vcpus,
    /// Memory. Default 1024 MiB: more costs boot time, and pages are only taken when touched.
    pub memory: MiB,
    /// Virtual size of the writable overlay. Default 20 GiB; the file is sparse.
    pub disk: MiB,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            vcpus: Vcpus::ONE,
            memory: MiB(1024),
            disk: MiB(20 * 1024),
        }
    }
}

/// A user of the image, `USER[:GROUP]` by name or number, resolved inside the guest.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserName(String);

impl UserName {
    /// Returns the text as given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for UserName {
    type Error = SpecError;

    fn try_from(text: String) -> Result<Self, SpecError> {
        let legal = |part: &str| {
            !part.is_empty()
                && part.len() <= 64
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        let (user, group) = match text.split_once(':') {
            None => (text.as_str(), None),
            Some((user, group)) => (user, Some(group)),
        };
        if legal(user) && group.is_none_or(legal) {
            Ok(Self(text))
        } else {
            Err(SpecError::User { text })
        }
    }
}

impl From<UserName> for String {
    fn from(name: UserName) -> Self {
        name.0
    }
}

/// Environment variables: names without `=` or NUL, values without NUL.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// Sets one variable; the last one of a name wins.
    ///
    /// # Errors
    ///
    /// [`SpecError::EnvName`] and [`SpecError::EnvValue`].
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), SpecError> {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(SpecError::EnvName {
                name: name.to_owned(),
            });
        }
        if value.contains('\0') {
            return Err(SpecError::EnvValue {
                name: name.to_owned(),
            });
        }
        self.0.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    /// Iterates over names and values, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// `HOST:PORT:ADDR`: where the gateway dials for a name and port, instead of asking DNS.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Resolve {
    /// The name.
    pub host: HostName,
    /// The port the guest asks for.
    pub port: u16,
    /// The address that is dialled.
    pub address: IpAddr,
    /// The port that is dialled; the same unless `ADDR` says `IP:PORT` (`[IPV6]:PORT`).
    pub dial_port: u16,
}

/// Parses `HOST:PORT:ADDR`, `HOST:PORT:IP:PORT` or `HOST:PORT:[IPV6]:PORT`.
impl FromStr for Resolve {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let wrong = || SpecError::Resolve {
            text: text.to_owned(),
        };
        let mut parts = text.splitn(3, ':');
        let (Some(host), Some(port), Some(rest)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let port: u16 = port.parse().map_err(|_| wrong())?;
        let host = host.parse().map_err(|_| wrong())?;
        let bare = rest
            .strip_prefix('[')
            .and_then(|r| r.strip_suffix(']'))
            .unwrap_or(rest);
        if let Ok(address) = bare.parse() {
            return Ok(Self {
                host,
                port,
                address,
                dial_port: port,
            });
        }
        let socket: SocketAddr = rest.parse().map_err(|_| wrong())?;
        Ok(Self {
            host,
            port,
            address: socket.ip(),
            dial_port: socket.port(),
        })
    }
}

/// Why a description is no [`Spec`].
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum SpecError {
    /// A variable's name is empty or holds `=` or NUL.
    #[error("{name:?} is not a variable name")]
    EnvName {
        /// The name.
        name: String,
    },
    /// A variable's value holds NUL.
    #[error("the value of `{name}` holds a NUL byte")]
    EnvValue {
        /// The variable.
        name: String,
    },
    /// Not of the form `HOST:PORT:ADDR`.
    #[error(
        "{text:?} is not `HOST:PORT:ADDR` (as `api.test:443:127.0.0.1` or `api.test:443:127.0.0.1:8443`)"
    )]
    Resolve {
        /// The text.
        text: String,
    },
    /// Not of the form `USER[:GROUP]`.
    #[error("{text:?} is not `USER` or `USER:GROUP`, by name or number")]
    User {
        /// The text.
        text: String,
    },
}
