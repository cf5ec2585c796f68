//! Directories: blocks of 12-byte entries followed by the names they point at.

use std::iter;

use crate::erofs::{BLOCK, BLOCK_SIZE};
use crate::tree::{Children, Ino};

/// A name, and what it names.
type Named<'t> = (&'t [u8], Option<Ino>);

/// A directory's names in the order in which the kernel searches them.
pub(crate) struct Dirents<'t> {
    /// `.` and `..` have no child.
    names: Vec<Named<'t>>,
}

impl<'t> Dirents<'t> {
    pub(crate) fn new(children: &'t Children) -> Self {
        let mut names: Vec<_> = children
            .iter()
            .map(|(name, child)| (name, Some(child.ino)))
            .chain([(&b"."[..], None), (&b".."[..], None)])
            .collect();
        // Some names sort before the dot; and the whole was nearly sorted.
        names.sort();
        Self { names }
    }

    /// Bytes in all: every block but the last counts as full.
    pub(crate) fn size(&self) -> u64 {
        let mut size = 0;
        for (block, is_last) in self.blocks() {
            size += if is_last { used(block) as u64 } else { BLOCK };
        }
        size
    }

    /// The contents of each block, without padding; `number` gives the number and type of a child.
    pub(crate) fn bytes(
        &self,
        ino: Ino,
        parent: Ino,
        number: impl Fn(Ino) -> (u64, u8),
    ) -> impl Iterator<Item = Vec<u8>> {
        self.blocks().map(move |(block, _)| {
            let mut bytes = Vec::with_capacity(BLOCK_SIZE);
            let mut offset = ENTRY * block.len();
            for (name, child) in block {
                let target = match (child, *name) {
                    (Some(child), _) => *child,
                    (None, b".") => ino,
                    (None, _) => parent,
                };
                let (nid, file_type) = number(target);
                bytes.extend(nid.to_le_bytes());
                // Less than a block.
                bytes.extend(u16::try_from(offset).unwrap_or(u16::MAX).to_le_bytes());
                bytes.extend([file_type, 0]);
                offset += name.len();
            }
            for (name, _) in block {
                bytes.extend_from_slice(name);
            }
            bytes
        })
    }

    /// As many names per block as fit; and whether the block is the last.
    fn blocks(&self) -> impl Iterator<Item = (&[Named<'t>], bool)> {
        let mut rest = &self.names[..];
        iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let mut used = 0;
            let fitting = rest
                .iter()
                .take_while(|(name, _)| {
                    used += ENTRY + name.len();
                    used <= BLOCK_SIZE
                })
                .count();
            let (block, after) = rest.split_at(fitting);
            rest = after;
            Some((block, rest.is_empty()))
        })
    }
}

fn used(block: &[Named<'_>]) -> usize {
    block.iter().map(|(name, _)| ENTRY + name.len()).sum()
}

const ENTRY: usize = 12;
