//! Bodies of regular files: how they get into an image while a layer streams by.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::FileExt;

use crate::erofs::BLOCK;

/// The contents of a regular file: whole blocks, the last one padded.
///
/// None of it stands behind an inode, as the format would allow: whoever has another inode for it,
/// in another image of the same disk, refers to the same blocks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Body {
    pub(crate) size: u64,
    /// First block; where counting starts is what [`super::Form`] says.
    pub(crate) first: u32,
}

/// Why a body could not be stored.
#[derive(Debug)]
pub(crate) enum StoreError {
    Read(io::Error),
    /// The source ended early.
    Truncated,
    Write(io::Error),
}

/// Puts bodies into an image, one behind the other, from block 1 on.
#[derive(Debug)]
pub(crate) struct Bodies {
    file: File,
    buffer: Vec<u8>,
    /// How much of the buffer waits to be written at `at`.
    used: usize,
    at: u64,
    /// First block behind all bodies.
    next: u32,
}

impl Bodies {
    /// Writes into `image`, which must be empty: what is zero stays a hole.
    pub(crate) fn new(image: File) -> Self {
        Self {
            file: image,
            buffer: vec![0; BUFFER],
            used: 0,
            at: BLOCK,
            next: 1,
        }
    }

    /// Stores the next `size` bytes of `source`.
    pub(crate) fn store(&mut self, size: u64, source: &mut impl Read) -> Result<Body, StoreError> {
        let first = self.next;
        self.next = u32::try_from(size.div_ceil(BLOCK))
            .ok()
            .and_then(|blocks| first.checked_add(blocks))
            .ok_or_else(|| StoreError::Write(ErrorKind::FileTooLarge.into()))?;
        self.copy(size, source)?;
        self.copy(size.wrapping_neg() % BLOCK, &mut io::repeat(0))?;
        Ok(Body { size, first })
    }

    /// Writes what is buffered; returns the first block behind all bodies.
    pub(crate) fn finish(mut self) -> io::Result<u32> {
        self.flush()?;
        Ok(self.next)
    }

    fn copy(&mut self, length: u64, source: &mut impl Read) -> Result<(), StoreError> {
        let mut left = length;
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
        let bytes = &self.buffer[..self.used];
        if !is_zero(bytes) {
            self.file.write_all_at(bytes, self.at)?;
        }
        self.at += self.used as u64;
        self.used = 0;
        Ok(())
    }
}

/// Large files of nothing are what archives exaggerate best.
fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<16>();
    chunks.iter().all(|chunk| u128::from_ne_bytes(*chunk) == 0) && rest.iter().all(|b| *b == 0)
}

const BUFFER: usize = 1 << 20;
