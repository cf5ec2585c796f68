//! Bytes that wait for their verdict.

use std::collections::VecDeque;
use std::mem;

use bytes::{Bytes, BytesMut};

/// A queue of chunks that is emptied by position; nothing is copied.
#[derive(Debug, Default)]
pub(super) struct Held {
    chunks: VecDeque<Bytes>,
    /// The position of the first byte that is still here.
    from: u64,
}

impl Held {
    /// Takes the next bytes.
    pub(super) fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.chunks.push_back(chunk);
        }
    }

    /// Says whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Gives out everything before a position.
    pub(super) fn release(&mut self, until: u64) -> Vec<Bytes> {
        let mut out = Vec::new();
        while let Some(chunk) = self.chunks.front_mut() {
            let due = until.saturating_sub(self.from);
            let due = usize::try_from(due).unwrap_or(usize::MAX).min(chunk.len());
            if due == 0 {
                break;
            }
            self.from += due as u64;
            out.push(chunk.split_to(due));
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
        out
    }

    /// Overwrites what is still here of a range with `*`; its length stays.
    pub(super) fn overwrite(&mut self, from: u64, to: u64) {
        let mut begin = self.from;
        for chunk in &mut self.chunks {
            let end = begin + chunk.len() as u64;
            let place = |at: u64| usize::try_from(at.clamp(begin, end) - begin).unwrap_or(0);
            let range = place(from)..place(to);
            if !range.is_empty() {
                let mut bytes = BytesMut::from(mem::take(chunk));
                bytes[range].fill(b'*');
                *chunk = bytes.freeze();
            }
            begin = end;
        }
    }

    /// Gives out everything.
    pub(super) fn release_all(&mut self) -> Vec<Bytes> {
        self.release(u64::MAX)
    }
}
