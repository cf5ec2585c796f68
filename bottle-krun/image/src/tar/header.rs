//! One 512-byte header block.

use crate::error::EntryProblem;
use crate::tar::{BLOCK, Rdev};

/// A header whose checksum is right; nothing else about it is.
#[derive(Debug)]
pub(crate) struct Header([u8; BLOCK]);

impl Header {
    /// `None` if the checksum is wrong.
    pub(crate) fn parse(block: [u8; BLOCK]) -> Option<Self> {
        let stored = number(&block[148..156])?;
        let sum = |as_number: fn(u8) -> i64| -> i64 {
            let counted = block.iter().enumerate().map(|(at, byte)| match at {
                148..156 => i64::from(b' '),
                _ => as_number(*byte),
            });
            counted.sum()
        };
        // Some old writers added up signed bytes.
        let right = stored == sum(i64::from) || stored == sum(|byte| i64::from(byte.cast_signed()));
        right.then_some(Self(block))
    }

    pub(crate) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    pub(crate) fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        // GNU's dialect (`ustar` and two blanks) keeps times where POSIX has the prefix.
        let prefix = if &self.0[257..263] == b"ustar\0" {
            until_nul(&self.0[345..500])
        } else {
            b""
        };
        if prefix.is_empty() {
            return name.to_owned();
        }
        [prefix, b"/", name].concat()
    }

    pub(crate) fn link(&self) -> Vec<u8> {
        until_nul(&self.0[157..257]).to_owned()
    }

    /// Permission bits, set-id and sticky bits.
    pub(crate) fn mode(&self) -> Option<u16> {
        u16::try_from(number(&self.0[100..108])? & 0o7777).ok()
    }

    pub(crate) fn uid(&self) -> Option<u32> {
        owner(number(&self.0[108..116])?)
    }

    pub(crate) fn gid(&self) -> Option<u32> {
        owner(number(&self.0[116..124])?)
    }

    pub(crate) fn size(&self) -> Option<u64> {
        u64::try_from(number(&self.0[124..136])?).ok()
    }

    pub(crate) fn mtime(&self) -> Option<i64> {
        number(&self.0[136..148])
    }

    /// A device number that Linux's 12 + 20 bits can hold.
    pub(crate) fn rdev(&self) -> Result<Rdev, EntryProblem> {
        let part = |field: &[u8], limit: u32| {
            let value = u32::try_from(number(field)?).ok()?;
            (value < limit).then_some(value)
        };
        let major = part(&self.0[329..337], 1 << 12);
        let minor = part(&self.0[337..345], 1 << 20);
        match (major, minor) {
            (Some(major), Some(minor)) => Ok(Rdev { major, minor }),
            (None, _) | (_, None) => Err(EntryProblem::Field("device number")),
        }
    }
}

/// A user or group; the highest number means "unchanged" to `chown` and is nobody's.
pub(crate) fn owner(number: i64) -> Option<u32> {
    u32::try_from(number).ok().filter(|id| *id != u32::MAX)
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits between blanks and NULs, or base-256: the first bit set, then two's complement.
fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let flip = if negative { 0xff } else { 0 };
        let mut value: u64 = 0;
        for (at, byte) in field.iter().enumerate() {
            let bits = (byte ^ flip) & if at == 0 { 0x7f } else { 0xff };
            if value >> 56 != 0 {
                return None;
            }
            value = value << 8 | u64::from(bits);
        }
        let value = i64::try_from(value).ok()?;
        return Some(if negative { !value } else { value });
    }
    let is_blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field
        .iter()
        .position(|byte| !is_blank(byte))
        .unwrap_or(field.len());
    let digits = field[start..].split(is_blank).next().unwrap_or_default();
    digits.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"  644 \0 "), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(&[0x80, 0, 0, 0, 1, 0, 0, 0]), Some(1 << 24));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xfe]), Some(-2));
        assert_eq!(number(b"00x0\0"), None);
        assert_eq!(number(b"-1\0"), None);
        assert_eq!(number(&[0xbf; 12]), None, "too large");
    }

    #[test]
    fn the_highest_owner_is_refused() {
        assert_eq!(owner(4_294_967_294), Some(4_294_967_294));
        assert_eq!(owner(4_294_967_295), None);
        assert_eq!(owner(-1), None);
    }
}
