//! Bodies of regular files: where they live, and how they get there while a layer streams by.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::FileExt;

use crate::erofs::freelist::FreeList;
use crate::erofs::{BLOCK, inline_tail};

/// The contents of a regular file.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) size: u64,
    pub(crate) place: Place,
}

/// Where the bytes of a body live.
#[derive(Debug)]
pub(crate) enum Place {
    /// In the image that is being written.
    Here {
        /// First of the whole blocks.
        first: u32,
        /// Where the spool has the rest, which will stand behind the inode.
        tail: Option<Tail>,
    },
    /// In whole blocks behind the image, on the same disk: this is how a small image of metadata
    /// alone refers to bodies of layers that have disks of their own.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "one disk per layer comes after this form")
    )]
    Extern {
        /// First block, counted from the image's end.
        first: u32,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Tail {
    at: u64,
    length: u32,
}

impl Body {
    /// Bytes that stand behind the inode.
    pub(crate) fn tail(&self) -> u32 {
        match self.place {
            Place::Here { tail, .. } => tail.map_or(0, |tail| tail.length),
            Place::Extern { .. } => 0,
        }
    }
}

/// Why a body could not be stored.
#[derive(Debug)]
pub(crate) enum StoreError {
    Read(io::Error),
    /// The source ended early.
    Truncated,
    Write(io::Error),
}

/// Puts bodies into the image, from block 1 on.
#[derive(Debug)]
pub(crate) struct Bodies {
    out: Out,
    /// First block behind all bodies.
    next: u32,
    free: FreeList,
    tails: Out,
    tails_end: u64,
}

impl Bodies {
    /// Writes whole blocks into `image`, partial ones into `spool`.
    pub(crate) fn new(image: File, spool: File) -> Self {
        Self {
            out: Out::new(image),
            next: 1,
            free: FreeList::default(),
            tails: Out::new(spool),
            tails_end: 0,
        }
    }

    /// Stores the next `size` bytes of `source`; `head` is what [`super::head_of`] says.
    pub(crate) fn store(
        &mut self,
        size: u64,
        head: u64,
        source: &mut impl Read,
    ) -> Result<Body, StoreError> {
        let tail = inline_tail(size, head);
        let whole = size - u64::from(tail);
        let first = self
            .allocate(whole.div_ceil(BLOCK))
            .map_err(StoreError::Write)?;
        let start = u64::from(first) * BLOCK;
        self.out.copy(start, whole, source)?;
        let padding = whole.wrapping_neg() % BLOCK;
        self.out.copy(start + whole, padding, &mut io::repeat(0))?;
        let tail = (tail > 0).then_some(Tail {
            at: self.tails_end,
            length: tail,
        });
        if let Some(Tail { at, length }) = tail {
            self.tails.copy(at, u64::from(length), source)?;
            self.tails_end += u64::from(length);
        }
        Ok(Body {
            size,
            place: Place::Here { first, tail },
        })
    }

    /// Takes back the blocks of a body that is part of the tree no more.
    pub(crate) fn release(&mut self, body: &Body) {
        let Place::Here { first, .. } = body.place else {
            return;
        };
        let blocks = (body.size - u64::from(body.tail())).div_ceil(BLOCK);
        // It was a block number when it was allocated.
        let blocks = u32::try_from(blocks).unwrap_or(0);
        if let Some(end) = self.free.add(first, blocks, self.next) {
            self.next = end;
        }
    }

    /// Writes what is buffered: the first block behind all bodies, and the partial blocks.
    pub(crate) fn finish(mut self) -> io::Result<(u32, Spool)> {
        self.out.flush()?;
        self.tails.flush()?;
        Ok((self.next, Spool(self.tails.file)))
    }

    fn allocate(&mut self, blocks: u64) -> io::Result<u32> {
        let too_large = || io::Error::from(ErrorKind::FileTooLarge);
        let blocks = u32::try_from(blocks).map_err(|_| too_large())?;
        if let Some(first) = self.free.take(blocks) {
            return Ok(first);
        }
        let first = self.next;
        self.next = first.checked_add(blocks).ok_or_else(too_large)?;
        Ok(first)
    }
}

/// The partial blocks, until they find their places behind their inodes.
#[derive(Debug)]
pub(crate) struct Spool(File);

impl Spool {
    /// Appends a body's partial block.
    pub(crate) fn read(&self, body: &Body, target: &mut Vec<u8>) -> io::Result<()> {
        let Place::Here {
            tail: Some(tail), ..
        } = body.place
        else {
            return Ok(());
        };
        let start = target.len();
        target.resize(start + tail.length as usize, 0);
        self.0.read_exact_at(&mut target[start..], tail.at)
    }
}

/// A file that is mostly, but not always, written from front to back.
#[derive(Debug)]
struct Out {
    file: File,
    buffer: Vec<u8>,
    /// Where the buffer's first byte goes, and how many there are.
    at: u64,
    used: usize,
}

impl Out {
    fn new(file: File) -> Self {
        Self {
            file,
            buffer: vec![0; BUFFER],
            at: 0,
            used: 0,
        }
    }

    /// Writes the next `length` bytes of `source` at `position`.
    fn copy(
        &mut self,
        position: u64,
        length: u64,
        source: &mut impl Read,
    ) -> Result<(), StoreError> {
        let mut left = length;
        if left > 0 && position != self.at + self.used as u64 {
            self.flush().map_err(StoreError::Write)?;
            self.at = position;
        }
        while left > 0 {
            if self.used == self.buffer.len() {
                self.flush().map_err(StoreError::Write)?;
            }
            let space = self.buffer.len() - self.used;
            let wanted = usize::try_from(left).map_or(space, |left| left.min(space));
            match source.read(&mut self.buffer[self.used..self.used + wanted]) {
                Ok(0) => return Err(StoreError::Truncated),
                Ok(read) => {
                    self.used += read;
                    left -= read as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(StoreError::Read(error)),
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer[..self.used], self.at)?;
        self.at += self.used as u64;
        self.used = 0;
        Ok(())
    }
}

const BUFFER: usize = 1 << 20;
