//! Extended attributes as they stand behind an inode.

use crate::tree::Xattrs;

/// True if EROFS has a prefix for the name.
pub(crate) fn is_representable(name: &[u8]) -> bool {
    split(name).is_some()
}

/// Bytes that [`body`] has.
pub(crate) fn size(xattrs: &Xattrs) -> u64 {
    let entries: usize = xattrs
        .iter()
        .filter_map(|(name, value)| {
            let (_, suffix) = split(name)?;
            Some((ENTRY + suffix.len() + value.len()).next_multiple_of(4))
        })
        .sum();
    if entries == 0 {
        0
    } else {
        (HEADER + entries) as u64
    }
}

/// A header, then each attribute; nothing if there is none.
pub(crate) fn body(xattrs: &Xattrs) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    for (name, value) in xattrs {
        let Some((prefix, suffix)) = split(name) else {
            continue;
        };
        // Names have at most 255 bytes, all attributes of an inode less than 64 KiB.
        bytes.push(u8::try_from(suffix.len()).unwrap_or(u8::MAX));
        bytes.push(prefix);
        bytes.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
        bytes.extend_from_slice(suffix);
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    if bytes.len() == HEADER {
        bytes.clear();
    }
    bytes
}

/// The inode's field for a body of `size` bytes.
pub(crate) fn count(size: usize) -> usize {
    if size == 0 {
        0
    } else {
        (size - HEADER) / 4 + 1
    }
}

/// EROFS stores a number for the prefix of a name.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    if let Some((_, number)) = WHOLE.iter().find(|(whole, _)| *whole == name) {
        return Some((*number, b""));
    }
    PREFIXES.iter().find_map(|(prefix, number)| {
        let suffix = name.strip_prefix(*prefix)?;
        (!suffix.is_empty()).then_some((*number, suffix))
    })
}

const WHOLE: [(&[u8], u8); 2] = [
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
];
const PREFIXES: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
const HEADER: usize = 12;
const ENTRY: usize = 4;
