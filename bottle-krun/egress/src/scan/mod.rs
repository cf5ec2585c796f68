//! The secret scanner: finds tokens and known values in text and in streams.

use std::sync::Arc;

use bottle_core::secret::Secret;
use bytes::Bytes;
use thiserror::Error;

/// What the scanner looks for, compiled once per bottle.
#[derive(Debug)]
pub(crate) struct Scanner {}

impl Scanner {
    /// Compiles the token families and the known values with their encodings.
    ///
    /// # Errors
    ///
    /// [`ScannerError`] if there are more known values than the scanner takes.
    pub(crate) fn new(known: &[Secret]) -> Result<Self, ScannerError> {
        let _ = known;
        Ok(Self {})
    }

    /// Scans one text (a path, a header, a name) as it stands, percent-decoded and unescaped.
    pub(crate) fn scan_text(&self, text: &[u8]) -> Option<Finding> {
        let _ = (self, text);
        None
    }

    /// Begins the scan of a body.
    pub(crate) fn stream(self: &Arc<Self>, encoding: ContentEncoding) -> BodyScan {
        let _ = encoding;
        BodyScan {
            _scanner: Arc::clone(self),
        }
    }
}

/// One body on its way out. Bytes go in, and come out once they cannot be part of a secret.
///
/// The bytes that come out are exactly the bytes that went in, in order. After a refusal the body
/// must be aborted: nothing more comes out.
#[derive(Debug)]
pub(crate) struct BodyScan {
    _scanner: Arc<Scanner>,
}

impl BodyScan {
    /// Takes the next bytes, returns what may go out now.
    ///
    /// # Errors
    ///
    /// [`ScanRefusal`]: abort the body.
    pub(crate) fn push(&mut self, chunk: Bytes) -> Result<Vec<Bytes>, ScanRefusal> {
        Ok(vec![chunk])
    }

    /// Ends the body, returns the rest of it.
    ///
    /// # Errors
    ///
    /// [`ScanRefusal`]: abort the body.
    pub(crate) fn finish(self) -> Result<Vec<Bytes>, ScanRefusal> {
        Ok(Vec::new())
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
