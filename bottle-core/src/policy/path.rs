//! Paths of requests and the prefixes that rules name, compared segment by segment.
//!
//! Servers disagree about what a path means as soon as it holds `..`, `//`, `;`, a backslash or an
//! encoded slash. Where a rule speaks of paths, such a path is refused instead of guessed at:
//!
//! | in the path | is |
//! | --- | --- |
//! | `%41`, `%c3%a9`, `%C3%A9` | decoded once; the case of hex digits means nothing |
//! | `/v1` against the prefix `/v1/` or the other way round | the same |
//! | a `/` at the end | one empty segment, allowed there alone |
//! | `//`, a segment `.` or `..`, encoded or not | refused |
//! | `;`, `\`, `%2f`, `%5c`, `%3b` | refused |
//! | `%25` before two hex digits (encoded twice) | refused |
//! | `%` without two hex digits, an encoded control character or NUL | refused |
//!
//! Letters of different case are different, except for a prefix that is denied: a server might not
//! tell them apart, and a denial must not be escaped by a capital letter.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use thiserror::Error;

use crate::text::Escaped;

/// The path of a request, understood in the one way in which every server does.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RequestPath {
    segments: Vec<Vec<u8>>,
}

impl RequestPath {
    /// Parses the path of a request, without its query.
    ///
    /// # Errors
    ///
    /// [`PathError`] if servers could take it for different paths.
    pub fn parse(path: &str) -> Result<Self, PathError> {
        segments(path)
            .map(|segments| Self { segments })
            .map_err(|why| PathError {
                text: path.to_owned(),
                why,
            })
    }
}

/// The beginning of paths: whole segments.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct PathPrefix {
    segments: Vec<Vec<u8>>,
}

impl PathPrefix {
    /// Says whether the path begins with these segments.
    pub fn covers(&self, path: &RequestPath) -> bool {
        path.segments.starts_with(&self.segments)
    }

    /// The same for a denial, which does not tell the case of letters apart.
    pub(super) fn might_cover(&self, path: &RequestPath) -> bool {
        let mut given = path.segments.iter();
        self.segments.iter().all(|segment| {
            given
                .next()
                .is_some_and(|given| given.eq_ignore_ascii_case(segment))
        })
    }

    /// Returns how many segments it fixes.
    pub(super) fn len(&self) -> usize {
        self.segments.len()
    }
}

impl FromStr for PathPrefix {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        let wrong = |why| PathError {
            text: text.to_owned(),
            why,
        };
        if text.contains(['?', '#']) {
            return Err(wrong("it holds a `?` or `#`: a rule names no query"));
        }
        let mut segments = segments(text).map_err(wrong)?;
        if segments.last().is_some_and(Vec::is_empty) {
            segments.pop();
        }
        Ok(Self { segments })
    }
}

impl Display for PathPrefix {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.segments.is_empty() {
            return f.write_str("/");
        }
        for segment in &self.segments {
            f.write_str("/")?;
            for byte in segment {
                let is_plain = byte.is_ascii_alphanumeric() || b"-._~@!$&'()*+,:=".contains(byte);
                if is_plain {
                    write!(f, "{}", char::from(*byte))?;
                } else {
                    write!(f, "%{byte:02X}")?;
                }
            }
        }
        Ok(())
    }
}

/// Why a path cannot be compared.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("path `{}` is ambiguous or no path: {why}", Escaped(text))]
pub struct PathError {
    text: String,
    why: &'static str,
}

impl PathError {
    /// Returns what is wrong, without the path.
    pub fn why(&self) -> &'static str {
        self.why
    }
}

fn segments(path: &str) -> Result<Vec<Vec<u8>>, &'static str> {
    let rest = path
        .strip_prefix('/')
        .ok_or("it does not begin with a `/`")?;
    let mut segments = Vec::new();
    let mut parts = rest.split('/').peekable();
    while let Some(part) = parts.next() {
        let segment = decode(part)?;
        if segment.is_empty() && parts.peek().is_some() {
            return Err("it has an empty segment (`//`)");
        }
        if matches!(segment.as_slice(), b"." | b"..") {
            return Err("it has a segment `.` or `..`");
        }
        segments.push(segment);
    }
    Ok(segments)
}

/// Undoes percent-encoding, once, and refuses what could be read in a second way.
fn decode(part: &str) -> Result<Vec<u8>, &'static str> {
    let hex = |byte: &u8| (*byte as char).to_digit(16);
    let mut decoded = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let Some((byte, behind)) = rest.split_first() {
        rest = behind;
        let mut byte = *byte;
        if byte == b'%' {
            let digits = rest.split_at_checked(2).and_then(|(digits, behind)| {
                Some((digits, behind, hex(&digits[0])?, hex(&digits[1])?))
            });
            let Some((_, behind, high, low)) = digits else {
                return Err("it has a `%` without two hex digits");
            };
            rest = behind;
            byte = u8::try_from(high << 4 | low).unwrap_or(u8::MAX);
            let is_doubled =
                byte == b'%' && rest.len() >= 2 && rest[..2].iter().all(|b| hex(b).is_some());
            if is_doubled {
                return Err("it is percent-encoded twice");
            }
        }
        match byte {
            b'/' => return Err("it has an encoded slash"),
            b'\\' => return Err("it has a backslash"),
            b';' => return Err("it has a `;`"),
            0..=31 | 127 => return Err("it has a control character"),
            _ => decoded.push(byte),
        }
    }
    Ok(decoded)
}
