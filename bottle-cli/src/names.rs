//! Names for bottles that nobody named.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use bottle_core::id::BottleId;

const FIRST: [&str; 16] = [
    "amber", "brisk", "calm", "clear", "deep", "dusty", "fresh", "green", "hollow", "light",
    "plain", "quiet", "round", "still", "tall", "warm",
];
const SECOND: [&str; 16] = [
    "basin", "brook", "cove", "creek", "dew", "fjord", "harbor", "lagoon", "lake", "marsh", "pond",
    "rain", "reef", "shore", "spring", "tide",
];

/// Makes up a name, such as `quiet-lake-4821`.
pub(crate) fn make_up() -> BottleId {
    // The standard library keys every `RandomState` afresh from the system's random numbers.
    let number = RandomState::new().hash_one(0);
    let pick = |words: &[&'static str; 16], shift: u32| {
        let index = usize::try_from((number >> shift) % 16).unwrap_or_default();
        words.get(index).copied().unwrap_or("bottle")
    };
    let name = format!(
        "{}-{}-{:04}",
        pick(&FIRST, 0),
        pick(&SECOND, 4),
        (number >> 8) % 10_000
    );
    name.parse().expect("words and digits are a legal name")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_that_are_made_up_rarely_meet() {
        let names: HashSet<_> = (0..100).map(|_| make_up()).collect();
        assert!(names.len() > 95, "{names:?}");
    }
}
