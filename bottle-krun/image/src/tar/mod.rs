//! Bytes of a layer -> entries: a total parser of the tar dialects that layers use; and back, in
//! one dialect of our own (see `write`).
//!
//! ustar, GNU long names and base-256 numbers, PAX extended headers. Names and extended headers
//! have limits, so that no entry needs more than about 2 MiB of memory. Global PAX headers are
//! skipped, as container engines do; sparse files are refused.

mod header;
mod pax;
pub(crate) mod write;

use std::io::{self, ErrorKind, Read, Seek, SeekFrom};

use self::header::Header;
use self::pax::Pax;
use crate::error::EntryProblem;
use crate::tree::Meta;

/// An entry as the archive gives it, its numbers parsed and its paths checked.
#[derive(Debug)]
pub(crate) struct Entry {
    /// As written: split it with [`components`].
    pub(crate) path: Vec<u8>,
    pub(crate) meta: Meta,
    pub(crate) kind: EntryKind,
}

#[derive(Debug, Eq, PartialEq)]
pub(crate) enum EntryKind {
    Block(Rdev),
    Char(Rdev),
    Directory,
    Fifo,
    /// So many bytes follow: read them from the [`Tar`].
    File(u64),
    /// To a path of the archive.
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Rdev {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

#[derive(Debug)]
pub(crate) enum TarError {
    Entry {
        path: Vec<u8>,
        problem: EntryProblem,
    },
    Read(io::Error),
}

/// Reads entries one by one; between two of them it is a reader of the file's body.
pub(crate) struct Tar<R> {
    input: R,
    /// What is left of the current body, and of the padding behind it.
    body: u64,
    padding: u64,
    ended: bool,
}

impl<R: Read> Tar<R> {
    pub(crate) fn new(input: R) -> Self {
        Self {
            input,
            body: 0,
            padding: 0,
            ended: false,
        }
    }

    /// The next entry; skips what was not read of the one before.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut long = Long::default();
        self.skip(&[])?;
        while !self.ended {
            let Some(header) = self.header()? else {
                self.ended = true;
                break;
            };
            let name = || header.path();
            let at = |problem| TarError::Entry {
                path: name(),
                problem,
            };
            match header.type_flag() {
                b'x' => {
                    let bytes = self.extension(&header, MAX_PAX)?;
                    long.pax = Pax::parse(&bytes).map_err(at)?;
                }
                b'L' => long.path = Some(self.long_name(&header)?),
                b'K' => long.link = Some(self.long_name(&header)?),
                b'g' => {
                    self.extension(&header, MAX_PAX)?;
                }
                _ => return self.entry(&header, long).map(Some),
            }
        }
        Ok(None)
    }

    fn entry(&mut self, header: &Header, long: Long) -> Result<Entry, TarError> {
        let Long { path, link, pax } = long;
        let path = pax.path.or(path).unwrap_or_else(|| header.path());
        let parsed = parse_entry(
            header,
            &path,
            pax.link.or(link),
            pax.size,
            Meta {
                mode: 0,
                uid: 0,
                gid: 0,
                mtime: 0,
                nanos: 0,
                xattrs: pax.xattrs,
            },
            (pax.uid, pax.gid, pax.mtime),
        );
        let (kind, meta, body) = match parsed {
            Ok(parsed) if !pax.sparse => parsed,
            Ok(_) => {
                return Err(TarError::Entry {
                    path,
                    problem: EntryProblem::Sparse,
                });
            }
            Err(problem) => return Err(TarError::Entry { path, problem }),
        };
        self.body = body;
        self.padding = body.wrapping_neg() % BLOCK as u64;
        Ok(Entry { path, meta, kind })
    }

    /// `None` at the archive's end.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(truncated(&[])),
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(TarError::Read(error)),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        match Header::parse(block) {
            Some(header) => Ok(Some(header)),
            None => Err(TarError::Entry {
                path: Vec::new(),
                problem: EntryProblem::Checksum,
            }),
        }
    }

    fn long_name(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let mut bytes = self.extension(header, MAX_LONG)?;
        // Terminated by a NUL that counts.
        while bytes.last() == Some(&0) {
            bytes.pop();
        }
        Ok(bytes)
    }

    /// The whole body of an entry that describes the next one.
    fn extension(&mut self, header: &Header, limit: u64) -> Result<Vec<u8>, TarError> {
        let at = |problem| TarError::Entry {
            path: header.path(),
            problem,
        };
        let size = header
            .size()
            .ok_or_else(|| at(EntryProblem::Field("size")))?;
        if size > limit {
            return Err(at(EntryProblem::ExtendedHeader));
        }
        self.body = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes).map_err(TarError::Read)?;
        if self.body > 0 {
            return Err(truncated(&header.path()));
        }
        self.skip(&header.path())?;
        Ok(bytes)
    }

    fn skip(&mut self, path: &[u8]) -> Result<(), TarError> {
        let left = self.body + self.padding;
        (self.body, self.padding) = (0, 0);
        let skipped =
            io::copy(&mut (&mut self.input).take(left), &mut io::sink()).map_err(TarError::Read)?;
        if skipped < left {
            return Err(truncated(path));
        }
        Ok(())
    }
}

impl<R: Read + Seek> Tar<R> {
    /// Goes to the end of the current file's body and returns where it started.
    ///
    /// That the input is as long as that is for the caller to check.
    pub(crate) fn seek_past(&mut self) -> io::Result<u64> {
        let start = self.input.stream_position()?;
        let end = (self.body.checked_add(self.padding))
            .and_then(|left| start.checked_add(left))
            .ok_or_else(|| io::Error::from(ErrorKind::InvalidData))?;
        (self.body, self.padding) = (0, 0);
        self.input.seek(SeekFrom::Start(end))?;
        Ok(start)
    }
}

impl<R: Read> Read for Tar<R> {
    /// Reads the current file's body; its end, and a premature one, read as 0 bytes.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.body).map_or(buf.len(), |left| left.min(buf.len()));
        let read = self.input.read(&mut buf[..wanted])?;
        self.body -= read as u64;
        Ok(read)
    }
}

/// What extended headers say about the entry that follows them.
#[derive(Default)]
struct Long {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Pax,
}

fn truncated(path: &[u8]) -> TarError {
    TarError::Entry {
        path: path.to_owned(),
        problem: EntryProblem::Truncated,
    }
}

type Overrides = (Option<u32>, Option<u32>, Option<(i64, u32)>);

fn parse_entry(
    header: &Header,
    path: &[u8],
    link: Option<Vec<u8>>,
    size: Option<u64>,
    meta: Meta,
    (uid, gid, mtime): Overrides,
) -> Result<(EntryKind, Meta, u64), EntryProblem> {
    let flag = header.type_flag();
    let size = match size {
        Some(size) => size,
        None => header.size().ok_or(EntryProblem::Field("size"))?,
    };
    let (mtime, nanos) = match mtime {
        Some(mtime) => mtime,
        None => (header.mtime().ok_or(EntryProblem::Field("mtime"))?, 0),
    };
    let meta = Meta {
        mode: header.mode().ok_or(EntryProblem::Field("mode"))?,
        uid: uid
            .or_else(|| header.uid())
            .ok_or(EntryProblem::Field("uid"))?,
        gid: gid
            .or_else(|| header.gid())
            .ok_or(EntryProblem::Field("gid"))?,
        mtime,
        nanos,
        ..meta
    };
    let target = || {
        let target = link.unwrap_or_else(|| header.link());
        match target.len() {
            1..=MAX_TARGET if !target.contains(&0) => Ok(target),
            _ => Err(EntryProblem::LinkTarget),
        }
    };
    let (kind, body) = match flag {
        // Before there was a type for it, a directory was a file whose name ends in a slash.
        b'0' | 0 if path.ends_with(b"/") => (EntryKind::Directory, size),
        b'0' | 0 | b'7' => (EntryKind::File(size), size),
        b'1' => (EntryKind::HardLink(target()?), 0),
        b'2' => (EntryKind::Symlink(target()?), 0),
        b'3' => (EntryKind::Char(header.rdev()?), 0),
        b'4' => (EntryKind::Block(header.rdev()?), 0),
        b'5' => (EntryKind::Directory, 0),
        b'6' => (EntryKind::Fifo, 0),
        b'S' => return Err(EntryProblem::Sparse),
        other => return Err(EntryProblem::Type(other)),
    };
    Ok((kind, meta, body))
}

/// A path's components below the root; leading slashes, doubled ones and `.` say nothing.
pub(crate) fn components(path: &[u8]) -> Result<Vec<&[u8]>, EntryProblem> {
    if path.len() > MAX_PATH {
        return Err(EntryProblem::PathTooLong {
            what: "bytes in all",
            limit: MAX_PATH,
        });
    }
    if path.contains(&0) {
        return Err(EntryProblem::EscapingPath);
    }
    let components: Vec<&[u8]> = path
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .collect();
    for name in &components {
        if *name == b".." {
            return Err(EntryProblem::EscapingPath);
        }
        if name.len() > MAX_NAME {
            return Err(EntryProblem::PathTooLong {
                what: "bytes in one name",
                limit: MAX_NAME,
            });
        }
    }
    Ok(components)
}

const BLOCK: usize = 512;
/// Linux's own limits: `NAME_MAX`, and `PATH_MAX` without its NUL.
pub(crate) const MAX_NAME: usize = 255;
const MAX_PATH: usize = 4095;
pub(crate) const MAX_TARGET: usize = 4095;
/// A long name that is going to be refused is read nevertheless, so that it can be named.
const MAX_LONG: u64 = 64 << 10;
const MAX_PAX: u64 = 1 << 20;
