//! Blocks of the image that hidden files left, for the files that come after them.

use std::collections::{BTreeMap, BTreeSet};

/// Free extents, found by place and by size.
#[derive(Debug, Default)]
pub(crate) struct FreeList {
    /// First block to number of blocks.
    by_start: BTreeMap<u32, u32>,
    /// Number of blocks, first block.
    by_length: BTreeSet<(u32, u32)>,
}

impl FreeList {
    /// Takes back an extent of a file that ends at block `end`.
    ///
    /// Returns the new end if the last extent is free now: the file becomes shorter instead.
    pub(crate) fn add(&mut self, first: u32, length: u32, end: u32) -> Option<u32> {
        if length == 0 {
            return None;
        }
        let (mut first, mut length) = (first, length);
        if let Some((&before, &blocks)) = self.by_start.range(..first).next_back()
            && before + blocks == first
        {
            self.remove(before, blocks);
            (first, length) = (before, length + blocks);
        }
        if let Some(&blocks) = self.by_start.get(&(first + length)) {
            self.remove(first + length, blocks);
            length += blocks;
        }
        if first + length == end {
            return Some(first);
        }
        self.by_start.insert(first, length);
        self.by_length.insert((length, first));
        None
    }

    /// The smallest extent that has `length` blocks, the first of these.
    pub(crate) fn take(&mut self, length: u32) -> Option<u32> {
        if length == 0 {
            return None;
        }
        let &(found, first) = self.by_length.range((length, 0)..).next()?;
        self.remove(first, found);
        if found > length {
            self.by_start.insert(first + length, found - length);
            self.by_length.insert((found - length, first + length));
        }
        Some(first)
    }

    fn remove(&mut self, first: u32, length: u32) {
        self.by_start.remove(&first);
        self.by_length.remove(&(length, first));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbors_become_one_extent() {
        let mut free = FreeList::default();
        assert_eq!(free.add(10, 2, 100), None);
        assert_eq!(free.add(14, 2, 100), None);
        assert_eq!(free.take(5), None);
        assert_eq!(free.add(12, 2, 100), None);
        assert_eq!(free.take(5), Some(10));
        assert_eq!(free.take(1), Some(15));
        assert_eq!(free.take(1), None);
    }

    #[test]
    fn the_smallest_extent_that_fits_is_taken() {
        let mut free = FreeList::default();
        free.add(10, 8, 100);
        free.add(30, 3, 100);
        assert_eq!(free.take(2), Some(30));
        assert_eq!(free.take(2), Some(10));
    }

    #[test]
    fn a_free_end_shortens_the_file() {
        let mut free = FreeList::default();
        assert_eq!(free.add(90, 5, 100), None);
        assert_eq!(free.add(95, 5, 100), Some(90));
        assert_eq!(free.take(1), None);
    }
}
