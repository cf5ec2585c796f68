//! Random bytes of the host's kernel.

use std::fs::File;
use std::io::{self, Read};

/// Returns `N` random bytes.
///
/// # Errors
///
/// What `/dev/urandom` says.
pub(crate) fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Returns `N` random characters of `[a-z2-7]`.
///
/// # Errors
///
/// What `/dev/urandom` says.
pub(crate) fn base32<const N: usize>() -> io::Result<String> {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let characters = bytes::<N>()?.into_iter();
    Ok(characters
        .map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]))
        .collect())
}
