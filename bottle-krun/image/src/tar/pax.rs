//! PAX extended headers: records `LENGTH KEY=VALUE\n`.

use std::collections::BTreeMap;
use std::iter;

use crate::error::EntryProblem;
use crate::tar::header::owner;
use crate::tree::Xattrs;

/// What an extended header says, as far as a file system can hold it.
#[derive(Debug, Default)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) mtime: Option<(i64, u32)>,
    /// Sorted by name.
    pub(crate) xattrs: Xattrs,
    /// The body is a description of holes and data.
    pub(crate) sparse: bool,
}

impl Pax {
    pub(crate) fn parse(mut bytes: &[u8]) -> Result<Self, EntryProblem> {
        let mut pax = Self::default();
        let mut xattrs = BTreeMap::new();
        // Some writers pad with NULs.
        while !bytes.iter().all(|byte| *byte == 0) {
            let (key, value, rest) = record(bytes).ok_or(EntryProblem::ExtendedHeader)?;
            bytes = rest;
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                if name.is_empty() || name.len() > MAX_XATTR_NAME || name.contains(&0) {
                    return Err(EntryProblem::Xattrs { limit: MAX_XATTRS });
                }
                xattrs.insert(name, value);
            } else {
                pax.set(key, value)?;
            }
        }
        let size: usize = xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len() + 8)
            .sum();
        if size > MAX_XATTRS {
            return Err(EntryProblem::Xattrs { limit: MAX_XATTRS });
        }
        pax.xattrs = xattrs
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        Ok(pax)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), EntryProblem> {
        if key.starts_with(b"GNU.sparse.") {
            self.sparse = true;
            return Ok(());
        }
        // An empty value takes back what an earlier header said: the plain header counts.
        let given = !value.is_empty();
        let decimal = |field| {
            if !given {
                return Ok(None);
            }
            str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse::<i64>().ok())
                .map(Some)
                .ok_or(EntryProblem::Field(field))
        };
        match key {
            b"path" => self.path = given.then(|| value.to_owned()),
            b"linkpath" => self.link = given.then(|| value.to_owned()),
            b"size" => {
                let size = decimal("size")?.map(u64::try_from).transpose();
                self.size = size.map_err(|_| EntryProblem::Field("size"))?;
            }
            b"uid" => {
                let number = decimal("uid")?;
                self.uid = number.and_then(owner);
                if self.uid.is_none() && number.is_some() {
                    return Err(EntryProblem::Field("uid"));
                }
            }
            b"gid" => {
                let number = decimal("gid")?;
                self.gid = number.and_then(owner);
                if self.gid.is_none() && number.is_some() {
                    return Err(EntryProblem::Field("gid"));
                }
            }
            b"mtime" => {
                let time = given.then(|| time(value).ok_or(EntryProblem::Field("mtime")));
                self.mtime = time.transpose()?;
            }
            // atime, ctime, uname, gname, comment, hdrcharset, vendors' own: nothing to keep.
            _ => {}
        }
        Ok(())
    }
}

/// Key, value, and what follows the record.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes
        .iter()
        .take(MAX_LENGTH_DIGITS)
        .position(|byte| *byte == b' ')?;
    let digits = str::from_utf8(&bytes[..space]).ok()?;
    if !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let length: usize = digits.parse().ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = record.split_at(equals);
    if key.is_empty() {
        return None;
    }
    Some((key, &value[1..], rest))
}

/// `-1.5` is one and a half seconds before the epoch: seconds rounded down, and nanoseconds.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = str::from_utf8(value).ok()?;
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |part: &str| part.bytes().all(|digit| digit.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let seconds: u64 = whole.parse().ok()?;
    // Digits beyond nanoseconds are cut.
    let nanos: u32 = fraction
        .bytes()
        .chain(iter::repeat(b'0'))
        .take(9)
        .fold(0, |nanos, digit| nanos * 10 + u32::from(digit - b'0'));
    match (negative, nanos) {
        (false, _) => Some((i64::try_from(seconds).ok()?, nanos)),
        (true, 0) => Some((0i64.checked_sub_unsigned(seconds)?, 0)),
        (true, _) => {
            let below = 0i64.checked_sub_unsigned(seconds)?.checked_sub(1)?;
            Some((below, NANOS - nanos))
        }
    }
}

const NANOS: u32 = 1_000_000_000;
/// `usize::MAX` has 20 digits.
const MAX_LENGTH_DIGITS: usize = 21;
/// Linux's `XATTR_NAME_MAX`.
const MAX_XATTR_NAME: usize = 255;
/// Names and values of one file together; Linux lists and reads at most 64 KiB.
pub(crate) const MAX_XATTRS: usize = (64 << 10) - 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_round_down() {
        assert_eq!(time(b"12"), Some((12, 0)));
        assert_eq!(time(b"12.000000001"), Some((12, 1)));
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"12.9999999999"), Some((12, 999_999_999)));
        assert_eq!(time(b"-1.5"), Some((-2, 500_000_000)));
        assert_eq!(time(b"-0.25"), Some((-1, 750_000_000)));
        assert_eq!(time(b"-7"), Some((-7, 0)));
        assert_eq!(time(b"-9223372036854775808"), Some((i64::MIN, 0)));
        assert_eq!(time(b"-9223372036854775808.5"), None);
        for wrong in ["", "-", ".5", "1.x", "--1", "1e3", "99999999999999999999"] {
            assert_eq!(time(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn a_value_may_contain_anything() {
        let pax = Pax::parse(b"31 SCHILY.xattr.user.x=a\n=\0b c\n").unwrap();
        let (name, value) = &pax.xattrs[0];
        assert_eq!((&**name, &**value), (&b"user.x"[..], &b"a\n=\0b c"[..]));
    }

    #[test]
    fn an_empty_value_takes_back() {
        let pax = Pax::parse(b"10 path=a\n8 path=\n").unwrap();
        assert_eq!(pax.path, None);
    }

    #[test]
    fn malformed_records_are_refused() {
        for wrong in [
            &b"x"[..],
            b"5 a=b",
            b"6 a=bc",
            b"0 a=b\n",
            b"1 a=b\n",
            b"2 a=b\n",
            b"99999999999999999999999 a=b\n",
            b"+6 a=b\n",
            b"5 =b\n",
            b"5 ab\n",
            b"9 uid=-1\n",
            b"18 uid=4294967295\n",
            b"16 SCHILY.xattr.=\n",
        ] {
            assert!(Pax::parse(wrong).is_err(), "{}", wrong.escape_ascii());
        }
    }
}
