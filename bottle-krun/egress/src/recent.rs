//! A limit on decisions that a guest's loop could otherwise flood the record with.
//!
//! The first few of a kind in a window are recorded one by one. Further ones are counted under the
//! id of the last, which is the id that the guest is told. The count is recorded at 1, 8, 64 and so
//! on, so that an end without warning loses little, and whole when the next window begins.

use std::collections::HashMap;
use std::mem;
use std::time::{Duration, Instant};

/// What makes one decision the same as another: kind, host, port, and the words about it.
pub(crate) type Key = (&'static str, String, u16, String);

/// So long is a window.
const WINDOW: Duration = Duration::from_secs(60);

/// So many kinds are told apart in a window; what is beyond is one kind for each host and port.
const MAX_KINDS: usize = 1024;

/// What was recorded lately.
#[derive(Debug)]
pub(crate) struct Recent {
    began: Instant,
    kinds: HashMap<Key, Kind>,
}

#[derive(Debug)]
struct Kind {
    recorded: u32,
    counted: u64,
    /// The count that was recorded last.
    told: u64,
    id: String,
}

/// What to do with a decision.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Admission {
    /// It was counted under this id.
    Counted(String),
    /// Record it under the new id.
    Record,
}

/// Counts that are due to be recorded: under which id, and how many so far.
pub(crate) type Counted = Vec<(String, u64)>;

impl Recent {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            began: now,
            kinds: HashMap::new(),
        }
    }

    /// Admits a decision to which `id` would be given; `most` of its kind are recorded in a window.
    ///
    /// Also returns the counts that are due.
    pub(crate) fn admit(
        &mut self,
        key: Key,
        id: &str,
        most: u32,
        now: Instant,
    ) -> (Admission, Counted) {
        let mut due = Counted::new();
        if now.saturating_duration_since(self.began) >= WINDOW {
            due = self.counted();
            self.began = now;
        }
        let key = if self.kinds.len() < MAX_KINDS || self.kinds.contains_key(&key) {
            key
        } else {
            (key.0, String::new(), 0, String::new())
        };
        let kind = self.kinds.entry(key).or_insert_with(|| Kind {
            recorded: 0,
            counted: 0,
            told: 0,
            id: String::new(),
        });
        let admission = if kind.recorded < most {
            kind.recorded += 1;
            id.clone_into(&mut kind.id);
            Admission::Record
        } else {
            kind.counted += 1;
            if kind.counted.is_power_of_two() && kind.counted.trailing_zeros().is_multiple_of(3) {
                kind.told = kind.counted;
                due.push((kind.id.clone(), kind.counted));
            }
            Admission::Counted(kind.id.clone())
        };
        (admission, due)
    }

    /// Ends the window; returns what was counted in it and not recorded.
    fn counted(&mut self) -> Counted {
        let kinds = mem::take(&mut self.kinds).into_values();
        kinds
            .filter(|kind| kind.counted > kind.told)
            .map(|kind| (kind.id, kind.counted))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(host: &str) -> Key {
        ("refused", host.to_owned(), 443, "no".to_owned())
    }

    #[test]
    fn more_of_the_same_is_counted_under_the_last_id() {
        let start = Instant::now();
        let mut recent = Recent::new(start);
        let mut admit = |host: &str, id: &str, now| recent.admit(key(host), id, 2, now);
        assert_eq!(admit("a", "1", start), (Admission::Record, vec![]));
        assert_eq!(admit("a", "2", start), (Admission::Record, vec![]));
        for count in 1..=70 {
            let due = match count {
                1 | 8 | 64 => vec![("2".to_owned(), count)],
                _ => vec![],
            };
            let counted = Admission::Counted("2".to_owned());
            assert_eq!(admit("a", "x", start), (counted, due), "{count}");
        }
        assert_eq!(
            admit("b", "5", start),
            (Admission::Record, vec![]),
            "another host"
        );
        let later = admit("a", "6", start + WINDOW);
        assert_eq!(later, (Admission::Record, vec![("2".to_owned(), 70)]));
        assert_eq!(recent.counted(), vec![]);
    }

    #[test]
    fn a_flood_of_kinds_is_one_kind() {
        let start = Instant::now();
        let mut recent = Recent::new(start);
        let mut recorded = 0;
        for n in 0..MAX_KINDS * 3 {
            let (admission, _) = recent.admit(key(&format!("n{n}")), "x", 4, start);
            recorded += usize::from(admission == Admission::Record);
        }
        assert_eq!(recorded, MAX_KINDS + 4);
        assert!(recent.kinds.len() <= MAX_KINDS + 1);
        assert_eq!(recent.counted().len(), 1);
    }
}
