//! The checksum inside GitHub's tokens: CRC-32 of the random part, six digits in base 62.

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The characters of a checksum.
const LEN: usize = 6;

/// Says whether the last six bytes are the checksum of those before them.
pub(super) fn ends_with_own(body: &[u8]) -> bool {
    body.split_last_chunk::<LEN>()
        .is_some_and(|(random, check)| of(random) == *check)
}

/// Returns the checksum of the random part.
pub(super) fn of(random: &[u8]) -> [u8; LEN] {
    let mut rest = crc32(random);
    let mut digits = [b'0'; LEN];
    for digit in digits.iter_mut().rev() {
        // A remainder by 62 is an index into 62 digits.
        *digit = DIGITS[(rest % 62) as usize];
        rest /= 62;
    }
    digits
}

/// CRC-32 as in zlib and Ethernet, bit by bit: it runs over thirty bytes, and seldom.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_the_crc_comes_out() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_published_random_part_has_its_published_checksum() {
        assert_eq!(&of(b"zQWBuTSOoRi4A9spHcVY5ncnsDkxkJ"), b"0mLq17");
        assert!(!ends_with_own(b"short"));
    }
}
