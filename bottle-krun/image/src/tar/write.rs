//! Entries -> bytes of an archive: ustar headers, and PAX records for what those cannot hold.
//!
//! The same entry gives the same bytes, and [`Tar`](super::Tar) reads them as the same entry.

use ::tar::{EntryType, Header};

use crate::tar::{BLOCK, EntryKind};
use crate::tree::Meta;

/// Everything in front of an entry's body.
pub(crate) fn head(path: &[u8], meta: &Meta, kind: &EntryKind) -> Vec<u8> {
    let mut records = Vec::new();
    let mut header = Header::new_ustar();
    let Meta {
        mode,
        uid,
        gid,
        mtime,
        nanos,
        xattrs,
    } = meta;
    header.set_mode(u32::from(*mode));
    header.set_uid(octal("uid", (*uid).into(), MAX_OWNER, &mut records));
    header.set_gid(octal("gid", (*gid).into(), MAX_OWNER, &mut records));
    let (flag, size, target) = match kind {
        EntryKind::Block(_) => (b'4', 0, &[][..]),
        EntryKind::Char(_) => (b'3', 0, &[][..]),
        EntryKind::Directory => (b'5', 0, &[][..]),
        EntryKind::Fifo => (b'6', 0, &[][..]),
        EntryKind::File(size) => (b'0', *size, &[][..]),
        EntryKind::HardLink(target) => (b'1', 0, &target[..]),
        EntryKind::Symlink(target) => (b'2', 0, &target[..]),
    };
    header.set_entry_type(EntryType::new(flag));
    header.set_size(octal("size", size, MAX_SIZE, &mut records));
    match u64::try_from(*mtime) {
        Ok(seconds @ 0..=MAX_SIZE) if *nanos == 0 => header.set_mtime(seconds),
        Ok(_) | Err(_) => {
            header.set_mtime(0);
            records.push((b"mtime".to_vec(), decimal(*mtime, *nanos).into_bytes()));
        }
    }
    if let EntryKind::Block(rdev) | EntryKind::Char(rdev) = kind
        && let Some(ustar) = header.as_ustar_mut()
    {
        ustar.set_device_major(rdev.major);
        ustar.set_device_minor(rdev.minor);
    }
    let old = header.as_old_mut();
    text(&mut old.name, "path", path, &mut records);
    text(&mut old.linkname, "linkpath", target, &mut records);
    for (name, value) in xattrs {
        records.push(([b"SCHILY.xattr.", &**name].concat(), value.to_vec()));
    }
    let mut head = extended(&records);
    header.set_cksum();
    head.extend(header.as_bytes());
    head
}

/// Bytes between a body of `size` bytes and the next header.
pub(crate) fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

/// The end of an archive.
pub(crate) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// An extended header and its records; nothing if there are none.
fn extended(records: &Records) -> Vec<u8> {
    if records.is_empty() {
        return Vec::new();
    }
    let body: Vec<u8> = records
        .iter()
        .flat_map(|(key, value)| record(key, value))
        .collect();
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::XHeader);
    let name = b"PaxHeader";
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(body.len() as u64);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// `LENGTH KEY=VALUE\n`; the length counts its own digits, too.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// What the header's field holds of a number; one that is too large gets a record.
fn octal(key: &str, number: u64, largest: u64, records: &mut Records) -> u64 {
    if number <= largest {
        return number;
    }
    records.push((key.as_bytes().to_vec(), number.to_string().into_bytes()));
    0
}

/// Fills a header's field; a text that is too long gets a record.
fn text(field: &mut [u8], key: &str, text: &[u8], records: &mut Records) {
    if let Some(start) = field.get_mut(..text.len()) {
        start.copy_from_slice(text);
    } else {
        // Who knows no records sees at least where it belongs.
        let (start, _) = text.split_at(field.len());
        field.copy_from_slice(start);
        records.push((key.as_bytes().to_vec(), text.to_vec()));
    }
}

/// One and a half seconds before the epoch, kept as -2 s and 500,000,000 ns, are `-1.5`.
fn decimal(seconds: i64, nanos: u32) -> String {
    match (seconds, nanos) {
        (_, 0) => seconds.to_string(),
        (..0, _) => format!("-{}.{:09}", -(seconds + 1), NANOS - nanos),
        (0.., _) => format!("{seconds}.{nanos:09}"),
    }
}

const NANOS: u32 = 1_000_000_000;
/// Seven octal digits.
const MAX_OWNER: u64 = (1 << 21) - 1;
/// Eleven octal digits.
const MAX_SIZE: u64 = (1 << 33) - 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tar::{Rdev, Tar};

    #[track_caller]
    fn survives(path: &[u8], meta: &Meta, kind: &EntryKind) {
        let mut bytes = head(path, meta, kind);
        assert_eq!(bytes.len() % BLOCK, 0);
        bytes.extend(END);
        let entry = Tar::new(&bytes[..]).next().unwrap().unwrap();
        assert_eq!((&entry.path[..], &entry.meta), (path, meta));
        assert_eq!(&entry.kind, kind);
    }

    #[test]
    fn what_is_written_is_read_at_every_limit_of_a_field() {
        let meta = Meta {
            mode: 0o7777,
            ..Meta::default()
        };
        for length in [1, 99, 100, 101, 255, 4095] {
            survives(&vec![b'n'; length], &meta, &EntryKind::Fifo);
            let target = vec![0xff; length];
            survives(b"link", &meta, &EntryKind::Symlink(target));
            survives(b"hard", &meta, &EntryKind::HardLink(vec![b'x'; length]));
        }
        for owner in [0, 1 << 20, (1 << 21) - 1, 1 << 21, u32::MAX - 1] {
            let meta = Meta {
                uid: owner,
                gid: owner,
                ..Meta::default()
            };
            survives(b"d", &meta, &EntryKind::Directory);
        }
        for size in [0, 1, (1 << 33) - 1, 1 << 33, 1 << 40] {
            survives(b"f", &meta, &EntryKind::File(size));
        }
        for seconds in [0, 1, -1, (1 << 33) - 1, 1 << 33, i64::MAX, i64::MIN] {
            for nanos in [0, 1, 999_999_999] {
                let meta = Meta {
                    mtime: seconds,
                    nanos,
                    ..Meta::default()
                };
                survives(b"t", &meta, &EntryKind::Fifo);
            }
        }
        let largest = Rdev {
            major: 4095,
            minor: (1 << 20) - 1,
        };
        survives(b"c", &meta, &EntryKind::Char(largest));
        survives(b"b", &meta, &EntryKind::Block(largest));
    }

    proptest! {
        #[test]
        fn any_attributes_are_read_as_they_were_written(
            xattrs in prop::collection::btree_map(
                "user\\.[a-z\u{e9}]{1,40}",
                prop::collection::vec(any::<u8>(), 0..1100),
                0..6,
            ),
            path in "[^\0/]{1,80}/[^\0/]{1,60}",
        ) {
            let xattrs = xattrs.into_iter();
            let meta = Meta {
                xattrs: xattrs.map(|(name, value)| (name.into_bytes().into(), value.into())).collect(),
                ..Meta::default()
            };
            survives(path.as_bytes(), &meta, &EntryKind::File(7));
        }
    }
}
