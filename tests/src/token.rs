//! A GitHub token that a scanner must take for real. It is put together at run time, so that no
//! file of this repository holds one.

use std::fmt::Write;

use sha2::{Digest, Sha256};

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Makes the personal access token that belongs to `seed`: prefix, 30 digits in base 62, and the
/// CRC-32 of these as six further digits.
pub fn github(seed: &str) -> String {
    let body: String = Sha256::digest(seed.as_bytes())
        .iter()
        .map(|byte| char::from(DIGITS[usize::from(*byte) % DIGITS.len()]))
        .take(30)
        .collect();
    let mut check = [b'0'; 6];
    let mut rest = crc32(body.as_bytes());
    for digit in check.iter_mut().rev() {
        *digit = DIGITS[rest as usize % DIGITS.len()];
        rest /= 62;
    }
    format!("{}_{body}{}", "ghp", String::from_utf8_lossy(&check))
}

/// The CRC-32 of IEEE 802.3, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 0 {
                crc >> 1
            } else {
                (crc >> 1) ^ 0xedb8_8320
            };
        }
    }
    !crc
}

/// Writes bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_token_has_the_form_and_the_checksum_of_a_real_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        let token = github("a");
        assert_eq!(token.len(), 40);
        assert!(
            token[4..].bytes().all(|byte| byte.is_ascii_alphanumeric()),
            "{token}"
        );
        assert_ne!(token, github("b"));
    }
}
