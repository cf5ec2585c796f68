//! SHA-256 digests, and a reader and writer that computes one while the bytes go by.

use std::fmt::{self, Debug, Display, Formatter};
use std::io::{self, Read, Write};

use sha2::{Digest as _, Sha256};

/// A SHA-256 digest, the only algorithm that images use in practice.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    /// Parses `sha256:` and 64 lower-case hexadecimal digits; nothing else is a digest.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("sha256:")?.as_bytes();
        let (pairs, rest) = hex.as_chunks::<2>();
        if !rest.is_empty() || pairs.len() != 32 {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = nibble(*high)? << 4 | nibble(*low)?;
        }
        Some(Self(bytes))
    }

    /// The digest of `bytes`.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest itself.
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 digits without the algorithm: the name of the blob, and safe as a file name.
    pub(crate) fn hex(&self) -> String {
        use fmt::Write;
        self.0
            .iter()
            .fold(String::with_capacity(64), |mut text, byte| {
                // Writing to a `String` cannot fail.
                let _ = write!(text, "{byte:02x}");
                text
            })
    }
}

impl Display for Digest {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl Debug for Digest {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Hashes and counts everything that is read or written through it.
#[derive(Debug)]
pub(crate) struct Hashed<I> {
    inner: I,
    hash: Sha256,
    count: u64,
}

impl<I> Hashed<I> {
    pub(crate) fn new(inner: I) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            count: 0,
        }
    }

    /// Bytes so far.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The digest of the bytes so far.
    pub(crate) fn digest(&self) -> Digest {
        Digest(self.hash.clone().finalize().into())
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.hash.update(&buf[..read]);
        self.count += read as u64;
        Ok(read)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buf)?;
        self.hash.update(&buf[..written]);
        self.count += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_is_printed_as_it_is_parsed() {
        assert_eq!(Digest::parse(EMPTY).unwrap().to_string(), EMPTY);
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
    }

    #[test]
    fn nothing_but_lower_case_sha256_is_a_digest() {
        for wrong in [
            "",
            "sha256:",
            "sha512:00",
            &EMPTY[..70],
            &format!("{EMPTY}0"),
            &format!("{EMPTY}00"),
            &EMPTY.to_uppercase(),
            &format!("sha256:../{}", &EMPTY[10..]),
        ] {
            assert_eq!(Digest::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_hashed_reader_knows_digest_and_count() {
        let mut reader = Hashed::new(&b"abc"[..]);
        io::copy(&mut reader, &mut io::sink()).unwrap();
        assert_eq!((reader.count(), reader.digest()), (3, Digest::of(b"abc")));
    }
}
