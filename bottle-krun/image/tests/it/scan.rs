//! A directory of the host as [`Facts`].

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{lgetxattr, llistxattr};

use crate::facts::{Facts, Tree, sha256};

pub(crate) fn scan(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let full = if path.is_empty() {
            root.to_owned()
        } else {
            root.join(OsStr::from_bytes(&path))
        };
        let found = fs::symlink_metadata(&full).unwrap();
        let mut facts = Facts {
            mode: found.mode(),
            owner: (found.uid(), found.gid()),
            mtime: (found.mtime(), found.mtime_nsec()),
            links: found.nlink(),
            xattrs: xattrs(&full),
            ..Facts::default()
        };
        match found.mode() & 0o170_000 {
            0o040_000 => {
                for entry in fs::read_dir(&full).unwrap() {
                    let name = entry.unwrap().file_name();
                    let mut below = path.clone();
                    if !below.is_empty() {
                        below.push(b'/');
                    }
                    below.extend(name.as_bytes());
                    todo.push(below);
                }
            }
            0o100_000 => {
                facts.size = found.size();
                facts.sha256 = sha256(&fs::read(&full).unwrap());
            }
            0o120_000 => {
                facts.size = found.size();
                facts.target = fs::read_link(&full)
                    .unwrap()
                    .into_os_string()
                    .as_bytes()
                    .to_vec();
            }
            0o020_000 | 0o060_000 => facts.rdev = found.rdev(),
            _ => {}
        }
        // Numbers are compared as groups: see below.
        facts.same_as = format!("{}:{}", found.dev(), found.ino()).into_bytes();
        tree.insert(path, facts);
    }
    group(&mut tree);
    tree
}

/// Replaces inode numbers by the first path that has them, in the reader's order.
fn group(tree: &mut Tree) {
    let mut first = BTreeMap::new();
    let mut order: Vec<Vec<u8>> = tree.keys().cloned().collect();
    // Depth first, names sorted: by components, not by bytes of the whole path.
    order.sort_by(|a, b| a.split(|c| *c == b'/').cmp(b.split(|c| *c == b'/')));
    for path in order {
        let facts = tree.get_mut(&path).unwrap();
        facts.same_as = first.entry(facts.same_as.clone()).or_insert(path).clone();
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 1 << 16];
    let length = llistxattr(path, &mut names).unwrap();
    names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let length = lgetxattr(path, OsStr::from_bytes(name), &mut value).unwrap();
            (name.to_vec(), value[..length].to_vec())
        })
        .collect()
}
