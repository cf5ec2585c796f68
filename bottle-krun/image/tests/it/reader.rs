//! A reader of disks, written apart from the writer: VMDK descriptors, and uncompressed EROFS.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bottle_image::ImageDisk;

use crate::facts::{Facts, Tree, rdev, sha256};

/// The tree of a disk.
#[track_caller]
pub(crate) fn read(disk: &ImageDisk) -> Tree {
    read_bytes(&joined(disk))
}

/// The bytes of a disk, joined as its descriptor says: the parts' directories do not matter.
#[track_caller]
pub(crate) fn joined(disk: &ImageDisk) -> Vec<u8> {
    let text = fs::read_to_string(&disk.descriptor).unwrap();
    let named = |name: &str| -> &Path {
        let found = |part: &&PathBuf| part.file_name().unwrap() == name;
        disk.parts.iter().find(found).unwrap()
    };
    let mut bytes = Vec::new();
    let mut order = Vec::new();
    for line in text.lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some(extent) = line.strip_prefix("RDONLY ") else {
            let (key, _) = line.split_once('=').unwrap();
            let known = ["version", "CID", "parentCID", "createType"];
            assert!(known.contains(&key), "{line}");
            continue;
        };
        let quoted: Vec<&str> = extent.split('"').collect();
        let [size, name, offset] = quoted[..] else {
            panic!("{line}")
        };
        let (sectors, kind) = size.trim().split_once(' ').unwrap();
        assert_eq!((kind, offset.trim()), ("FLAT", "0"), "{line}");
        let sectors: usize = sectors.parse().unwrap();
        assert_eq!(sectors % 8, 0, "{line}");
        let part = fs::read(named(name)).unwrap();
        assert_eq!(part.len(), sectors * 512, "{line}");
        bytes.extend(part);
        order.push(named(name));
    }
    assert_eq!(disk.parts, order, "the order of the parts");
    assert!(text.starts_with("# Disk DescriptorFile\nversion=1\n"));
    bytes
}

/// The tree of an image that is whole by itself.
#[track_caller]
pub(crate) fn read_bytes(bytes: &[u8]) -> Tree {
    let image = Image { bytes };
    assert_eq!(image.u32(1024), 0xe0f5_e1e2, "magic");
    assert_eq!(
        u64::from(image.u32(1024 + 36)) * 4096,
        bytes.len() as u64,
        "length"
    );
    let root = u64::from(image.u16(1024 + 14));
    let mut tree = Tree::new();
    let mut seen = BTreeMap::new();
    image.walk(root, root, Vec::new(), &mut tree, &mut seen);
    assert_eq!(image.u64(1024 + 16), seen.len() as u64, "number of inodes");
    tree
}

struct Image<'b> {
    bytes: &'b [u8],
}

impl Image<'_> {
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes[at..at + 2].try_into().unwrap())
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    fn walk(
        &self,
        nid: u64,
        parent: u64,
        path: Vec<u8>,
        tree: &mut Tree,
        seen: &mut BTreeMap<u64, Vec<u8>>,
    ) {
        let at = self.u32(1024 + 40) as usize * 4096 + usize::try_from(nid).unwrap() * 32;
        let format = self.u16(at);
        assert_eq!(format & 1, 1, "extended inodes only");
        assert!(at % 4096 <= 4096 - 64, "an inode straddles a block");
        let mode = u32::from(self.u16(at + 4));
        let size = self.u64(at + 8);
        let xattr_count = usize::from(self.u16(at + 2));
        let xattr_size = if xattr_count == 0 {
            0
        } else {
            12 + (xattr_count - 1) * 4
        };
        let has_body = matches!(mode & 0o170_000, 0o040_000 | 0o100_000 | 0o120_000);
        let body = if has_body {
            self.body(
                format >> 1,
                usize::try_from(size).unwrap(),
                self.u32(at + 16),
                at + 64 + xattr_size,
            )
        } else {
            Vec::new()
        };
        let same_as = seen.entry(nid).or_insert_with(|| path.clone()).clone();
        let mut facts = Facts {
            mode,
            owner: (self.u32(at + 24), self.u32(at + 28)),
            size,
            mtime: (
                self.u64(at + 32).cast_signed(),
                i64::from(self.u32(at + 40)),
            ),
            links: u64::from(self.u32(at + 44)),
            xattrs: self.xattrs(at + 64, xattr_size),
            same_as,
            ..Facts::default()
        };
        match mode & 0o170_000 {
            0o040_000 => {
                facts.size = 0;
                let entries = names(&body);
                let sorted = entries.windows(2).all(|pair| pair[0].1 < pair[1].1);
                assert!(sorted, "names are not sorted");
                for (child, name, file_type) in entries {
                    let below = match &name[..] {
                        b"." => {
                            assert_eq!(child, nid);
                            continue;
                        }
                        b".." => {
                            assert_eq!(child, parent);
                            continue;
                        }
                        name if path.is_empty() => name.to_owned(),
                        name => [&path[..], b"/", name].concat(),
                    };
                    self.walk(child, nid, below.clone(), tree, seen);
                    let types = [
                        (1, 0o10),
                        (2, 0o04),
                        (3, 0o02),
                        (4, 0o06),
                        (5, 0o01),
                        (7, 0o12),
                    ];
                    let mode = tree[&below].mode >> 12;
                    assert!(types.contains(&(file_type, mode)), "{file_type} {mode:o}");
                }
            }
            0o100_000 => facts.sha256 = sha256(&body),
            0o120_000 => facts.target = body,
            0o020_000 | 0o060_000 => {
                let dev = self.u32(at + 16);
                let minor = (dev & 0xff) | ((dev >> 12) & 0xfff00);
                facts.rdev = rdev((dev >> 8) & 0xfff, minor);
            }
            _ => {}
        }
        tree.insert(path, facts);
    }

    fn body(&self, layout: u16, size: usize, start: u32, tail_at: usize) -> Vec<u8> {
        let start = start as usize * 4096;
        match layout {
            0 => self.bytes[start..start + size].to_vec(),
            2 => {
                let tail = size % 4096;
                assert!(
                    tail_at / 4096 == (tail_at + tail - 1) / 4096,
                    "a tail straddles a block"
                );
                let whole = &self.bytes[start..start + size - tail];
                [whole, &self.bytes[tail_at..tail_at + tail]].concat()
            }
            other => panic!("layout {other}"),
        }
    }

    fn xattrs(&self, start: usize, size: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut xattrs = BTreeMap::new();
        let (mut at, end) = (start + 12, start + size);
        while at < end {
            let name_length = usize::from(self.bytes[at]);
            let prefix: &[u8] = match self.bytes[at + 1] {
                1 => b"user.",
                2 => b"system.posix_acl_access",
                3 => b"system.posix_acl_default",
                4 => b"trusted.",
                6 => b"security.",
                other => panic!("prefix {other}"),
            };
            let value_length = usize::from(self.u16(at + 2));
            let name = &self.bytes[at + 4..at + 4 + name_length];
            let value = &self.bytes[at + 4 + name_length..at + 4 + name_length + value_length];
            xattrs.insert([prefix, name].concat(), value.to_vec());
            at += (4 + name_length + value_length).next_multiple_of(4);
        }
        xattrs
    }
}

/// Number, name and type of each entry.
fn names(body: &[u8]) -> Vec<(u64, Vec<u8>, u8)> {
    let mut names = Vec::new();
    for block in body.chunks(4096) {
        let offset = |entry: usize| {
            usize::from(u16::from_le_bytes([
                block[entry * 12 + 8],
                block[entry * 12 + 9],
            ]))
        };
        let count = offset(0) / 12;
        for entry in 0..count {
            let start = offset(entry);
            let end = if entry + 1 < count {
                offset(entry + 1)
            } else {
                block.len()
            };
            let name = block[start..end]
                .split(|byte| *byte == 0)
                .next()
                .unwrap()
                .to_vec();
            let nid = u64::from_le_bytes(block[entry * 12..entry * 12 + 8].try_into().unwrap());
            names.push((nid, name, block[entry * 12 + 10]));
        }
    }
    names
}
