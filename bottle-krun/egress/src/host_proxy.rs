//! The HTTP proxy through which this host reaches the world, if it has one.
//!
//! Names go to it as names: it resolves them, so their addresses are not checked here. A name that
//! was given an address on the host's side (`--resolve`), and one that `NO_PROXY` lists, is dialled
//! directly. When the proxy fails, nothing else is tried.

use std::fmt::{self, Debug, Display, Formatter};
use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bottle_core::policy::HostName;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use zeroize::Zeroizing;

/// An HTTP proxy of the host and the names that do not go through it.
///
/// # Security
///
/// Where a proxy is used, it decides which address a name has: a rule without `private` does not
/// keep it from one in its own network.
#[derive(Clone)]
pub struct HostProxy {
    host: String,
    port: u16,
    /// The value of `Proxy-Authorization`.
    authorization: Option<Zeroizing<String>>,
    excepted: Vec<Exception>,
}

/// Shows where it is, not what it is told.
impl Debug for HostProxy {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "HostProxy({}:{})", self.host, self.port)
    }
}

/// As a person may see it: without user and password.
impl Display for HostProxy {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)?;
        if self.excepted.is_empty() {
            Ok(())
        } else {
            write!(f, ", {} exceptions", self.excepted.len())
        }
    }
}

/// A part of `NO_PROXY`.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Exception {
    All,
    /// A name and what is below it, on one port or on all.
    Below(String, Option<u16>),
}

impl HostProxy {
    /// Reads what stands in `HTTPS_PROXY` and `NO_PROXY`.
    ///
    /// Addresses and networks in `NO_PROXY` are passed over: a bottle reaches names alone.
    ///
    /// # Errors
    ///
    /// [`HostProxyError`] if the proxy is none that can be used; it does not show the user's password.
    pub fn parse(https_proxy: &str, no_proxy: &str) -> Result<Self, HostProxyError> {
        let rest = match https_proxy.split_once("://") {
            None => https_proxy,
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some((scheme, _)) => {
                return Err(HostProxyError::Scheme {
                    scheme: scheme.to_owned(),
                });
            }
        };
        let rest = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (user, place) = match rest.rsplit_once('@') {
            None => (None, rest),
            Some((user, place)) => (Some(user), place),
        };
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| HostProxyError::Place)?)
            }
            Some(_) | None => (place, DEFAULT_PORT),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || host.contains(char::is_whitespace) {
            return Err(HostProxyError::Place);
        }
        let authorization = user.map(|user| {
            let plain = Zeroizing::new(unescaped(user));
            Zeroizing::new(format!("Basic {}", BASE64_STANDARD.encode(&*plain)))
        });
        Ok(Self {
            host: host.to_owned(),
            port,
            authorization,
            excepted: no_proxy.split(',').filter_map(exception).collect(),
        })
    }

    /// Says whether connections to a name and port go through the proxy.
    pub(crate) fn serves(&self, name: &HostName, port: u16) -> bool {
        !self.excepted.iter().any(|exception| match exception {
            Exception::All => true,
            Exception::Below(top, at) => {
                let left = name.as_str().strip_suffix(top.as_str());
                left.is_some_and(|left| left.is_empty() || left.ends_with('.'))
                    && at.is_none_or(|at| at == port)
            }
        })
    }

    /// Opens a tunnel to a name and port.
    pub(crate) async fn connect(&self, name: &HostName, port: u16) -> io::Result<TcpStream> {
        let tunnel = async {
            let mut stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
            let _ = stream.set_nodelay(true);
            let mut head = Zeroizing::new(format!(
                "CONNECT {name}:{port} HTTP/1.1\r\nHost: {name}:{port}\r\n"
            ));
            if let Some(authorization) = &self.authorization {
                head.push_str("Proxy-Authorization: ");
                head.push_str(authorization);
                head.push_str("\r\n");
            }
            head.push_str("\r\n");
            stream.write_all(head.as_bytes()).await?;
            let status = read_head(&mut stream).await?;
            if status == 200 {
                Ok(stream)
            } else {
                Err(io::Error::other(format!(
                    "the host's proxy answered with status {status}"
                )))
            }
        };
        timeout(TIMEOUT, tunnel)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Reads the head of an answer and not one byte more: what follows is the tunnel's.
async fn read_head(stream: &mut TcpStream) -> io::Result<u16> {
    let garbled = || io::Error::other("the host's proxy does not speak HTTP");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MAX_HEAD {
            return Err(garbled());
        }
        head.push(stream.read_u8().await?);
    }
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut answer = httparse::Response::new(&mut headers);
    match answer.parse(&head) {
        Ok(status) if status.is_complete() => answer.code.ok_or_else(garbled),
        Ok(_) | Err(_) => Err(garbled()),
    }
}

fn exception(text: &str) -> Option<Exception> {
    let text = text.trim().to_ascii_lowercase();
    if text == "*" {
        return Some(Exception::All);
    }
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, Some(port.parse().ok()?)),
        None => (text.as_str(), None),
    };
    let name = name.trim_start_matches("*.").trim_start_matches('.');
    let name: HostName = name.parse().ok()?;
    Some(Exception::Below(name.to_string(), port))
}

/// Undoes percent-encoding in a URL's user information.
fn unescaped(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, behind)) = rest.split_first() {
        rest = behind;
        let hex = |at: usize| (*behind.get(at)? as char).to_digit(16);
        match (byte, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high << 4 | low).unwrap_or(u8::MAX));
                rest = &behind[2..];
            }
            _ => out.push(*byte),
        }
    }
    out
}

/// Why a proxy of the host cannot be used. The address is not shown: it may hold a password.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum HostProxyError {
    /// It has no host, or a port that is none.
    #[error("the host's proxy is not of the form `http://[USER:PASSWORD@]HOST:PORT`")]
    Place,
    /// It is spoken to in another way than HTTP.
    #[error("a proxy of the kind `{scheme}` cannot be used (only `http`)")]
    Scheme {
        /// What stands before `://`.
        scheme: String,
    },
}

const DEFAULT_PORT: u16 = 80;
const MAX_HEAD: usize = 16 << 10;
const TIMEOUT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_read_as_curl_reads_it() {
        let read = |text: &str| {
            HostProxy::parse(text, "").map(|proxy| {
                let authorization = proxy.authorization.map(|value| value.to_string());
                (proxy.host, proxy.port, authorization)
            })
        };
        let plain = |host: &str, port| Ok((host.to_owned(), port, None));
        assert_eq!(read("http://proxy.test:3128/"), plain("proxy.test", 3128));
        assert_eq!(read("HTTP://proxy.test"), plain("proxy.test", 80));
        assert_eq!(read("10.0.0.1:8080"), plain("10.0.0.1", 8080));
        assert_eq!(read("http://[::1]:8080"), plain("::1", 8080));
        let basic = Some("Basic bWU6cEBzcw==".to_owned());
        assert_eq!(
            read("http://me:p%40ss@proxy.test:1"),
            Ok(("proxy.test".to_owned(), 1, basic))
        );
        for text in ["", "http://", "http://me:secret@", "http://proxy.test:port"] {
            assert_eq!(read(text), Err(HostProxyError::Place), "{text}");
        }
        let error = read("socks5://me:secret@proxy.test")
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "a proxy of the kind `socks5` cannot be used (only `http`)"
        );
        let proxy = HostProxy::parse("http://me:secret@proxy.test:1", "").unwrap();
        assert_eq!(format!("{proxy:?}"), "HostProxy(proxy.test:1)");
    }

    #[test]
    fn what_is_excepted_is_dialled_directly() {
        let no_proxy = " localhost, .corp.test,*.other.test, port.test:8443, 10.0.0.0/8";
        let proxy = HostProxy::parse("http://p.test:1", no_proxy).unwrap();
        let serves = |name: &str, port| proxy.serves(&name.parse().unwrap(), port);
        for (name, port) in [
            ("localhost", 443),
            ("corp.test", 443),
            ("x.CORP.test", 80),
            ("a.b.other.test", 443),
            ("port.test", 8443),
        ] {
            assert!(!serves(name, port), "{name}:{port}");
        }
        for (name, port) in [
            ("xcorp.test", 443),
            ("corp.test.evil.test", 443),
            ("port.test", 443),
        ] {
            assert!(serves(name, port), "{name}:{port}");
        }
        let none = HostProxy::parse("http://p.test:1", "*").unwrap();
        assert!(!none.serves(&"a.test".parse().unwrap(), 443));
    }
}
