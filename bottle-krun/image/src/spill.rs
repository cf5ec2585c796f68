//! Bytes that are kept for a while: the first in memory, the rest in a temporary file.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A growing number of records, found by their places.
#[derive(Debug)]
pub(crate) struct Spill {
    /// Where the file is made, without a name.
    dir: PathBuf,
    /// What came first.
    head: Vec<u8>,
    /// Made when the first part is full.
    file: Option<File>,
    /// Bytes in the file.
    written: u64,
    /// What is not yet in the file.
    tail: Vec<u8>,
    /// How much of it stays in memory.
    limit: usize,
}

/// Where a record is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Place {
    pub(crate) at: u64,
    pub(crate) length: u32,
}

impl Spill {
    /// Keeps nothing yet; `dir` is not looked at before there is much.
    pub(crate) fn new(dir: &Path) -> Self {
        Self::with_limit(dir, HEAD)
    }

    fn with_limit(dir: &Path, limit: usize) -> Self {
        Self {
            dir: dir.to_owned(),
            head: Vec::new(),
            file: None,
            written: 0,
            tail: Vec::new(),
            limit,
        }
    }

    /// Keeps a record; a failure to write is one of the next records', too.
    pub(crate) fn add(&mut self, record: &[u8]) -> io::Result<Place> {
        let length = u32::try_from(record.len()).map_err(|_| ErrorKind::InvalidInput)?;
        if self.file.is_none() {
            if self.head.len() + record.len() <= self.limit {
                let at = self.head.len() as u64;
                self.head.extend_from_slice(record);
                return Ok(Place { at, length });
            }
            self.file = Some(tempfile::tempfile_in(&self.dir)?);
        }
        if self.tail.len() >= TAIL
            && let Some(file) = &mut self.file
        {
            file.write_all(&self.tail)?;
            self.written += self.tail.len() as u64;
            self.tail.clear();
        }
        let at = self.head.len() as u64 + self.written + self.tail.len() as u64;
        self.tail.extend_from_slice(record);
        Ok(Place { at, length })
    }

    /// Reads a record again.
    pub(crate) fn read(&self, place: Place) -> io::Result<Cow<'_, [u8]>> {
        let Place { at, length } = place;
        let head = self.head.len() as u64;
        let (bytes, start) = match at.checked_sub(head) {
            None => (&self.head, at),
            Some(at) => match (at.checked_sub(self.written), &self.file) {
                (Some(at), _) => (&self.tail, at),
                (None, Some(file)) => {
                    let mut record = vec![0; length as usize];
                    file.read_exact_at(&mut record, at)?;
                    return Ok(Cow::Owned(record));
                }
                (None, None) => return Err(ErrorKind::UnexpectedEof.into()),
            },
        };
        let start = usize::try_from(start).map_err(|_| ErrorKind::UnexpectedEof)?;
        let record = bytes.get(start..start + length as usize);
        record
            .map(Cow::Borrowed)
            .ok_or_else(|| ErrorKind::UnexpectedEof.into())
    }
}

/// Records of 100,000 entries fit, which have some 50 bytes each.
const HEAD: usize = 8 << 20;
const TAIL: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn records_are_read_from_memory_and_from_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut spill = Spill::with_limit(dir.path(), 1000);
        let record = |number: usize| vec![number.to_le_bytes()[0]; number % 300];
        let places: Vec<Place> = (0..20_000)
            .map(|number| spill.add(&record(number)).unwrap())
            .collect();
        assert!(spill.written > 0 && !spill.tail.is_empty() && !spill.head.is_empty());
        assert!(spill.tail.len() < TAIL + 300 && spill.head.len() <= 1000);
        for (number, place) in places.into_iter().enumerate() {
            assert_eq!(*spill.read(place).unwrap(), record(number), "{number}");
        }
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            0,
            "it has a name"
        );
    }

    #[test]
    fn little_needs_no_file_and_much_a_place_for_it() {
        let mut spill = Spill::with_limit(Path::new("/no/where"), 10);
        spill.add(&[7; 10]).unwrap();
        let error = spill.add(&[7]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}
