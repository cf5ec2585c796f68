//! What an archive says about a path, and its form in bytes: numbers little-endian, every string
//! behind its length.

use std::io::{self, ErrorKind, Read, Write};

use crate::erofs::body::Body;
use crate::tar::Rdev;
use crate::tree::Meta;

/// What an archive says about one path, accepted and reduced to what matters.
#[derive(Debug)]
pub(crate) enum Record {
    Dir(Meta),
    /// To a path of the archive.
    Link(Vec<u8>),
    Opaque,
    Put(Meta, Leaf),
    Whiteout,
}

/// Anything but a directory.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Leaf {
    Block(Rdev),
    Char(Rdev),
    Fifo,
    File(Body),
    Symlink(Box<[u8]>),
}

impl Leaf {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Block(_) => Kind::Block,
            Self::Char(_) => Kind::Char,
            Self::Fifo => Kind::Fifo,
            Self::File(_) => Kind::File,
            Self::Symlink(_) => Kind::Symlink,
        }
    }
}

/// The type of a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Block,
    Char,
    Dir,
    Fifo,
    File,
    Symlink,
}

/// Writes what [`read_leaf`] reads.
pub(crate) fn write_leaf(out: &mut impl Write, leaf: &Leaf) -> io::Result<()> {
    match leaf {
        Leaf::Block(Rdev { major, minor }) | Leaf::Char(Rdev { major, minor }) => {
            out.write_all(&major.to_le_bytes())?;
            out.write_all(&minor.to_le_bytes())
        }
        Leaf::Fifo => Ok(()),
        Leaf::File(Body { size, first }) => {
            out.write_all(&size.to_le_bytes())?;
            out.write_all(&first.to_le_bytes())
        }
        Leaf::Symlink(target) => write_string(out, target),
    }
}

/// Reads a leaf of this kind; a directory is none.
pub(crate) fn read_leaf(input: &mut impl Read, kind: Kind) -> io::Result<Option<Leaf>> {
    Ok(Some(match kind {
        Kind::Block => Leaf::Block(read_rdev(input)?),
        Kind::Char => Leaf::Char(read_rdev(input)?),
        Kind::Dir => return Ok(None),
        Kind::Fifo => Leaf::Fifo,
        Kind::File => {
            let size = u64::from_le_bytes(read_array(input)?);
            let first = u32::from_le_bytes(read_array(input)?);
            Leaf::File(Body { size, first })
        }
        Kind::Symlink => Leaf::Symlink(read_string(input, MAX_PATH)?.into()),
    }))
}

/// Writes what [`read_meta`] reads.
pub(crate) fn write_meta(out: &mut impl Write, meta: &Meta) -> io::Result<()> {
    let Meta {
        mode,
        uid,
        gid,
        mtime,
        nanos,
        xattrs,
    } = meta;
    out.write_all(&mode.to_le_bytes())?;
    out.write_all(&uid.to_le_bytes())?;
    out.write_all(&gid.to_le_bytes())?;
    out.write_all(&mtime.to_le_bytes())?;
    out.write_all(&nanos.to_le_bytes())?;
    write_length(out, xattrs.len())?;
    for (name, value) in xattrs {
        write_string(out, name)?;
        write_string(out, value)?;
    }
    Ok(())
}

pub(crate) fn read_meta(input: &mut impl Read) -> io::Result<Meta> {
    Ok(Meta {
        mode: u16::from_le_bytes(read_array(input)?),
        uid: u32::from_le_bytes(read_array(input)?),
        gid: u32::from_le_bytes(read_array(input)?),
        mtime: i64::from_le_bytes(read_array(input)?),
        nanos: u32::from_le_bytes(read_array(input)?),
        xattrs: {
            let count = usize::from(u16::from_le_bytes(read_array(input)?));
            let mut xattrs = Vec::new();
            let mut left = MAX_XATTRS;
            for _ in 0..count {
                let name = read_string(input, left)?;
                let value = read_string(input, left - name.len())?;
                left -= name.len() + value.len();
                xattrs.push((name.into(), value.into()));
            }
            xattrs
        },
    })
}

fn read_rdev(input: &mut impl Read) -> io::Result<Rdev> {
    Ok(Rdev {
        major: u32::from_le_bytes(read_array(input)?),
        minor: u32::from_le_bytes(read_array(input)?),
    })
}

/// Writes what [`read_string`] reads.
pub(crate) fn write_string(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    write_length(out, bytes.len())?;
    out.write_all(bytes)
}

/// The parser of archives has limits far below.
fn write_length(out: &mut impl Write, length: usize) -> io::Result<()> {
    let length = u16::try_from(length).map_err(|_| io::Error::from(ErrorKind::InvalidInput))?;
    out.write_all(&length.to_le_bytes())
}

pub(crate) fn read_string(input: &mut impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let length = usize::from(u16::from_le_bytes(read_array(input)?));
    if length > limit {
        return Err(damaged());
    }
    let mut bytes = vec![0; length];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

pub(crate) fn read_array<const N: usize>(input: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// That bytes are not what was written.
pub(crate) fn damaged() -> io::Error {
    io::Error::new(
        ErrorKind::InvalidData,
        "the journal of the layer is damaged",
    )
}

/// Paths and targets of links have at most 4095 bytes.
pub(crate) const MAX_PATH: usize = 4096;
const MAX_XATTRS: usize = 64 << 10;
