//! A writer of uncompressed EROFS images with 4 KiB blocks, for two forms of them.
//!
//! ```text
//!              a layer                              the metadata of a disk
//! block 0      superblock at byte 1024              the same; counts the whole disk's blocks
//! block 1 ..   bodies of regular files,             -
//!              while the layer streams by
//! then         64-byte inodes, each with its extended attributes and, if it is a directory or a
//!              symbolic link, the last, partial block of its body where that fits (root first: its
//!              number has only 16 bits)
//! then         whole blocks of directories, and symbolic links too long to stand in an inode
//! beyond       -                                    bodies: the layers, image behind image
//! ```
//!
//! Inode numbers count breadth first, names are sorted, there is no time stamp, UUID or seed: the
//! image depends on nothing but the tree. The format is described in the kernel's
//! `Documentation/filesystems/erofs.rst` and `fs/erofs/erofs_fs.h`.

pub(crate) mod body;
mod dir;
mod xattr;

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use self::dir::Dirents;
pub(crate) use self::xattr::is_representable;
use crate::record::{Kind, Leaf};
use crate::tar::Rdev;
use crate::tree::{Details, Ino, Tree};

/// Where bodies are, seen from the image that is written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form {
    /// Behind it, on a disk that goes on for so many blocks: the image's end is block 0 to them.
    Metadata { behind: u64 },
    /// In it, from block 1 up to this one.
    Layer { end: u32 },
}

/// Writes everything but the bodies, the superblock last; returns the number of blocks.
///
/// # Errors
///
/// Any error of writing `file`; `FileTooLarge` if there would be more blocks than 32 bits can
/// count.
pub(crate) fn write(tree: &Tree, form: Form, file: &File) -> io::Result<u32> {
    let plan = Plan::new(tree, form)?;
    let mut out = BufWriter::with_capacity(256 << 10, file);
    out.seek(SeekFrom::Start(u64::from(plan.meta_start) * BLOCK))?;
    plan.write_inodes(tree, &mut out)?;
    plan.write_blocks(tree, &mut out)?;
    out.flush()?;
    file.set_len(u64::from(plan.end) * BLOCK)?;
    file.write_all_at(&plan.superblock(), SUPERBLOCK_AT)?;
    Ok(plan.end)
}

/// How many blocks the superblock counts; `None` if it is not intact.
pub(crate) fn blocks_of(file: &File) -> io::Result<Option<u32>> {
    let mut block = [0; SUPERBLOCK];
    match file.read_exact_at(&mut block, SUPERBLOCK_AT) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let field =
        |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let (magic, checksum, blocks) = (field(0), field(4), field(36));
    block[4..8].fill(0);
    Ok((magic == MAGIC && checksum == crc32c(&block)).then_some(blocks))
}

/// Where every inode stands and what it says.
struct Plan {
    /// Breadth first, the root first.
    order: Vec<Ino>,
    /// By [`Ino`].
    places: Vec<InodePlace>,
    meta_start: u32,
    blocks_start: u32,
    /// Of the image.
    end: u32,
    /// Of the disk that it describes.
    total: u32,
}

#[derive(Clone, Copy, Default)]
struct InodePlace {
    /// Of the body.
    size: u64,
    /// In units of 32 bytes from the start of the metadata; the number that directories hold.
    nid: u32,
    /// First block of what is stored in whole blocks.
    start: u32,
    links: u32,
    /// Bytes that stand behind the inode: less than a block.
    tail: u16,
}

impl Plan {
    fn new(tree: &Tree, form: Form) -> io::Result<Self> {
        let meta_start = match form {
            Form::Metadata { .. } => 1,
            Form::Layer { end } => end,
        };
        let mut places = vec![InodePlace::default(); tree.len()];
        let order = breadth_first(tree, &mut places);
        // Sizes of directories depend on names alone, so that every inode's place is known
        // before the first number has to be written into a directory.
        let mut at = 0;
        let mut blocks = 0;
        for &ino in &order {
            let Details { meta, leaf } = tree.details(ino)?;
            let place = &mut places[ino as usize];
            let head = INODE + xattr::size(&meta.xattrs);
            let ours = match (&leaf, tree.entries(ino)) {
                (None, children) => children.map(|it| Dirents::new(it).size()),
                (Some(Leaf::Symlink(target)), _) => Some(target.len() as u64),
                (Some(Leaf::File(body)), _) => {
                    place.size = body.size;
                    // Counted as its form counts.
                    place.start = body.first;
                    None
                }
                (Some(Leaf::Block(_) | Leaf::Char(_) | Leaf::Fifo), _) => None,
            };
            if let Some(size) = ours {
                place.size = size;
                place.tail = inline_tail(size, head);
            }
            at = aligned(at, head, place.tail);
            place.nid = block_number(at / NID_UNIT)?;
            at += head + u64::from(place.tail);
            if ours.is_some() {
                // Counted from the end of the metadata for now.
                place.start = block_number(blocks)?;
                blocks += (place.size - u64::from(place.tail)).div_ceil(BLOCK);
            }
        }
        let blocks_start = block_number(u64::from(meta_start) + at.div_ceil(BLOCK))?;
        let end = block_number(u64::from(blocks_start) + blocks)?;
        let (total, bodies_start) = match form {
            Form::Metadata { behind } => (block_number(u64::from(end) + behind)?, end),
            Form::Layer { .. } => (end, 0),
        };
        for &ino in &order {
            let start = &mut places[ino as usize].start;
            *start = match tree.kind(ino) {
                Kind::File => block_number(u64::from(bodies_start) + u64::from(*start))?,
                Kind::Dir | Kind::Symlink => *start + blocks_start,
                Kind::Block | Kind::Char | Kind::Fifo => 0,
            };
        }
        Ok(Self {
            order,
            places,
            meta_start,
            blocks_start,
            end,
            total,
        })
    }

    fn write_inodes(&self, tree: &Tree, out: &mut impl Write) -> io::Result<()> {
        let mut at = 0;
        for (number, &ino) in self.order.iter().enumerate() {
            let details = tree.details(ino)?;
            let place = self.place(ino);
            let start = u64::from(place.nid) * NID_UNIT;
            zeros(out, start - at)?;
            let xattrs = xattr::body(&details.meta.xattrs);
            out.write_all(&inode(&details, place, number, xattrs.len()))?;
            out.write_all(&xattrs)?;
            if place.tail > 0 {
                match (&details.leaf, tree.entries(ino)) {
                    (Some(Leaf::Symlink(target)), _) => {
                        out.write_all(&target[target.len() - usize::from(place.tail)..])?;
                    }
                    (None, Some(children)) => {
                        let names = Dirents::new(children);
                        if let Some(last) = self.dir_blocks(tree, ino, &names).last() {
                            out.write_all(&last)?;
                        }
                    }
                    (Some(Leaf::Block(_) | Leaf::Char(_) | Leaf::Fifo | Leaf::File(_)), _)
                    | (None, None) => {}
                }
            }
            at = start + INODE + xattrs.len() as u64 + u64::from(place.tail);
        }
        zeros(
            out,
            u64::from(self.blocks_start - self.meta_start) * BLOCK - at,
        )
    }

    fn write_blocks(&self, tree: &Tree, out: &mut impl Write) -> io::Result<()> {
        for &ino in &self.order {
            let place = self.place(ino);
            let whole = place.size - u64::from(place.tail);
            if let Some(children) = tree.entries(ino)
                && whole > 0
            {
                let names = Dirents::new(children);
                let blocks = self.dir_blocks(tree, ino, &names);
                for block in blocks.take(whole.div_ceil(BLOCK).try_into().unwrap_or(0)) {
                    out.write_all(&block)?;
                    zeros(out, (BLOCK_SIZE - block.len()) as u64)?;
                }
            }
            if tree.kind(ino) == Kind::Symlink
                && whole > 0
                && let Some(Leaf::Symlink(target)) = tree.details(ino)?.leaf
            {
                out.write_all(&target[..target.len() - usize::from(place.tail)])?;
                zeros(out, whole.wrapping_neg() % BLOCK)?;
            }
        }
        Ok(())
    }

    fn place(&self, ino: Ino) -> &InodePlace {
        &self.places[ino as usize]
    }

    fn dir_blocks(
        &self,
        tree: &Tree,
        ino: Ino,
        names: &Dirents<'_>,
    ) -> impl Iterator<Item = Vec<u8>> {
        names.bytes(ino, tree.parent(ino), |ino| {
            (self.place(ino).nid.into(), file_type(tree.kind(ino)))
        })
    }

    fn superblock(&self) -> [u8; SUPERBLOCK] {
        let mut block = [0; SUPERBLOCK];
        let inodes = self.order.len() as u64;
        put(&mut block, 0, &MAGIC.to_le_bytes());
        put(
            &mut block,
            8,
            &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes(),
        );
        put(&mut block, 12, &[BLOCK_BITS]);
        // Bytes 14 and 15, the root's number: its inode is the first.
        put(&mut block, 16, &inodes.to_le_bytes());
        put(&mut block, 36, &self.total.to_le_bytes());
        put(&mut block, 40, &self.meta_start.to_le_bytes());
        put(&mut block, 64, LABEL);
        let checksum = crc32c(&block);
        put(&mut block, 4, &checksum.to_le_bytes());
        block
    }
}

/// Every node that has a name, once; counts links on the way.
fn breadth_first(tree: &Tree, places: &mut [InodePlace]) -> Vec<Ino> {
    let mut order = vec![Tree::ROOT];
    places[Tree::ROOT as usize].links = 2;
    let mut next = 0;
    while let Some(&dir) = order.get(next) {
        next += 1;
        let Some(children) = tree.entries(dir) else {
            continue;
        };
        for (_, child) in children.iter() {
            let links = &mut places[child.ino as usize].links;
            if *links == 0 {
                order.push(child.ino);
            }
            if tree.kind(child.ino) == Kind::Dir {
                *links = 2;
                places[dir as usize].links += 1;
            } else {
                *links += 1;
            }
        }
    }
    order
}

fn inode(details: &Details, place: &InodePlace, number: usize, xattrs: usize) -> [u8; INODE_SIZE] {
    let Details { meta, leaf } = details;
    let layout = if place.tail > 0 {
        LAYOUT_INLINE
    } else {
        LAYOUT_PLAIN
    };
    let (size, union) = match leaf {
        None | Some(Leaf::File(_) | Leaf::Symlink(_)) => (place.size, blocks_at(place)),
        Some(Leaf::Block(rdev) | Leaf::Char(rdev)) => (0, encode(*rdev)),
        Some(Leaf::Fifo) => (0, 0),
    };
    let kind = leaf.as_ref().map_or(Kind::Dir, Leaf::kind);
    // Limits keep all of these far below 32 and 16 bits.
    let number = u32::try_from(number + 1).unwrap_or(u32::MAX);
    let xattr_count = u16::try_from(xattr::count(xattrs)).unwrap_or(u16::MAX);
    let mode = meta.mode | type_bits(kind);
    let mut inode = [0; INODE_SIZE];
    put(&mut inode, 0, &(EXTENDED | layout << 1).to_le_bytes());
    put(&mut inode, 2, &xattr_count.to_le_bytes());
    put(&mut inode, 4, &mode.to_le_bytes());
    put(&mut inode, 8, &size.to_le_bytes());
    put(&mut inode, 16, &union.to_le_bytes());
    put(&mut inode, 20, &number.to_le_bytes());
    put(&mut inode, 24, &meta.uid.to_le_bytes());
    put(&mut inode, 28, &meta.gid.to_le_bytes());
    put(&mut inode, 32, &meta.mtime.to_le_bytes());
    put(&mut inode, 40, &meta.nanos.to_le_bytes());
    put(&mut inode, 44, &place.links.to_le_bytes());
    inode
}

/// Where the whole blocks of a body are; zero, which is never looked at, if it has none.
fn blocks_at(place: &InodePlace) -> u32 {
    if place.size == u64::from(place.tail) {
        0
    } else {
        place.start
    }
}

/// How many of the last bytes of a body of `size` stand behind a head of `head` bytes.
fn inline_tail(size: u64, head: u64) -> u16 {
    let tail = size % BLOCK;
    if tail > 0 && head + tail <= BLOCK {
        u16::try_from(tail).unwrap_or(0)
    } else {
        0
    }
}

/// The next place for an inode: it may not straddle a block, nor may its tail.
fn aligned(at: u64, head: u64, tail: u16) -> u64 {
    let at = at.next_multiple_of(INODE);
    let (first, last) = (at + head, at + head + u64::from(tail));
    if tail > 0 && first / BLOCK != (last - 1) / BLOCK {
        at.next_multiple_of(BLOCK)
    } else {
        at
    }
}

/// Linux's encoding of a device number in 32 bits.
fn encode(Rdev { major, minor }: Rdev) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

fn type_bits(kind: Kind) -> u16 {
    match kind {
        Kind::Block => 0o060_000,
        Kind::Char => 0o020_000,
        Kind::Dir => 0o040_000,
        Kind::Fifo => 0o010_000,
        Kind::File => 0o100_000,
        Kind::Symlink => 0o120_000,
    }
}

/// What a directory says about the type (`FT_…` of the kernel).
fn file_type(kind: Kind) -> u8 {
    match kind {
        Kind::File => 1,
        Kind::Dir => 2,
        Kind::Char => 3,
        Kind::Block => 4,
        Kind::Fifo => 5,
        Kind::Symlink => 7,
    }
}

fn block_number(blocks: u64) -> io::Result<u32> {
    u32::try_from(blocks).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

fn put(target: &mut [u8], at: usize, bytes: &[u8]) {
    target[at..at + bytes.len()].copy_from_slice(bytes);
}

fn zeros(out: &mut impl Write, count: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take(count), out).map(drop)
}

/// CRC-32C as EROFS uses it: seeded with ones, not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, byte| {
        let [low, ..] = crc.to_le_bytes();
        (crc >> 8) ^ CRC_TABLE[usize::from(low ^ byte)]
    })
}

/// By byte: a warm start looks at the superblock of every layer.
static CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ if crc & 1 == 0 { 0 } else { 0x82f6_3b78 };
            bit += 1;
        }
        table[byte as usize] = crc;
        byte += 1;
    }
    table
};

pub(crate) const BLOCK_SIZE: usize = 4096;
pub(crate) const BLOCK: u64 = BLOCK_SIZE as u64;
const BLOCK_BITS: u8 = 12;
const MAGIC: u32 = 0xe0f5_e1e2;
/// The superblock counts as reaching to the end of block 0: that is what its checksum covers.
const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK: usize = 3072;
const COMPAT_CHECKSUM: u32 = 1;
const COMPAT_MTIME: u32 = 2;
const LABEL: &[u8; 6] = b"bottle";
const INODE_SIZE: usize = 64;
const INODE: u64 = INODE_SIZE as u64;
const NID_UNIT: u64 = 32;
const EXTENDED: u16 = 1;
const LAYOUT_PLAIN: u16 = 0;
const LAYOUT_INLINE: u16 = 2;

#[cfg(test)]
mod tests;
