//! The secret scanner: finds tokens and known values in text and in streams.
//!
//! ```text
//! body ─┬──────────────► readings ─┐             engine: one automaton over all forms of known
//!       └─ codec ──────► readings ─┴─► verdict   values and all prefixes of tokens; a prefix opens
//!          (gzip, zstd…)                         a run, which counts, checks and decides
//! ```
//!
//! A *reading* is the stream as it stands and, forked off where an escape stands, the stream with
//! its escapes undone. Verdicts do not depend on where the stream was split. Nothing here does I/O,
//! and no error or name of a finding holds text that was scanned.

mod body;
mod checksum;
mod codec;
mod engine;
mod family;
mod held;
mod lane;
mod needle;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod unescape;

use std::sync::Arc;

use bottle_core::policy::Dlp;
use bottle_core::secret::Secret;
use thiserror::Error;

pub(crate) use body::BodyScan;

use engine::Engine;
use family::FAMILIES;
use lane::Readings;

/// What the scanner looks for, compiled once per bottle.
#[derive(Debug)]
pub(crate) struct Scanner {
    engine: Arc<Engine>,
}

impl Scanner {
    /// Compiles the token families and the known values with their encodings.
    ///
    /// # Errors
    ///
    /// [`ScannerError`] if there are more known values than the scanner takes.
    pub(crate) fn new(known: &[Secret]) -> Result<Self, ScannerError> {
        Ok(Self {
            engine: Arc::new(Engine::new(known, FAMILIES, needle::BEGINNING)?),
        })
    }

    /// Compiles these values with their encodings, and no token families.
    ///
    /// # Errors
    ///
    /// [`ScannerError`] if there are more values than the scanner takes.
    pub(crate) fn of_values(known: &[Secret]) -> Result<Self, ScannerError> {
        Ok(Self {
            engine: Arc::new(Engine::new(known, &[], needle::WHOLE)?),
        })
    }

    /// Scans one text (a path, a header, a name) as it stands and with its escapes undone.
    pub(crate) fn scan_text(&self, text: &[u8]) -> Option<Finding> {
        let mut readings = Readings::new(Arc::clone(&self.engine));
        let find = readings.feed(text).1.or_else(|| readings.end())?;
        Some(Finding {
            name: self.engine.name(find.what),
        })
    }

    /// Overwrites every secret in a text with `*`; returns what they were, nothing if there are none.
    pub(crate) fn overwrite(&self, text: &mut [u8]) -> Vec<Finding> {
        let mut readings = Readings::new(Arc::clone(&self.engine));
        let mut finds = Vec::new();
        let mut rest = &text[..];
        while !rest.is_empty() {
            let (taken, find) = readings.feed(rest);
            finds.extend(find);
            rest = &rest[taken..];
        }
        finds.extend(readings.end());
        let mut findings = Vec::new();
        for find in finds {
            let end = text.len();
            let place = |at| usize::try_from(at).unwrap_or(usize::MAX).min(end);
            text[place(find.from)..place(find.to)].fill(b'*');
            let name = self.engine.name(find.what);
            findings.push(Finding { name });
        }
        findings.dedup();
        findings
    }

    /// Begins the scan of a body.
    pub(crate) fn stream(&self, encoding: ContentEncoding, treatment: Treatment) -> BodyScan {
        BodyScan::new(&self.engine, encoding, treatment)
    }
}

/// What becomes of a body in which a secret is found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Treatment {
    /// Nobody looks.
    Ignore,
    /// The secret is overwritten.
    Overwrite,
    /// The body is refused.
    Refuse,
    /// It passes, and what was found is told.
    Report,
}

impl Treatment {
    /// Returns what a rule's word means.
    pub(crate) fn of(dlp: Dlp) -> Self {
        match dlp {
            Dlp::Block => Self::Refuse,
            Dlp::Redact => Self::Overwrite,
            Dlp::Warn => Self::Report,
            Dlp::Off => Self::Ignore,
        }
    }
}

/// The value of `Content-Encoding`, as far as it can be decoded for scanning.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ContentEncoding {
    /// `br`
    Brotli,
    /// `deflate`: zlib, or a bare deflate stream.
    Deflate,
    /// `gzip` or `x-gzip`.
    Gzip,
    /// `identity`, or no header.
    Identity,
    /// `zstd`
    Zstd,
}

impl ContentEncoding {
    /// Parses a header value; `None` if it is unknown, or a chain of several: refuse the body.
    pub(crate) fn parse(value: &[u8]) -> Option<Self> {
        let value = value.trim_ascii();
        let is = |name: &str| value.eq_ignore_ascii_case(name.as_bytes());
        if value.is_empty() || is("identity") {
            Some(Self::Identity)
        } else if is("gzip") || is("x-gzip") {
            Some(Self::Gzip)
        } else if is("deflate") {
            Some(Self::Deflate)
        } else if is("zstd") {
            Some(Self::Zstd)
        } else if is("br") {
            Some(Self::Brotli)
        } else {
            None
        }
    }
}

/// A secret that was found: its kind or its name, never its text.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Finding {
    /// As `GitHub Token`, or `Known Secret Leak (<name>)`.
    pub(crate) name: String,
}

/// Why a body may not go out.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub(crate) enum ScanRefusal {
    /// It decodes to far more than it is.
    #[error("request body decompresses beyond the limit")]
    Bomb,
    /// It holds a secret.
    #[error("request body contains secret: {}", .0.name)]
    Secret(Finding),
    /// It is not what its `Content-Encoding` says.
    #[error("request body does not decode as its content-encoding says")]
    Undecodable,
}

/// Why a scanner could not be made.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum ScannerError {
    /// The known values are too many or too long.
    #[error("the known values are too many or too long for the scanner")]
    TooMuch,
}
