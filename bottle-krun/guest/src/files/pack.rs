//! Files of the bottle -> a tar stream.
//!
//! GNU's dialect with numeric owners, names of any length and byte, hard links as such, holes left
//! out (type `S`), and a PAX record for the nanoseconds of a time: what GNU tar, bsdtar, Python and
//! Rust's `tar` read. Files may change under our hands: a file is as long as it was when its header
//! was written, cut or filled up with zeros; what vanishes is left out; sockets have no place in
//! archives.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::vec;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::{FileStat, SFlag, fstat, major, minor};
use nix::unistd::{Whence, lseek};
use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::root::{kind, open_entry};
use super::{Counts, Problem};

/// Bytes of a header, and what everything is filled up to.
const BLOCK: usize = 512;

/// Bytes of a name for which a header has room.
const NAME: usize = 100;

/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// Directories within directories.
const MAX_DEPTH: usize = 1000;

/// Parts of a file between holes that are told apart, and files with several names that are
/// remembered. Beyond that, holes are zeros and names are files.
const MAX_PARTS: usize = 1 << 20;
const MAX_LINKED: usize = 1 << 20;

/// How a file or a directory is opened to be read: without waiting for anybody.
const READ: OFlag = OFlag::O_RDONLY.union(OFlag::O_NONBLOCK);

/// Writes an archive.
pub(super) struct Packer<W: Write> {
    output: W,
    /// The first names of files that have several.
    linked: HashMap<(u64, u64), Vec<u8>>,
    pub(super) counts: Counts,
}

/// A directory whose entries are being written.
struct Level {
    dir: OwnedFd,
    names: vec::IntoIter<Vec<u8>>,
    path: Vec<u8>,
}

impl<W: Write> Packer<W> {
    pub(super) fn new(output: W) -> Self {
        Self {
            output,
            linked: HashMap::new(),
            counts: Counts::default(),
        }
    }

    /// Writes `path` and all below it. `open` opens the first of them with the flags it is given.
    pub(super) fn tree(
        &mut self,
        path: &[u8],
        open: impl Fn(OFlag) -> nix::Result<OwnedFd>,
    ) -> Result<(), Problem> {
        let mut levels = Vec::new();
        levels.extend(self.one(path, open)?);
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.next() else {
                levels.pop();
                continue;
            };
            let path = [&level.path, &b"/"[..], &name].concat();
            let dir = level.dir.as_fd();
            let inner = self.one(&path, |flags| open_entry(dir, &name, flags))?;
            levels.extend(inner);
            if levels.len() > MAX_DEPTH {
                let why = format!("it is more than {MAX_DEPTH} directories deep");
                return Err(Problem::refused(&levels[MAX_DEPTH].path, &why));
            }
        }
        Ok(())
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> io::Result<Counts> {
        self.output.write_all(&[0; 2 * BLOCK])?;
        self.output.flush()?;
        Ok(self.counts)
    }

    /// Writes one entry; if it is a directory, what is in it remains to be done.
    fn one(
        &mut self,
        path: &[u8],
        open: impl Fn(OFlag) -> nix::Result<OwnedFd>,
    ) -> Result<Option<Level>, Problem> {
        let (fd, stat) = match open(OFlag::O_PATH).and_then(|fd| fstat(&fd).map(|stat| (fd, stat)))
        {
            Ok(found) => found,
            Err(Errno::ENOENT) => return Ok(None),
            Err(error) => return Err(Problem::system(path, error)),
        };
        let reopened = match kind(&stat) {
            SFlag::S_IFREG | SFlag::S_IFDIR => match open(READ) {
                // Another one by this name is another file: then neither was here long.
                Ok(again) => fstat(&again)
                    .is_ok_and(|now| (now.st_dev, now.st_ino) == (stat.st_dev, stat.st_ino))
                    .then_some(again),
                Err(Errno::ENOENT | Errno::ELOOP) => None,
                Err(error) => return Err(Problem::system(path, error)),
            },
            _ => Some(fd),
        };
        let Some(fd) = reopened else { return Ok(None) };
        let written = match kind(&stat) {
            SFlag::S_IFREG => self.file(path, &stat, &File::from(fd)).map(|()| None),
            SFlag::S_IFDIR => self.directory(path, &stat, fd).map(Some),
            SFlag::S_IFLNK => readlinkat(&fd, "")
                .map_err(io::Error::from)
                .and_then(|target| self.link(EntryType::Symlink, path, target.as_bytes(), &stat))
                .map(|()| None),
            SFlag::S_IFIFO => self.special(EntryType::Fifo, path, &stat).map(|()| None),
            SFlag::S_IFCHR => self.special(EntryType::Char, path, &stat).map(|()| None),
            SFlag::S_IFBLK => self.special(EntryType::Block, path, &stat).map(|()| None),
            _ => return Ok(None),
        };
        let level = written.map_err(|error| Problem::system(path, error))?;
        self.counts.entries += 1;
        Ok(level)
    }

    fn directory(&mut self, path: &[u8], stat: &FileStat, fd: OwnedFd) -> io::Result<Level> {
        self.head(EntryType::Directory, path, b"", stat, |_| {})?;
        let mut names = Vec::new();
        for entry in Dir::from_fd(fd.try_clone()?)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort();
        Ok(Level {
            dir: fd,
            names: names.into_iter(),
            path: path.to_vec(),
        })
    }

    fn special(&mut self, kind: EntryType, path: &[u8], stat: &FileStat) -> io::Result<()> {
        let number = |part: u64| u32::try_from(part).map_err(io::Error::other);
        let device = (number(major(stat.st_rdev))?, number(minor(stat.st_rdev))?);
        self.head(kind, path, b"", stat, |header| {
            // The header has the fields: it is a GNU one.
            let _ = header.set_device_major(device.0);
            let _ = header.set_device_minor(device.1);
        })
    }

    fn link(
        &mut self,
        kind: EntryType,
        path: &[u8],
        target: &[u8],
        stat: &FileStat,
    ) -> io::Result<()> {
        self.head(kind, path, target, stat, |_| {})
    }

    fn file(&mut self, path: &[u8], stat: &FileStat, file: &File) -> io::Result<()> {
        if stat.st_nlink > 1 {
            let room = self.linked.len() < MAX_LINKED;
            match self.linked.entry((stat.st_dev, stat.st_ino)) {
                Entry::Occupied(first) => {
                    let first = first.get().clone();
                    return self.link(EntryType::Link, path, &first, stat);
                }
                Entry::Vacant(entry) if room => drop(entry.insert(path.to_vec())),
                Entry::Vacant(_) => {}
            }
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let holes = u64::try_from(stat.st_blocks).unwrap_or(0) < size.div_ceil(BLOCK as u64);
        let parts = if holes { parts(file, size) } else { None };
        match parts {
            None => {
                self.head(EntryType::Regular, path, b"", stat, |h| h.set_size(size))?;
                self.body(file, 0, size)?;
                self.fill_up(size)
            }
            Some(parts) => {
                let stored = parts.iter().map(|(_, length)| length).sum();
                self.sparse_head(path, stat, size, &parts)?;
                for (offset, length) in parts {
                    self.body(file, offset, length)?;
                }
                self.fill_up(stored)
            }
        }
    }

    /// The header of a file with holes, and the map of what is between them.
    fn sparse_head(
        &mut self,
        path: &[u8],
        stat: &FileStat,
        size: u64,
        parts: &[(u64, u64)],
    ) -> io::Result<()> {
        let stored = parts.iter().map(|(_, length)| length).sum();
        let (own, more) = parts.split_at(parts.len().min(4));
        self.head(EntryType::GNUSparse, path, b"", stat, |header| {
            header.set_size(stored);
            if let Some(gnu) = header.as_gnu_mut() {
                gnu.set_real_size(size);
                gnu.set_is_extended(!more.is_empty());
                for (slot, part) in gnu.sparse.iter_mut().zip(own) {
                    *slot = part_of(*part);
                }
            }
        })?;
        let mut blocks = more.chunks(21).peekable();
        while let Some(block) = blocks.next() {
            let mut header = GnuExtSparseHeader::new();
            header.set_is_extended(blocks.peek().is_some());
            for (slot, part) in header.sparse_mut().iter_mut().zip(block) {
                *slot = part_of(*part);
            }
            self.output.write_all(header.as_bytes())?;
        }
        Ok(())
    }

    /// Writes a part of a file; zeros for what it has lost.
    fn body(&mut self, file: &File, mut offset: u64, length: u64) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        let mut left = length;
        while left > 0 {
            let want = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
            let read = file.read_at(&mut buffer[..want], offset)?;
            let bytes = if read == 0 {
                buffer[..want].fill(0);
                want
            } else {
                read
            };
            self.output.write_all(&buffer[..bytes])?;
            offset += bytes as u64;
            left -= bytes as u64;
        }
        self.counts.bytes += length;
        Ok(())
    }

    fn fill_up(&mut self, size: u64) -> io::Result<()> {
        let used = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        let missing = (BLOCK - used) % BLOCK;
        self.output.write_all(&[0; BLOCK][..missing])
    }

    /// A header without a body, and what goes before it.
    fn head(
        &mut self,
        kind: EntryType,
        path: &[u8],
        target: &[u8],
        stat: &FileStat,
        set: impl FnOnce(&mut Header),
    ) -> io::Result<()> {
        if stat.st_mtime_nsec != 0 || stat.st_mtime < 0 {
            let time = decimal_time(stat.st_mtime, stat.st_mtime_nsec);
            self.extension(EntryType::XHeader, &pax_record("mtime", &time))?;
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(stat.st_uid.into());
        header.set_gid(stat.st_gid.into());
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        header.set_size(0);
        set(&mut header);
        // A directory's name ends with a slash for readers that know no types.
        let mut name = path.to_vec();
        if kind == EntryType::Directory {
            name.push(b'/');
        }
        for (kind, long) in [
            (EntryType::GNULongLink, target),
            (EntryType::GNULongName, &name),
        ] {
            if long.len() > NAME {
                self.extension(kind, &[long, b"\0"].concat())?;
            }
        }
        if let Some(gnu) = header.as_gnu_mut() {
            put(&mut gnu.name, &name);
            put(&mut gnu.linkname, target);
        }
        header.set_cksum();
        self.output.write_all(header.as_bytes())
    }

    /// Writes what a header has no room for, before the header.
    fn extension(&mut self, kind: EntryType, bytes: &[u8]) -> io::Result<()> {
        let mut header = Header::new_gnu();
        if let Some(gnu) = header.as_gnu_mut() {
            put(&mut gnu.name, b"././@LongLink");
        }
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        self.output.write_all(header.as_bytes())?;
        self.output.write_all(bytes)?;
        self.fill_up(bytes.len() as u64)
    }
}

/// As much of a name as a field holds.
fn put(field: &mut [u8; NAME], name: &[u8]) {
    let length = name.len().min(field.len());
    field[..length].copy_from_slice(&name[..length]);
}

fn part_of((offset, length): (u64, u64)) -> GnuSparseHeader {
    let mut part = GnuSparseHeader {
        offset: [0; 12],
        numbytes: [0; 12],
    };
    part.set_offset(offset);
    part.set_length(length);
    part
}

/// Offsets and lengths of what is not a hole, ending at the file's end; `None` if they can't be
/// told, or if there is nothing to be gained.
fn parts(file: &File, size: u64) -> Option<Vec<(u64, u64)>> {
    let seek = |to: u64, whence| -> Option<Option<u64>> {
        match lseek(file, i64::try_from(to).ok()?, whence) {
            Ok(at) => Some(u64::try_from(at).ok()),
            Err(Errno::ENXIO) => Some(None),
            Err(_) => None,
        }
    };
    let mut parts = Vec::new();
    let mut at = 0;
    while let Some(start) = seek(at, Whence::SeekData)?.filter(|start| *start < size) {
        let end = seek(start, Whence::SeekHole)?.unwrap_or(size).min(size);
        // Parts in the middle have to be whole blocks, as those of file systems are.
        let whole = end == size || (end - start).is_multiple_of(BLOCK as u64);
        if !whole || end <= start || parts.len() == MAX_PARTS {
            return None;
        }
        parts.push((start, end - start));
        at = end;
    }
    if at < size {
        parts.push((size, 0));
    }
    (parts != [(0, size)]).then_some(parts)
}

/// A record counts its own length, the digits of it included.
fn pax_record(key: &str, value: &str) -> Vec<u8> {
    let rest = format!(" {key}={value}\n");
    let mut length = rest.len() + 1;
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    format!("{length}{rest}").into_bytes()
}

/// `-1.5` is one and a half seconds before the epoch, while the kernel rounds seconds down.
fn decimal_time(seconds: i64, nanos: i64) -> String {
    if seconds < 0 && nanos > 0 {
        let (seconds, nanos) = (-(seconds + 1), 1_000_000_000 - nanos);
        format!("-{seconds}.{nanos:09}")
    } else {
        format!("{seconds}.{nanos:09}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_digits() {
        assert_eq!(pax_record("a", "b"), b"6 a=b\n");
        assert_eq!(pax_record("a", "bcdef"), b"11 a=bcdef\n");
        assert_eq!(pax_record("a", "bcdefg"), b"12 a=bcdefg\n");
    }

    #[test]
    fn times_before_the_epoch_are_written_as_decimals() {
        assert_eq!(decimal_time(12, 5), "12.000000005");
        assert_eq!(decimal_time(-2, 500_000_000), "-1.500000000");
        assert_eq!(decimal_time(-1, 750_000_000), "-0.250000000");
        assert_eq!(decimal_time(-7, 0), "-7.000000000");
    }
}
