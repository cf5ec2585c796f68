//! The readings of one stream: as it stands, and with its escapes undone.
//!
//! A reading with escapes undone is the stream itself until an escape comes, and soon again after
//! it. So a lane is forked off the plain reading at an escape and dropped when both have come to
//! the same state; text without escapes costs nothing.
//!
//! ```text
//! plain ──a──b──%──4──1──c──d──►
//!            └───── A ───c──┘      forked at `%`, agrees again after `c`
//! ```

use std::collections::VecDeque;
use std::sync::Arc;

use super::engine::{Cursor, Engine, Hit, Patience, What};
use super::unescape::{Json, Percent, Placed, Unwrap};

/// The bytes at which some lane forks off.
const STOPS: [bool; 256] = {
    let mut stops = [false; 256];
    stops[b'%' as usize] = true;
    stops[b'\\' as usize] = true;
    stops[b'\n' as usize] = true;
    stops[b'\r' as usize] = true;
    stops
};

/// All readings of one stream.
#[derive(Debug)]
pub(super) struct Readings {
    engine: Arc<Engine>,
    plain: Cursor,
    position: u64,
    lanes: [Lane; 4],
    /// How many of the lanes are forked off.
    forked: usize,
}

impl Readings {
    pub(super) fn new(engine: Arc<Engine>) -> Self {
        let plain = engine.begin();
        Self {
            lanes: [Kind::Json, Kind::JsonTwice, Kind::Percent, Kind::Unwrapped]
                .map(|kind| Lane::new(kind, plain.clone())),
            plain,
            engine,
            position: 0,
            forked: 0,
        }
    }

    /// Takes bytes up to the first secret that they complete; returns how many, and the secret.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> (usize, Option<Find>) {
        let engine = &*Arc::clone(&self.engine);
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.forked == 0 && self.plain.is_plain() {
                let taken = engine.skip(&mut self.plain, rest, &STOPS);
                self.position += taken as u64;
                rest = &rest[taken..];
            }
            if let Some((byte, behind)) = rest.split_first() {
                rest = behind;
                let found = self.step(engine, *byte);
                if found.is_some() {
                    return (bytes.len() - rest.len(), found);
                }
            }
        }
        (bytes.len(), None)
    }

    /// Returns the position of the first byte that may yet belong to a secret, or the end.
    pub(super) fn live_from(&self, patience: Patience) -> u64 {
        let engine = &self.engine;
        let plain = self.position - engine.live(&self.plain, patience) as u64;
        let forked = self.lanes.iter().filter(|lane| lane.is_forked);
        forked
            .filter_map(|lane| lane.live_from(engine, patience))
            .fold(plain, u64::min)
    }

    /// Returns how many bytes were taken.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Returns a secret that is complete if the stream ends here.
    pub(super) fn end(&self) -> Option<Find> {
        let engine = &self.engine;
        let plain = engine.end(&self.plain).map(|hit| self.plain_find(hit));
        plain.or_else(|| {
            let mut forked = self.lanes.iter().filter(|lane| lane.is_forked);
            forked.find_map(|lane| Some(lane.find(engine.end(&lane.cursor)?, self.position)))
        })
    }

    fn plain_find(&self, hit: Hit) -> Find {
        let to = self.position - hit.behind as u64;
        Find {
            what: hit.what,
            from: to - hit.len as u64,
            to,
        }
    }

    fn step(&mut self, engine: &Engine, byte: u8) -> Option<Find> {
        let was_idle = engine.is_start(&self.plain);
        if STOPS[usize::from(byte)] {
            for lane in &mut self.lanes {
                // Between two matches it makes no difference whether a line end is dropped.
                let is_moot = byte != b'\\' && lane.kind == Kind::Unwrapped && was_idle;
                if lane.kind.forks_at(byte) && !lane.is_forked && !is_moot {
                    lane.fork(&self.plain, self.position);
                    self.forked += 1;
                }
            }
        }
        let hit = engine.step(&mut self.plain, byte);
        let placed = (byte, self.position);
        self.position += 1;
        let mut found = hit.map(|hit| self.plain_find(hit));
        if self.forked > 0 {
            for lane in self.lanes.iter_mut().filter(|lane| lane.is_forked) {
                found = Find::both(found, lane.push(engine, placed));
                if lane.decoder.is_neutral() && lane.cursor.agrees_with(&self.plain) {
                    lane.is_forked = false;
                    self.forked -= 1;
                }
            }
        }
        found
    }
}

/// A secret and where its written form stands in the stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Find {
    pub(super) what: What,
    pub(super) from: u64,
    pub(super) to: u64,
}

impl Find {
    /// What several readings have found at the same byte is one place.
    fn both(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(one), Some(other)) => Some(Self {
                what: one.what,
                from: one.from.min(other.from),
                to: one.to.max(other.to),
            }),
            (found, None) | (None, found) => found,
        }
    }
}

/// A way to read the stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    /// A JSON string.
    Json,
    /// A JSON string in a JSON string.
    JsonTwice,
    /// A URL or a form.
    Percent,
    /// Wrapped lines, in a JSON string or not.
    Unwrapped,
}

impl Kind {
    fn forks_at(self, byte: u8) -> bool {
        match self {
            Self::Json | Self::JsonTwice => byte == b'\\',
            Self::Percent => byte == b'%',
            Self::Unwrapped => matches!(byte, b'\\' | b'\r' | b'\n'),
        }
    }

    fn decoder(self) -> Decoder {
        match self {
            Self::Json => Decoder::Json(Json::default()),
            Self::JsonTwice => Decoder::JsonTwice(Json::default(), Json::default()),
            Self::Percent => Decoder::Percent(Percent::default()),
            Self::Unwrapped => Decoder::Unwrapped(Json::default(), Unwrap::default()),
        }
    }
}

/// The decoder of a [`Kind`]; between two forks it is neutral.
#[derive(Debug)]
enum Decoder {
    Json(Json),
    JsonTwice(Json, Json),
    Percent(Percent),
    Unwrapped(Json, Unwrap),
}

impl Decoder {
    fn push(&mut self, next: Placed, out: &mut impl FnMut(Placed)) {
        match self {
            Self::Json(json) => json.push(next, out),
            Self::JsonTwice(outer, inner) => {
                outer.push(next, &mut |placed| inner.push(placed, out));
            }
            Self::Percent(percent) => percent.push(next, out),
            Self::Unwrapped(json, unwrap) => {
                json.push(next, &mut |placed| unwrap.push(placed, out));
            }
        }
    }

    /// Says whether an escape is open that may turn out to be a byte of something.
    fn is_pending(&self) -> bool {
        match self {
            Self::Json(_) | Self::JsonTwice(..) | Self::Percent(_) => !self.is_neutral(),
            Self::Unwrapped(json, _) => !json.is_neutral(),
        }
    }

    fn is_neutral(&self) -> bool {
        match self {
            Self::Json(json) => json.is_neutral(),
            Self::JsonTwice(outer, inner) => outer.is_neutral() && inner.is_neutral(),
            Self::Percent(percent) => percent.is_neutral(),
            Self::Unwrapped(json, unwrap) => json.is_neutral() && unwrap.is_neutral(),
        }
    }
}

/// One reading that may differ from the plain one.
#[derive(Debug)]
struct Lane {
    kind: Kind,
    /// Whether it differs at present; all below means nothing otherwise.
    is_forked: bool,
    decoder: Decoder,
    cursor: Cursor,
    /// Where it forked off: before that, decoded bytes are the stream's own.
    fork: u64,
    /// Where the written forms of the last decoded bytes begin.
    starts: VecDeque<u64>,
    /// Before that, no escape is open.
    settled: u64,
}

impl Lane {
    fn new(kind: Kind, cursor: Cursor) -> Self {
        Self {
            kind,
            is_forked: false,
            decoder: kind.decoder(),
            cursor,
            fork: 0,
            starts: VecDeque::new(),
            settled: 0,
        }
    }

    fn fork(&mut self, plain: &Cursor, position: u64) {
        self.is_forked = true;
        self.cursor.clone_from(plain);
        self.fork = position;
        self.settled = position;
        self.starts.clear();
    }

    fn push(&mut self, engine: &Engine, placed: Placed) -> Option<Find> {
        let end = placed.1 + 1;
        let Self {
            decoder,
            cursor,
            starts,
            fork,
            ..
        } = self;
        let mut found = None;
        decoder.push(placed, &mut |(byte, start)| {
            starts.push_back(start);
            if starts.len() > engine.longest() + 1 {
                starts.pop_front();
            }
            if let Some(hit) = engine.step(cursor, byte) {
                found = Find::both(found, Some(find(hit, starts, *fork, end)));
            }
        });
        if !decoder.is_pending() {
            self.settled = end;
        }
        found
    }

    fn find(&self, hit: Hit, end: u64) -> Find {
        find(hit, &self.starts, self.fork, end)
    }

    /// Returns the position of the first byte that may yet belong to a secret in this reading.
    fn live_from(&self, engine: &Engine, patience: Patience) -> Option<u64> {
        let live = engine.live(&self.cursor, patience);
        if live > 0 {
            return Some(start_of(live, &self.starts, self.fork));
        }
        let is_open = patience != Patience::Short && self.decoder.is_pending();
        is_open.then_some(self.settled)
    }
}

fn find(hit: Hit, starts: &VecDeque<u64>, fork: u64, end: u64) -> Find {
    Find {
        what: hit.what,
        from: start_of(hit.len + hit.behind, starts, fork),
        to: match hit.behind {
            0 => end,
            behind => start_of(behind, starts, fork),
        },
    }
}

/// Returns where the written form of the decoded byte begins that is this far from the end.
fn start_of(back: usize, starts: &VecDeque<u64>, fork: u64) -> u64 {
    match starts.len().checked_sub(back) {
        Some(index) => starts.get(index).copied().unwrap_or(fork),
        // It stands before the fork, one stream byte per decoded byte.
        None => fork - (back - starts.len()) as u64,
    }
}
