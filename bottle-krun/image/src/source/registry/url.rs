//! The URLs that registries deal in: `http` and `https`, a host, a target; nothing else.

use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, Ipv6Addr};

/// An absolute URL without user, password and fragment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Url {
    pub(crate) tls: bool,
    /// In lower case; an IPv6 address without its brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Path and query.
    pub(crate) target: String,
}

impl Url {
    /// `None` for whatever cannot be called safely.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (tls, rest) = match text.split_once("://")? {
            (scheme, rest) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            (scheme, rest) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            _ => return None,
        };
        let split = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(split);
        let (host, port) = split_authority(authority)?;
        let target = match target.split('#').next().unwrap_or_default() {
            "" => "/".to_owned(),
            query if query.starts_with('?') => format!("/{query}"),
            path => path.to_owned(),
        };
        // What stands in the request's first line, as it is.
        if target.len() > MAX_TARGET || !target.bytes().all(|b| b.is_ascii_graphic()) {
            return None;
        }
        Some(Self {
            tls,
            host,
            port: port.unwrap_or(if tls { 443 } else { 80 }),
            target,
        })
    }

    /// A target at a registry's host as references spell it.
    pub(crate) fn at(tls: bool, authority: &str, target: String) -> Option<Self> {
        let (host, port) = split_authority(authority)?;
        Some(Self {
            tls,
            host,
            port: port.unwrap_or(if tls { 443 } else { 80 }),
            target,
        })
    }

    /// What a `Location` means, seen from here: absolute, or another target at the same host.
    pub(crate) fn join(&self, location: &str) -> Option<Self> {
        if location.starts_with('/') && !location.starts_with("//") {
            let Self { tls, .. } = *self;
            let scheme = if tls { "https" } else { "http" };
            return Self::parse(&format!("{scheme}://{}{location}", self.authority()));
        }
        Self::parse(location)
    }

    /// `HOST[:PORT]`, the port if it is not the scheme's.
    pub(crate) fn authority(&self) -> String {
        let host = self.bracketed();
        if self.port == (if self.tls { 443 } else { 80 }) {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }

    /// `HOST:PORT`.
    pub(crate) fn host_and_port(&self) -> String {
        format!("{}:{}", self.bracketed(), self.port)
    }

    fn bracketed(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        }
    }

    pub(crate) fn same_origin(&self, other: &Self) -> bool {
        (self.tls, &self.host, self.port) == (other.tls, &other.host, other.port)
    }

    /// True for this machine.
    pub(crate) fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || (self.host.parse::<IpAddr>()).is_ok_and(|address| address.is_loopback())
    }
}

/// For errors: without the query, in which registries hand out signatures.
impl Display for Url {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let path = self.target.split('?').next().unwrap_or_default();
        write!(f, "{scheme}://{}{path}", self.authority())
    }
}

fn split_authority(authority: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        address.parse::<Ipv6Addr>().ok()?;
        let port = match rest {
            "" => None,
            _ => Some(rest.strip_prefix(':')?),
        };
        (address, port)
    } else {
        let (host, port) = match authority.split_once(':') {
            None => (authority, None),
            Some((host, port)) => (host, Some(port)),
        };
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        if host.is_empty() || host.len() > 253 || !host.bytes().all(legal) {
            return None;
        }
        (host, port)
    };
    let port = match port {
        None => None,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            Some(digits.parse().ok().filter(|port| *port > 0)?)
        }
        Some(_) => return None,
    };
    Some((host.to_ascii_lowercase(), port))
}

/// `text` as a value in a query.
pub(crate) fn encode(text: &str) -> String {
    use fmt::Write;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            // Writing to a `String` cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

const MAX_TARGET: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn urls_that_can_be_called_are_told_from_those_that_cannot() {
        let url = Url::parse("HTTPS://A.test:8443/x?y=z#f").unwrap();
        assert_eq!((url.tls, url.port), (true, 8443));
        assert_eq!(
            (url.host.as_str(), url.target.as_str()),
            ("a.test", "/x?y=z")
        );
        assert_eq!(url.to_string(), "https://a.test:8443/x");
        let six = Url::parse("http://[::1]?q").unwrap();
        assert_eq!(
            (six.authority().as_str(), six.target.as_str()),
            ("[::1]", "/?q")
        );
        assert_eq!(six.host_and_port(), "[::1]:80");
        assert!(six.is_loopback());
        for wrong in [
            "",
            "a.test",
            "ftp://a.test/",
            "https://",
            "https:///x",
            "https://user:password@a.test/",
            "https://a.test:0/",
            "https://a.test:x/",
            "https://a.test:+1/",
            "https://a test/",
            "https://a.test/x y",
            "https://a.test/x\r\nHost: b",
            "https://[::1/",
            "file:///etc/passwd",
        ] {
            assert_eq!(Url::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_location_is_absolute_or_at_the_same_host() {
        let url = Url::parse("https://a.test:8443/v2/x").unwrap();
        let at = |location: &str| {
            url.join(location)
                .map(|url| (url.host_and_port(), url.target))
        };
        let there = |host: &str, target: &str| Some((host.to_owned(), target.to_owned()));
        assert_eq!(at("/y?z"), there("a.test:8443", "/y?z"));
        assert_eq!(at("https://b.test/y"), there("b.test:443", "/y"));
        assert_eq!(at("//b.test/y"), None);
        assert_eq!(at("y"), None);
    }

    proptest! {
        #[test]
        fn what_is_parsed_cannot_break_out_of_a_request(text in "(https?://)?.{0,40}") {
            if let Some(url) = Url::parse(&text) {
                prop_assert!(url.target.bytes().all(|b| b.is_ascii_graphic()));
                prop_assert!(url.authority().bytes().all(|b| b.is_ascii_graphic()));
            }
        }

        #[test]
        fn an_encoded_value_is_one_value(text in ".{0,40}") {
            prop_assert!(!encode(&text).contains(['&', '=', '#', '+', ' ', '?']));
        }
    }
}
