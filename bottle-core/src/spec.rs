//! A bottle described: every field already legal, nothing yet created.
//!
//! [`Spec`] is what is meant; it is neither serialised nor stored. All launch paths consume it.

use std::collections::BTreeMap;
use std::fmt::{self, Debug, Display, Formatter};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZero;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::id::BottleId;
// Users of a specification find it here.
pub use crate::image::ImageSource;
use crate::images::Pull;
use crate::listing::Labels;
use crate::policy::{HostName, Policy};
use crate::ports::Publish;
use crate::secret::Secret;
use crate::units::{MiB, Vcpus};

/// Everything that is decided about a bottle before it is made.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The name the user gave, or that was made up; the id is derived from it when it is planned.
    pub name: BottleId,
    /// What to boot.
    pub image: ImageSource,
    /// When its registry is asked for it.
    pub pull: Pull,
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
    /// The proxy through which this host reaches the world, if it has one.
    ///
    /// # Security
    ///
    /// It decides which address a name has. It is the gateway's, not the bottle's: nothing in the
    /// bottle learns of it. If it fails, nothing else is tried.
    pub proxy: Option<UpstreamProxy>,
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
    /// Whether the bottle goes on when the handle that started it is dropped; it ends with its main
    /// process, or when it is stopped.
    pub detached: bool,
    /// Whether what it leaves stays when it has ended (its disk, its log), so that it can be started
    /// again; it is then removed by [`Backend::remove`](crate::backend::Backend::remove).
    pub kept: bool,
    /// Whether its main process has a standard input.
    pub stdin: bool,
    /// Whether its main process has a terminal.
    pub tty: bool,
    /// What its user writes on it.
    pub labels: Labels,
    /// Ports of the host that lead into it.
    pub ports: Vec<Publish>,
    /// How long it may run before it is stopped.
    pub timeout: Option<Duration>,
}

impl Spec {
    /// Describes a bottle of this name and image with an empty policy and default resources.
    pub fn new(name: BottleId, image: ImageSource) -> Self {
        Self {
            name,
            image,
            pull: Pull::default(),
            command: None,
            user: None,
            env: Env::default(),
            policy: Policy::default(),
            resolve: Vec::new(),
            proxy: None,
            upstream_roots: Vec::new(),
            known_values: Vec::new(),
            resources: Resources::default(),
            detached: false,
            kept: false,
            stdin: true,
            tty: false,
            labels: Labels::default(),
            ports: Vec::new(),
            timeout: None,
        }
    }
}

/// An HTTP proxy, as the variables `HTTPS_PROXY` and `NO_PROXY` name it. It is read by the backend.
#[derive(Clone)]
pub struct UpstreamProxy {
    /// `http://[USER:PASSWORD@]HOST[:PORT]`.
    pub url: Zeroizing<String>,
    /// Names that do not go through it, separated by commas.
    pub excepted: String,
}

/// Hides the address: it may hold a password.
impl Debug for UpstreamProxy {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamProxy")
            .field("excepted", &self.excepted)
            .finish_non_exhaustive()
    }
}

/// A machine's size.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Resources {
    /// Virtual CPUs. Default 1: each further one costs boot time.
    pub vcpus: Vcpus,
    /// Memory. Default 1024 MiB: more costs boot time, and pages are only taken when touched.
    pub memory: MiB,
    /// Where what is written is kept. Default: on a disk of 20 GiB.
    pub overlay: Overlay,
}

/// Where what a bottle writes is kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "there is no third place")]
pub enum Overlay {
    /// On a disk of this virtual size; its file is sparse.
    Disk(MiB),
    /// In the bottle's memory.
    Memory,
}

impl Display for Overlay {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(size) => Display::fmt(size, f),
            Self::Memory => f.write_str("in memory"),
        }
    }
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            vcpus: Vcpus::ONE,
            memory: MiB(1024),
            overlay: Overlay::Disk(MiB(20 * 1024)),
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

impl Display for UserName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for UserName {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        Self::try_from(text.to_owned())
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
        let port = port.parse::<NonZero<u16>>().map_err(|_| wrong())?.get();
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
        if socket.port() == 0 {
            return Err(wrong());
        }
        Ok(Self {
            host,
            port,
            address: socket.ip(),
            dial_port: socket.port(),
        })
    }
}

impl Display for Resolve {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            host,
            port,
            address,
            dial_port,
        } = self;
        if port == dial_port {
            write!(f, "{host}:{port}:{address}")
        } else {
            let socket = SocketAddr::new(*address, *dial_port);
            write!(f, "{host}:{port}:{socket}")
        }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_user_is_a_name_or_number_and_perhaps_a_group() {
        for text in ["root", "agent:agent", "1000:1000", "a.b-c_d"] {
            assert_eq!(text.parse::<UserName>().unwrap().to_string(), text);
        }
        for text in [
            "",
            ":",
            "a:",
            ":b",
            "a:b:c",
            "a b",
            "../x",
            "a\n",
            &"x".repeat(65),
        ] {
            assert!(text.parse::<UserName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_last_value_of_a_variable_wins_and_the_order_is_by_name() {
        let mut env = Env::default();
        env.set("B", "1").unwrap();
        env.set("A", "x=y").unwrap();
        env.set("B", "").unwrap();
        assert_eq!(env.iter().collect::<Vec<_>>(), [("A", "x=y"), ("B", "")]);
        for name in ["", "A=B", "A\0"] {
            let name = name.to_owned();
            assert_eq!(env.set(&name, "x"), Err(SpecError::EnvName { name }));
        }
        let name = "A".to_owned();
        assert_eq!(env.set("A", "x\0"), Err(SpecError::EnvValue { name }));
    }

    #[test]
    fn an_address_for_a_name_may_bring_its_own_port() {
        let parse = |text: &str| text.parse::<Resolve>().unwrap();
        let same = parse("api.test:443:127.0.0.1");
        assert_eq!((same.port, same.dial_port), (443, 443));
        let other = parse("API.test:443:127.0.0.1:8443");
        assert_eq!((other.host.as_str(), other.dial_port), ("api.test", 8443));
        let six = parse("api.test:443:[::1]:8443");
        assert_eq!((six.address.is_ipv6(), six.dial_port), (true, 8443));
        assert_eq!(parse("api.test:443:::1").dial_port, 443);
        assert_eq!(parse("api.test:443:[::1]").dial_port, 443);
        for text in [
            "",
            "api.test",
            "api.test:443",
            "api.test:443:",
            "api.test:x:127.0.0.1",
            "api.test:0:127.0.0.1",
            "api.test:443:127.0.0.1:0",
            "api.test:443:localhost",
            "10.0.0.1:443:127.0.0.1",
            "api.test:443:127.0.0.1:99999",
        ] {
            assert!(text.parse::<Resolve>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_description_shows_no_secret_when_it_is_debugged() {
        let image = "oci:base".parse().unwrap();
        let mut spec = Spec::new("web".parse().unwrap(), image);
        spec.known_values
            .extend(Secret::new("env:TOKEN", *b"hunter2-hunter2"));
        let shown = format!("{spec:?}");
        assert!(shown.contains("Secret(env:TOKEN)"), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    proptest! {
        #[test]
        fn a_printed_resolve_reads_back(
            host in "[a-z]{1,8}\\.test", port in 1_u16.., dial_port in 1_u16.., address: IpAddr,
        ) {
            let host = host.parse().unwrap();
            let resolve = Resolve { host, port, address, dial_port };
            prop_assert_eq!(resolve.to_string().parse(), Ok(resolve));
        }

        #[test]
        fn no_text_makes_a_parser_of_the_specification_panic(text in any::<String>()) {
            let _ = text.parse::<Resolve>();
            let _ = text.parse::<UserName>();
        }
    }
}
