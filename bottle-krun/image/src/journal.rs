//! The journal of a layer: the entries of its archive, in order, with the places of their bodies.
//!
//! ```text
//! magic, writer's version
//! entry …        code, path, then what the code calls for (see `record`)
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
use crate::record::{
    Kind, MAX_PATH, Record, damaged, read_array, read_leaf, read_meta, read_string, write_leaf,
    write_meta, write_string,
};

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
            Record::Dir(_) => code_of(Kind::Dir),
            Record::Link(_) => LINK,
            Record::Opaque => OPAQUE,
            Record::Put(_, leaf) => code_of(leaf.kind()),
            Record::Whiteout => WHITEOUT,
        };
        self.out.write_all(&[code])?;
        write_string(&mut self.out, path)?;
        match record {
            Record::Dir(meta) => write_meta(&mut self.out, meta),
            Record::Link(target) => write_string(&mut self.out, target),
            Record::Opaque | Record::Whiteout => Ok(()),
            Record::Put(meta, leaf) => {
                write_meta(&mut self.out, meta)?;
                write_leaf(&mut self.out, leaf)
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
        let input = &mut self.input;
        let [code] = read_array(input)?;
        if code == END {
            return Ok(Err(Summary {
                bytes: u64::from_le_bytes(read_array(input)?),
                blocks: u32::from_le_bytes(read_array(input)?),
            }));
        }
        let path = read_string(input, MAX_PATH)?;
        let record = match code {
            LINK => Record::Link(read_string(input, MAX_PATH)?),
            OPAQUE => Record::Opaque,
            WHITEOUT => Record::Whiteout,
            _ => {
                let kind = kind_of(code).ok_or_else(damaged)?;
                let meta = read_meta(input)?;
                match read_leaf(input, kind)? {
                    Some(leaf) => Record::Put(meta, leaf),
                    None => Record::Dir(meta),
                }
            }
        };
        Ok(Ok((path, record)))
    }
}

fn code_of(kind: Kind) -> u8 {
    match kind {
        Kind::Block => BLOCK,
        Kind::Char => CHAR,
        Kind::Dir => DIR,
        Kind::Fifo => FIFO,
        Kind::File => FILE,
        Kind::Symlink => SYMLINK,
    }
}

fn kind_of(code: u8) -> Option<Kind> {
    let kinds = [
        Kind::Block,
        Kind::Char,
        Kind::Dir,
        Kind::Fifo,
        Kind::File,
        Kind::Symlink,
    ];
    kinds.into_iter().find(|kind| code_of(*kind) == code)
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

const MAGIC: &[u8; 8] = b"bottle-j";
const HASH: usize = 32;
const END_SIZE: usize = 1 + 8 + 4;
const BUFFER: usize = 64 << 10;

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
    use crate::erofs::body::Body;
    use crate::record::Leaf;
    use crate::tar::Rdev;
    use crate::tree::Meta;

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
