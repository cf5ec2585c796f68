//! What a tree looks like, in a form that can be compared.

use std::collections::BTreeMap;

use rustix::fs::makedev;
use sha2::{Digest, Sha256};

/// Paths (`` for the root) and what is there.
pub(crate) type Tree = BTreeMap<Vec<u8>, Facts>;

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Facts {
    /// Type and permissions.
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    /// Of files and links.
    pub(crate) size: u64,
    pub(crate) mtime: (i64, i64),
    pub(crate) rdev: u64,
    pub(crate) links: u64,
    pub(crate) target: Vec<u8>,
    pub(crate) sha256: Vec<u8>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path with the same inode.
    pub(crate) same_as: Vec<u8>,
}

pub(crate) fn sha256(bytes: &[u8]) -> Vec<u8> {
    Sha256::digest(bytes).to_vec()
}

/// As `stat` has it.
pub(crate) fn rdev(major: u32, minor: u32) -> u64 {
    makedev(major, minor)
}

/// Compares everything and says what differs, a few paths only.
#[track_caller]
pub(crate) fn assert_same(left: &Tree, right: &Tree, what: &str) {
    let mut differences = Vec::new();
    for path in left
        .keys()
        .chain(right.keys().filter(|path| !left.contains_key(*path)))
    {
        let (a, b) = (left.get(path), right.get(path));
        if a != b {
            differences.push(format!("{}\n   {a:?}\n   {b:?}", path.escape_ascii()));
        }
    }
    assert!(
        differences.is_empty(),
        "{what}: {} of {} paths differ\n{}",
        differences.len(),
        left.len().max(right.len()),
        differences[..differences.len().min(6)].join("\n")
    );
}
