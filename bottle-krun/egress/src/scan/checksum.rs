//! The checksum inside GitHub's tokens: CRC-32 of the random part, six digits in base 62.

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The characters of a checksum.
pub(super) const LEN: usize = 6;

/// The checksum of bytes that come one by one: CRC-32 as in zlib and Ethernet.
#[derive(Clone, Debug)]
pub(super) struct Crc(u32);

impl Default for Crc {
    fn default() -> Self {
        Self(u32::MAX)
    }
}

impl Crc {
    /// Takes the next byte. Bit by bit: it runs over few bytes, and seldom.
    pub(super) fn push(&mut self, byte: u8) {
        self.0 = (0..8).fold(self.0 ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        });
    }

    /// Returns the checksum of the bytes so far.
    pub(super) fn digits(&self) -> [u8; LEN] {
        let mut rest = !self.0;
        let mut digits = [b'0'; LEN];
        for digit in digits.iter_mut().rev() {
            // A remainder by 62 is an index into 62 digits.
            *digit = DIGITS[(rest % 62) as usize];
            rest /= 62;
        }
        digits
    }
}

#[cfg(test)]
pub(super) fn of(random: &[u8]) -> [u8; LEN] {
    let mut crc = Crc::default();
    random.iter().for_each(|byte| crc.push(*byte));
    crc.digits()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_the_crc_comes_out() {
        let mut crc = Crc::default();
        b"123456789".iter().for_each(|byte| crc.push(*byte));
        assert_eq!(!crc.0, 0xcbf4_3926);
    }

    #[test]
    fn a_published_random_part_has_its_published_checksum() {
        assert_eq!(&of(b"zQWBuTSOoRi4A9spHcVY5ncnsDkxkJ"), b"0mLq17");
    }
}
