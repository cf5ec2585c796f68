//! The automaton over everything that is looked for: bytes of known values, prefixes of tokens.

use std::collections::{BTreeMap, HashMap, HashSet};

use aho_corasick::automaton::{Automaton, StateID};
use aho_corasick::{Anchored, MatchKind, StartKind, dfa, nfa};
use bottle_core::secret::{MIN_SECRET_LEN, Secret};

use super::ScannerError;
use super::family::{Family, Progress, Run, SHIELDS};
use super::needle;

/// Up to so many bytes of patterns, the automaton is the fast, large kind.
const MAX_DENSE: usize = 16 << 10;

/// No scanner takes more bytes of patterns than this.
const MAX_TOTAL: usize = 4 << 20;

/// The compiled patterns.
#[derive(Debug)]
pub(super) struct Engine {
    machine: Machine,
    /// With their lengths.
    patterns: Vec<(Pattern, usize)>,
    names: Vec<String>,
    /// The partial matches that a state stands for.
    depths: HashMap<StateID, Depth>,
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
    /// A text behind which the family of this name is not looked for.
    Shield(&'static str),
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
    pub(super) fn new(
        known: &[Secret],
        families: &'static [Family],
        most: usize,
    ) -> Result<Self, ScannerError> {
        let mut texts = BTreeMap::new();
        for (index, secret) in known.iter().enumerate() {
            for form in needle::forms(secret.expose(), MIN_SECRET_LEN, most) {
                texts.entry(form).or_insert(Pattern::Value(index));
            }
        }
        for family in families {
            texts
                .entry(family.prefix.into())
                .or_insert(Pattern::Prefix(family));
        }
        for (text, family) in SHIELDS {
            texts
                .entry(text.as_bytes().into())
                .or_insert(Pattern::Shield(family));
        }
        let total = texts.keys().map(Vec::len).sum::<usize>();
        if total > MAX_TOTAL {
            return Err(ScannerError::TooMuch);
        }
        let machine = Machine::new(texts.keys(), total <= MAX_DENSE)?;
        let start = machine.start()?;
        let mut depths: HashMap<_, Depth> = HashMap::new();
        for (text, pattern) in &texts {
            let mut state = start;
            for (index, byte) in text.iter().enumerate() {
                state = machine.next(state, *byte);
                let depth = depths.entry(state).or_default();
                depth.any = index + 1;
                if matches!(pattern, Pattern::Value(_)) {
                    depth.value = index + 1;
                }
            }
        }
        // A token's prefix may end in the beginning of a value.
        let values: HashSet<_> = texts
            .iter()
            .filter(|(_, pattern)| matches!(pattern, Pattern::Value(_)))
            .flat_map(|(text, _)| (1..=text.len()).map(|end| &text[..end]))
            .collect();
        for (text, pattern) in &texts {
            let mut state = start;
            for end in 1..=text.len() {
                state = machine.next(state, text[end - 1]);
                if !matches!(pattern, Pattern::Value(_)) {
                    let mut endings = (0..end).map(|from| &text[from..end]);
                    let value = endings.find(|ending| values.contains(ending));
                    let depth = depths.entry(state).or_default();
                    depth.value = depth.value.max(value.map_or(0, <[u8]>::len));
                }
            }
        }
        let tokens = families.iter().map(Family::len);
        Ok(Self {
            machine,
            longest: texts
                .keys()
                .map(Vec::len)
                .fold(0, usize::max)
                .max(tokens.fold(0, usize::max)),
            patterns: texts
                .into_iter()
                .map(|(text, pattern)| (pattern, text.len()))
                .collect(),
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

    /// Takes one byte; returns what it completes.
    pub(super) fn step(&self, cursor: &mut Cursor, byte: u8) -> Option<Hit> {
        let mut found = None;
        cursor.runs.retain_mut(|run| {
            let (is_found, behind) = match run.push(byte) {
                Progress::Dead => return false,
                Progress::Open => return true,
                Progress::Found => (true, 0),
                Progress::FoundBefore => (true, 1),
            };
            if is_found {
                longest(
                    &mut found,
                    Hit {
                        what: What::Token(run.family().name),
                        len: run.len(),
                        behind,
                    },
                );
            }
            false
        });
        cursor.state = self.machine.next(cursor.state, byte);
        let mut shielded = None;
        self.machine.each_match(cursor.state, |pattern| {
            if let Pattern::Shield(family) = self.patterns[pattern].0 {
                shielded = Some(family);
            }
        });
        if let Some(family) = shielded {
            cursor.runs.retain(|run| run.family().name != family);
        }
        self.machine.each_match(cursor.state, |pattern| {
            let (pattern, len) = self.patterns[pattern];
            match pattern {
                Pattern::Prefix(family) if shielded == Some(family.name) => {}
                Pattern::Prefix(family) => cursor.runs.push(Run::new(family)),
                Pattern::Shield(_) => {}
                Pattern::Value(index) => {
                    longest(
                        &mut found,
                        Hit {
                            what: What::Value(index),
                            len,
                            behind: 0,
                        },
                    );
                }
            }
        });
        found
    }

    /// Returns the name of a find.
    pub(super) fn name(&self, what: What) -> String {
        match what {
            What::Token(name) => name.to_owned(),
            What::Value(index) => format!("Known Secret Leak ({})", self.names[index]),
        }
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
    pub(super) fn live(&self, cursor: &Cursor, patience: Patience) -> usize {
        let depth = self.depths.get(&cursor.state).copied().unwrap_or_default();
        let partial = depth.live(patience);
        cursor.runs.iter().map(Run::len).fold(partial, usize::max)
    }

    /// Returns what is complete if nothing follows.
    pub(super) fn end(&self, cursor: &Cursor) -> Option<Hit> {
        let run = cursor.runs.iter().find(|run| run.ends_here())?;
        Some(Hit {
            what: What::Token(run.family().name),
            len: run.len(),
            behind: 0,
        })
    }
}

/// What a byte has completed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Hit {
    pub(super) what: What,
    /// How many bytes of the reading it has.
    pub(super) len: usize,
    /// How many bytes were read behind it.
    pub(super) behind: usize,
}

/// One value may end in another: what is overwritten is the longer one.
fn longest(found: &mut Option<Hit>, hit: Hit) {
    let has_longer = |known: Hit| known.len + known.behind >= hit.len + hit.behind;
    if !found.is_some_and(has_longer) {
        *found = Some(hit);
    }
}

/// What was found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum What {
    /// A token of the family of this name.
    Token(&'static str),
    /// The known value with this index.
    Value(usize),
}

/// How short a partial match may be to be held back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Patience {
    /// One byte of anything is enough: it may have to be overwritten.
    Exact,
    /// One byte of a known value is enough; the prefix of a token is public.
    Values,
    /// While a sender waits for an answer: nearly every chunk ends in one or two bytes of
    /// something, and three bytes of a value are not the value.
    Short,
}

/// How many bytes of a partial match are always held back.
const LONG: usize = 4;

/// The partial matches that a state stands for.
#[derive(Clone, Copy, Debug, Default)]
struct Depth {
    /// The longest of them.
    any: usize,
    /// The longest one of a known value.
    value: usize,
}

impl Depth {
    fn live(self, patience: Patience) -> usize {
        match patience {
            Patience::Exact => self.any,
            _ if self.any >= LONG => self.any,
            Patience::Values => self.value,
            Patience::Short => 0,
        }
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
