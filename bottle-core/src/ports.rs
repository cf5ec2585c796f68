//! Ports of the host that lead to servers in a bottle.

use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZero;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One published port: `[ADDR:]HOST:GUEST`.
///
/// # Security
///
/// Whoever can connect to the host's side reaches the server in the bottle. Unless an address is
/// named, that is this host alone.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Publish {
    /// Where the host listens. Port 0 lets the system choose one.
    pub host: SocketAddr,
    /// The port of the server in the bottle.
    pub guest: u16,
}

/// Parses `GUEST`, `HOST:GUEST`, `ADDR:HOST:GUEST` and `[IPV6]:HOST:GUEST`.
impl FromStr for Publish {
    type Err = PublishError;

    fn from_str(text: &str) -> Result<Self, PublishError> {
        let wrong = || PublishError {
            text: text.to_owned(),
        };
        let (host, guest) = match text.rsplit_once(':') {
            None => ("0", text),
            Some(parts) => parts,
        };
        let guest: NonZero<u16> = guest.parse().map_err(|_| wrong())?;
        let host = match host.parse() {
            Ok(port) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            Err(_) => host.parse().map_err(|_| wrong())?,
        };
        Ok(Self {
            host,
            guest: guest.get(),
        })
    }
}

impl Display for Publish {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.guest)
    }
}

/// Why a text is no published port.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("{text:?} is not `[ADDR:]HOST:GUEST` (as `8080:80` or `0.0.0.0:8080:80`)")]
pub struct PublishError {
    text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_published_on_loopback_unless_an_address_is_named() {
        let shown = |text: &str| text.parse::<Publish>().unwrap().to_string();
        assert_eq!(shown("80"), "127.0.0.1:0:80");
        assert_eq!(shown("8080:80"), "127.0.0.1:8080:80");
        assert_eq!(shown("0.0.0.0:8080:80"), "0.0.0.0:8080:80");
        assert_eq!(shown("[::1]:8080:80"), "[::1]:8080:80");
        for text in [
            "",
            ":80",
            "0",
            "8080:0",
            "8080:",
            "x:80",
            "localhost:8080:80",
            "::1:8080:80",
            "99999:1",
        ] {
            assert!(text.parse::<Publish>().is_err(), "{text}");
        }
    }
}
