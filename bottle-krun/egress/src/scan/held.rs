//! Bytes that wait for their verdict.

use std::collections::VecDeque;

use bytes::Bytes;

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

    /// Gives out everything.
    pub(super) fn release_all(&mut self) -> Vec<Bytes> {
        self.release(u64::MAX)
    }
}
