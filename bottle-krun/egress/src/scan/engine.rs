//! The automaton over everything that is looked for: bytes of known values, prefixes of tokens.

use std::collections::{BTreeMap, HashMap};

use aho_corasick::automaton::{Automaton, StateID};
use aho_corasick::{Anchored, MatchKind, StartKind, dfa, nfa};
use bottle_core::secret::{MIN_SECRET_LEN, Secret};

use super::ScannerError;
use super::family::{FAMILIES, Family, Progress, Run};
use super::needle;

/// A partial match of fewer bytes than this is not held back: nearly every chunk ends in one, a
/// token's prefix is public, and three bytes of a value are not the value.
const LIVE: usize = 4;

/// Up to so many bytes of patterns, the automaton is the fast, large kind.
const MAX_DENSE: usize = 16 << 10;

/// No scanner takes more bytes of patterns than this.
const MAX_TOTAL: usize = 4 << 20;

/// The compiled patterns.
#[derive(Debug)]
pub(super) struct Engine {
    machine: Machine,
    patterns: Vec<Pattern>,
    names: Vec<String>,
    /// How long the partial match is that a state stands for; states of fewer than [`LIVE`] bytes
    /// are absent.
    depths: HashMap<StateID, usize>,
    start: StateID,
    longest: usize,
}

#[derive(Debug)]
enum Machine {
    Compact(nfa::contiguous::NFA),
    Dense(dfa::DFA),
}

/// What a pattern of the automaton stands for.
#[derive(Clone, Copy, Debug)]
enum Pattern {
    /// The prefix of a token.
    Prefix(&'static Family),
    /// A form of the known value whose name has this index.
    Value(usize),
}

/// How far a reader of bytes has come.
#[derive(Clone, Debug)]
pub(super) struct Cursor {
    state: StateID,
    runs: Vec<Run>,
}

impl Engine {
    pub(super) fn new(known: &[Secret]) -> Result<Self, ScannerError> {
        let mut texts = BTreeMap::new();
        for (index, secret) in known.iter().enumerate() {
            for form in needle::forms(secret.expose(), MIN_SECRET_LEN) {
                texts.entry(form).or_insert(Pattern::Value(index));
            }
        }
        for family in FAMILIES {
            texts
                .entry(family.prefix.into())
                .or_insert(Pattern::Prefix(family));
        }
        let total = texts.keys().map(Vec::len).sum::<usize>();
        if total > MAX_TOTAL {
            return Err(ScannerError::TooMuch);
        }
        let machine = Machine::new(texts.keys(), total <= MAX_DENSE)?;
        let start = machine.start()?;
        let mut depths = HashMap::new();
        for text in texts.keys() {
            let mut state = start;
            for (index, byte) in text.iter().enumerate() {
                state = machine.next(state, *byte);
                if index + 1 >= LIVE {
                    depths.insert(state, index + 1);
                }
            }
        }
        let tokens = FAMILIES.iter().map(Family::len);
        Ok(Self {
            machine,
            longest: texts
                .keys()
                .map(Vec::len)
                .fold(0, usize::max)
                .max(tokens.fold(0, usize::max)),
            patterns: texts.into_values().collect(),
            names: known
                .iter()
                .map(|secret| secret.name().to_owned())
                .collect(),
            depths,
            start,
        })
    }

    /// Returns a cursor at the beginning of a text.
    pub(super) fn begin(&self) -> Cursor {
        Cursor {
            state: self.start,
            runs: Vec::new(),
        }
    }

    /// Returns the length of the longest thing that is looked for.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// Says whether nothing has begun.
    pub(super) fn is_start(&self, cursor: &Cursor) -> bool {
        cursor.state == self.start && cursor.is_plain()
    }

    /// Takes one byte; returns the name of what it completes.
    pub(super) fn step(&self, cursor: &mut Cursor, byte: u8) -> Option<String> {
        let mut found = None;
        cursor.runs.retain_mut(|run| match run.push(byte) {
            Progress::Dead => false,
            Progress::Found => {
                found = Some(run.name().to_owned());
                false
            }
            Progress::Open => true,
        });
        cursor.state = self.machine.next(cursor.state, byte);
        self.machine
            .each_match(cursor.state, |pattern| match self.patterns[pattern] {
                Pattern::Prefix(family) => cursor.runs.push(Run::new(family)),
                Pattern::Value(index) => {
                    found = Some(format!("Known Secret Leak ({})", self.names[index]));
                }
            });
        found
    }

    /// Takes bytes until one that needs [`Engine::step`]: it completes a pattern, or `stops` says
    /// so. Returns how many were taken. To be called while no run is open.
    pub(super) fn skip(&self, cursor: &mut Cursor, bytes: &[u8], stops: &[bool; 256]) -> usize {
        let state = &mut cursor.state;
        match &self.machine {
            Machine::Compact(machine) => skip(machine, state, bytes, stops),
            Machine::Dense(machine) => skip(machine, state, bytes, stops),
        }
    }

    /// Returns how many of the last bytes may yet turn out to belong to something.
    pub(super) fn live(&self, cursor: &Cursor) -> usize {
        let partial = self.depths.get(&cursor.state).copied().unwrap_or(0);
        cursor.runs.iter().map(Run::len).fold(partial, usize::max)
    }

    /// Returns the name of what is complete if nothing follows.
    pub(super) fn end(&self, cursor: &Cursor) -> Option<String> {
        let run = cursor.runs.iter().find(|run| run.ends_here())?;
        Some(run.name().to_owned())
    }
}

impl Cursor {
    /// Says whether no token is open.
    pub(super) fn is_plain(&self) -> bool {
        self.runs.is_empty()
    }

    /// Says whether both will see the same in whatever follows.
    pub(super) fn agrees_with(&self, other: &Self) -> bool {
        self.state == other.state && self.is_plain() && other.is_plain()
    }
}

impl Machine {
    fn new<'a>(
        texts: impl Iterator<Item = &'a Vec<u8>>,
        is_dense: bool,
    ) -> Result<Self, ScannerError> {
        let too_much = |_| ScannerError::TooMuch;
        let sparse = nfa::noncontiguous::NFA::builder()
            .match_kind(MatchKind::Standard)
            .prefilter(false)
            .build(texts)
            .map_err(too_much)?;
        Ok(if is_dense {
            let mut builder = dfa::DFA::builder();
            builder.start_kind(StartKind::Unanchored);
            Self::Dense(
                builder
                    .build_from_noncontiguous(&sparse)
                    .map_err(too_much)?,
            )
        } else {
            let builder = nfa::contiguous::NFA::builder();
            Self::Compact(
                builder
                    .build_from_noncontiguous(&sparse)
                    .map_err(too_much)?,
            )
        })
    }

    fn start(&self) -> Result<StateID, ScannerError> {
        match self {
            Self::Compact(machine) => machine.start_state(Anchored::No),
            Self::Dense(machine) => machine.start_state(Anchored::No),
        }
        .map_err(|_| ScannerError::TooMuch)
    }

    fn next(&self, state: StateID, byte: u8) -> StateID {
        match self {
            Self::Compact(machine) => machine.next_state(Anchored::No, state, byte),
            Self::Dense(machine) => machine.next_state(Anchored::No, state, byte),
        }
    }

    fn each_match(&self, state: StateID, act: impl FnMut(usize)) {
        match self {
            Self::Compact(machine) => each_match(machine, state, act),
            Self::Dense(machine) => each_match(machine, state, act),
        }
    }
}

fn each_match<A: Automaton>(machine: &A, state: StateID, mut act: impl FnMut(usize)) {
    if machine.is_match(state) {
        for index in 0..machine.match_len(state) {
            act(machine.match_pattern(state, index).as_usize());
        }
    }
}

fn skip<A: Automaton>(
    machine: &A,
    state: &mut StateID,
    bytes: &[u8],
    stops: &[bool; 256],
) -> usize {
    let mut now = *state;
    let mut taken = 0;
    for byte in bytes {
        let next = machine.next_state(Anchored::No, now, *byte);
        if machine.is_special(next) || stops[usize::from(*byte)] {
            break;
        }
        now = next;
        taken += 1;
    }
    *state = now;
    taken
}
