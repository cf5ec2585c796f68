//! A limit on events that a guest's loop could otherwise flood the record with.

use std::collections::HashSet;
use std::time::{Duration, Instant};

/// In so much time, the same is recorded once.
const WINDOW: Duration = Duration::from_secs(60);

/// In so much time, so many different ones are recorded.
const MAX_PER_WINDOW: usize = 512;

/// What was recorded lately.
#[derive(Debug)]
pub(super) struct Coalescer {
    began: Instant,
    seen: HashSet<(String, &'static str)>,
}

/// What to do with an event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Admission {
    /// Drop it: it stands there already, or the record says that some are missing.
    Drop,
    /// Record in its place, once, that more than [`MAX_PER_WINDOW`] happened.
    Overflow,
    /// Record it.
    Record,
}

impl Coalescer {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            began: now,
            seen: HashSet::new(),
        }
    }

    /// Decides on an event by what makes it the same as another.
    pub(super) fn admit(&mut self, name: &str, answer: &'static str, now: Instant) -> Admission {
        if now.saturating_duration_since(self.began) >= WINDOW {
            *self = Self::new(now);
        }
        if self.seen.len() > MAX_PER_WINDOW || !self.seen.insert((name.to_owned(), answer)) {
            Admission::Drop
        } else if self.seen.len() > MAX_PER_WINDOW {
            Admission::Overflow
        } else {
            Admission::Record
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_recorded_once_in_a_window() {
        let start = Instant::now();
        let mut coalescer = Coalescer::new(start);
        assert_eq!(
            coalescer.admit("a.test", "unlisted", start),
            Admission::Record
        );
        assert_eq!(
            coalescer.admit("a.test", "unlisted", start),
            Admission::Drop
        );
        assert_eq!(
            coalescer.admit("a.test", "refused", start),
            Admission::Record
        );
        assert_eq!(
            coalescer.admit("a.test", "unlisted", start + WINDOW),
            Admission::Record
        );
    }

    #[test]
    fn a_flood_of_names_is_recorded_as_one() {
        let start = Instant::now();
        let mut coalescer = Coalescer::new(start);
        let mut admit = |index: usize| coalescer.admit(&format!("n{index}"), "unlisted", start);
        for index in 0..MAX_PER_WINDOW {
            assert_eq!(admit(index), Admission::Record, "{index}");
        }
        assert_eq!(admit(MAX_PER_WINDOW), Admission::Overflow);
        assert_eq!(admit(MAX_PER_WINDOW + 1), Admission::Drop);
    }
}
