//! The journal of a layer: the entries of its archive, in order, with the places of their bodies.
//!
//! ```text
//! magic, writer's version
//! entry …        code, path, then what the code calls for; numbers little-endian, every string
//!                behind its length
//! end            code, bytes of the archive, blocks of the layer's image
//! SHA-256        of everything before
//! ```
//!
//! It is what images are made of: replayed in order, layer upon layer, it gives the merged tree
//! without the archives. A journal that is damaged anywhere counts as none; [`verify`] says so
//! before anything of it is believed, and the reader has limits nevertheless.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Read, Seek, Write};

use crate::WRITER_VERSION;
use crate::digest::Hashed;
use crate::erofs::body::Body;
use crate::tar::Rdev;
use crate::tree::{Meta, NodeKind};

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

impl From<Leaf> for NodeKind {
    fn from(leaf: Leaf) -> Self {
        match leaf {
            Leaf::Block(rdev) => Self::Block(rdev),
            Leaf::Char(rdev) => Self::Char(rdev),
            Leaf::Fifo => Self::Fifo,
            Leaf::File(body) => Self::File(body),
            Leaf::Symlink(target) => Self::Symlink(target),
        }
    }
}

/// What is known at the end of a layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Summary {
    /// Bytes of the archive.
    pub(crate) bytes: u64,
    /// Blocks of the layer's image.
    pub(crate) blocks: u32,
}

/// Writes a journal.
pub(crate) struct Writer<'f> {
    out: BufWriter<Hashed<&'f File>>,
}

impl<'f> Writer<'f> {
    pub(crate) fn new(file: &'f File) -> io::Result<Self> {
        let mut out = BufWriter::with_capacity(BUFFER, Hashed::new(file));
        out.write_all(MAGIC)?;
        out.write_all(&WRITER_VERSION.to_le_bytes())?;
        Ok(Self { out })
    }

    pub(crate) fn add(&mut self, path: &[u8], record: &Record) -> io::Result<()> {
        let code = match record {
            Record::Dir(_) => DIR,
            Record::Link(_) => LINK,
            Record::Opaque => OPAQUE,
            Record::Put(_, Leaf::Block(_)) => BLOCK,
            Record::Put(_, Leaf::Char(_)) => CHAR,
            Record::Put(_, Leaf::Fifo) => FIFO,
            Record::Put(_, Leaf::File(_)) => FILE,
            Record::Put(_, Leaf::Symlink(_)) => SYMLINK,
            Record::Whiteout => WHITEOUT,
        };
        self.out.write_all(&[code])?;
        self.string(path)?;
        match record {
            Record::Dir(meta) => self.meta(meta),
            Record::Link(target) => self.string(target),
            Record::Opaque | Record::Whiteout => Ok(()),
            Record::Put(meta, leaf) => {
                self.meta(meta)?;
                self.leaf(leaf)
            }
        }
    }

    /// Ends the journal, which is no journal before.
    pub(crate) fn finish(mut self, summary: Summary) -> io::Result<()> {
        self.out.write_all(&[END])?;
        self.out.write_all(&summary.bytes.to_le_bytes())?;
        self.out.write_all(&summary.blocks.to_le_bytes())?;
        self.out.flush()?;
        let hash = self.out.get_ref().digest();
        self.out.write_all(hash.bytes())?;
        self.out.flush()
    }

    fn leaf(&mut self, leaf: &Leaf) -> io::Result<()> {
        match leaf {
            Leaf::Block(Rdev { major, minor }) | Leaf::Char(Rdev { major, minor }) => {
                self.out.write_all(&major.to_le_bytes())?;
                self.out.write_all(&minor.to_le_bytes())
            }
            Leaf::Fifo => Ok(()),
            Leaf::File(Body { size, first }) => {
                self.out.write_all(&size.to_le_bytes())?;
                self.out.write_all(&first.to_le_bytes())
            }
            Leaf::Symlink(target) => self.string(target),
        }
    }

    fn meta(&mut self, meta: &Meta) -> io::Result<()> {
        let Meta {
            mode,
            uid,
            gid,
            mtime,
            nanos,
            xattrs,
        } = meta;
        self.out.write_all(&mode.to_le_bytes())?;
        self.out.write_all(&uid.to_le_bytes())?;
        self.out.write_all(&gid.to_le_bytes())?;
        self.out.write_all(&mtime.to_le_bytes())?;
        self.out.write_all(&nanos.to_le_bytes())?;
        self.length(xattrs.len())?;
        for (name, value) in xattrs {
            self.string(name)?;
            self.string(value)?;
        }
        Ok(())
    }

    fn string(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.length(bytes.len())?;
        self.out.write_all(bytes)
    }

    /// The parser of archives has limits far below.
    fn length(&mut self, length: usize) -> io::Result<()> {
        let length = u16::try_from(length).map_err(|_| io::Error::from(ErrorKind::InvalidInput))?;
        self.out.write_all(&length.to_le_bytes())
    }
}

/// Reads a journal from front to end.
pub(crate) struct Reader<R> {
    input: R,
}

impl Reader<BufReader<File>> {
    pub(crate) fn open(mut file: File) -> io::Result<Self> {
        file.rewind()?;
        Self::new(BufReader::with_capacity(BUFFER, file))
    }
}

impl<R: BufRead> Reader<R> {
    fn new(mut input: R) -> io::Result<Self> {
        let mut head = [0; MAGIC.len() + 4];
        input.read_exact(&mut head)?;
        let (magic, version) = head.split_at(MAGIC.len());
        if magic != MAGIC || version != WRITER_VERSION.to_le_bytes() {
            return Err(damaged());
        }
        Ok(Self { input })
    }

    /// The next record and its path, or what is known at the end.
    pub(crate) fn next(&mut self) -> io::Result<Result<(Vec<u8>, Record), Summary>> {
        let [code] = self.array()?;
        if code == END {
            return Ok(Err(Summary {
                bytes: u64::from_le_bytes(self.array()?),
                blocks: u32::from_le_bytes(self.array()?),
            }));
        }
        let path = self.string(MAX_PATH)?;
        let record = match code {
            BLOCK => Record::Put(self.meta()?, Leaf::Block(self.rdev()?)),
            CHAR => Record::Put(self.meta()?, Leaf::Char(self.rdev()?)),
            DIR => Record::Dir(self.meta()?),
            FIFO => Record::Put(self.meta()?, Leaf::Fifo),
            FILE => {
                let meta = self.meta()?;
                let size = u64::from_le_bytes(self.array()?);
                let first = u32::from_le_bytes(self.array()?);
                Record::Put(meta, Leaf::File(Body { size, first }))
            }
            LINK => Record::Link(self.string(MAX_PATH)?),
            OPAQUE => Record::Opaque,
            SYMLINK => {
                let meta = self.meta()?;
                Record::Put(meta, Leaf::Symlink(self.string(MAX_PATH)?.into()))
            }
            WHITEOUT => Record::Whiteout,
            _ => return Err(damaged()),
        };
        Ok(Ok((path, record)))
    }

    fn meta(&mut self) -> io::Result<Meta> {
        Ok(Meta {
            mode: u16::from_le_bytes(self.array()?),
            uid: u32::from_le_bytes(self.array()?),
            gid: u32::from_le_bytes(self.array()?),
            mtime: i64::from_le_bytes(self.array()?),
            nanos: u32::from_le_bytes(self.array()?),
            xattrs: {
                let count = usize::from(u16::from_le_bytes(self.array()?));
                let mut xattrs = Vec::new();
                let mut left = MAX_XATTRS;
                for _ in 0..count {
                    let name = self.string(left)?;
                    let value = self.string(left - name.len())?;
                    left -= name.len() + value.len();
                    xattrs.push((name.into(), value.into()));
                }
                xattrs
            },
        })
    }

    fn rdev(&mut self) -> io::Result<Rdev> {
        Ok(Rdev {
            major: u32::from_le_bytes(self.array()?),
            minor: u32::from_le_bytes(self.array()?),
        })
    }

    fn string(&mut self, limit: usize) -> io::Result<Vec<u8>> {
        let length = usize::from(u16::from_le_bytes(self.array()?));
        if length > limit {
            return Err(damaged());
        }
        let mut bytes = vec![0; length];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// What stands at the end of a journal; `None` if any byte of it is not as it was written.
pub(crate) fn verify(file: &mut File) -> io::Result<Option<Summary>> {
    let length = file.metadata()?.len();
    let Some(hashed) = length.checked_sub(HASH as u64) else {
        return Ok(None);
    };
    file.rewind()?;
    let mut hashing = Hashed::new((&mut *file).take(hashed));
    let mut head = [0; MAGIC.len() + 4];
    let mut tail = [0; END_SIZE];
    let Some(middle) = hashed.checked_sub((head.len() + tail.len()) as u64) else {
        return Ok(None);
    };
    let mut read = || {
        hashing.read_exact(&mut head)?;
        let mut input = BufReader::with_capacity(BUFFER, &mut hashing);
        io::copy(&mut (&mut input).take(middle), &mut io::sink())?;
        input.read_exact(&mut tail)
    };
    match read() {
        Ok(()) => {}
        // Somebody is cutting it short.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let found = hashing.digest();
    let mut expected = [0; HASH];
    file.read_exact(&mut expected)?;
    let intact = found.bytes() == &expected
        && head[..MAGIC.len()] == *MAGIC
        && head[MAGIC.len()..] == WRITER_VERSION.to_le_bytes()
        && tail[0] == END;
    let [_, tail @ ..] = tail;
    let (bytes, blocks) = tail.split_at(8);
    let summary = || {
        Some(Summary {
            bytes: u64::from_le_bytes(bytes.try_into().ok()?),
            blocks: u32::from_le_bytes(blocks.try_into().ok()?),
        })
    };
    Ok(if intact { summary() } else { None })
}

fn damaged() -> io::Error {
    io::Error::new(
        ErrorKind::InvalidData,
        "the journal of the layer is damaged",
    )
}

const MAGIC: &[u8; 8] = b"bottle-j";
const HASH: usize = 32;
const END_SIZE: usize = 1 + 8 + 4;
const BUFFER: usize = 64 << 10;
/// Paths and targets of links have at most 4095 bytes.
const MAX_PATH: usize = 4096;
const MAX_XATTRS: usize = 64 << 10;

const END: u8 = b'E';
const BLOCK: u8 = b'b';
const CHAR: u8 = b'c';
const DIR: u8 = b'd';
const FIFO: u8 = b'p';
const FILE: u8 = b'-';
const LINK: u8 = b'h';
const OPAQUE: u8 = b'O';
const SYMLINK: u8 = b'l';
const WHITEOUT: u8 = b'W';

#[cfg(test)]
mod tests {
    use std::io::{Cursor, SeekFrom};
    use std::os::unix::fs::FileExt;

    use super::*;

    fn meta() -> Meta {
        Meta {
            mode: 0o6755,
            uid: 3_000_000_000,
            gid: 7,
            mtime: -2,
            nanos: 999_999_999,
            xattrs: vec![
                ((*b"user.a").into(), vec![7; 60_000].into()),
                ((*b"user.b").into(), (*b"").into()),
            ],
        }
    }

    fn records() -> Vec<(Vec<u8>, Record)> {
        let rdev = Rdev {
            major: 4095,
            minor: 1 << 19,
        };
        let body = Body {
            size: 1 << 40,
            first: 12,
        };
        let path = |text: &[u8]| text.to_owned();
        vec![
            (path(b""), Record::Dir(meta())),
            (path(b"b"), Record::Put(meta(), Leaf::Block(rdev))),
            (path(b"c"), Record::Put(meta(), Leaf::Char(rdev))),
            (path(b"p"), Record::Put(Meta::default(), Leaf::Fifo)),
            (vec![b'x'; 4095], Record::Put(meta(), Leaf::File(body))),
            (
                path(b"\xff\n"),
                Record::Put(meta(), Leaf::Symlink(vec![b'y'; 4095].into())),
            ),
            (path(b"h"), Record::Link(path(b"x/y"))),
            (path(b"w"), Record::Whiteout),
            (path(b"o"), Record::Opaque),
        ]
    }

    const SUMMARY: Summary = Summary {
        bytes: 1 << 33,
        blocks: 77,
    };

    fn written() -> File {
        let file = tempfile::tempfile().unwrap();
        let mut writer = Writer::new(&file).unwrap();
        for (path, record) in records() {
            writer.add(&path, &record).unwrap();
        }
        writer.finish(SUMMARY).unwrap();
        file
    }

    #[test]
    fn what_was_written_is_read() {
        let mut file = written();
        assert_eq!(verify(&mut file).unwrap(), Some(SUMMARY));
        let mut reader = Reader::open(file).unwrap();
        for expected in records() {
            let found = reader.next().unwrap().unwrap();
            assert_eq!(format!("{found:?}"), format!("{expected:?}"));
        }
        assert_eq!(reader.next().unwrap().unwrap_err(), SUMMARY);
    }

    #[test]
    fn a_damaged_journal_is_none() {
        let mut file = written();
        let length = file.metadata().unwrap().len();
        for at in (0..length).step_by(997).chain(length - 50..length) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            assert_eq!(verify(&mut file).unwrap(), None, "{at}");
            file.write_all_at(&byte, at).unwrap();
        }
        assert_eq!(verify(&mut file).unwrap(), Some(SUMMARY));
        for cut in [length - 1, length - 32, length / 2, 60, 12, 0] {
            file.set_len(cut).unwrap();
            assert_eq!(verify(&mut file).unwrap(), None, "{cut}");
        }
    }

    #[test]
    fn any_bytes_are_an_error_or_a_record_and_reserve_little() {
        let mut file = written();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        for at in (12..bytes.len()).step_by(101) {
            for value in [0, b'E', b'l', b'd', 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                let mut reader = Reader::new(Cursor::new(damaged)).unwrap();
                while let Ok(Ok(_)) = reader.next() {}
            }
        }
    }
}
