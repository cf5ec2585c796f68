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

use super::engine::{Cursor, Engine};
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

    /// Takes bytes; returns the name of a secret that they complete.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Option<String> {
        let engine = &*Arc::clone(&self.engine);
        while !bytes.is_empty() {
            if self.forked == 0 && self.plain.is_plain() {
                let taken = engine.skip(&mut self.plain, bytes, &STOPS);
                self.position += taken as u64;
                bytes = &bytes[taken..];
            }
            if let Some((byte, rest)) = bytes.split_first() {
                let found = self.step(engine, *byte);
                if found.is_some() {
                    return found;
                }
                bytes = rest;
            }
        }
        None
    }

    /// Returns the position of the first byte that may yet belong to a secret, or the end.
    pub(super) fn live_from(&self) -> u64 {
        let engine = &self.engine;
        let plain = self.position - engine.live(&self.plain) as u64;
        let forked = self.lanes.iter().filter(|lane| lane.is_forked);
        forked
            .filter_map(|lane| lane.live_from(engine))
            .fold(plain, u64::min)
    }

    /// Returns how many bytes were taken.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Returns the name of a secret that is complete if the stream ends here.
    pub(super) fn end(&self) -> Option<String> {
        let engine = &self.engine;
        let forked = self.lanes.iter().filter(|lane| lane.is_forked);
        let cursors = forked.map(|lane| &lane.cursor).chain([&self.plain]);
        cursors.into_iter().find_map(|cursor| engine.end(cursor))
    }

    fn step(&mut self, engine: &Engine, byte: u8) -> Option<String> {
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
        let mut found = engine.step(&mut self.plain, byte);
        let placed = (byte, self.position);
        self.position += 1;
        if self.forked > 0 {
            for lane in self.lanes.iter_mut().filter(|lane| lane.is_forked) {
                found = lane.push(engine, placed).or(found);
                if lane.decoder.is_neutral() && lane.cursor.agrees_with(&self.plain) {
                    lane.is_forked = false;
                    self.forked -= 1;
                }
            }
        }
        found
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
        }
    }

    fn fork(&mut self, plain: &Cursor, position: u64) {
        self.is_forked = true;
        self.cursor.clone_from(plain);
        self.fork = position;
        self.starts.clear();
    }

    fn push(&mut self, engine: &Engine, placed: Placed) -> Option<String> {
        let Self {
            decoder,
            cursor,
            starts,
            ..
        } = self;
        let mut found = None;
        decoder.push(placed, &mut |(byte, start)| {
            starts.push_back(start);
            if starts.len() > engine.longest() {
                starts.pop_front();
            }
            if let Some(name) = engine.step(cursor, byte) {
                found = Some(name);
            }
        });
        found
    }

    /// Returns the position of the first byte that may yet belong to a secret in this reading.
    fn live_from(&self, engine: &Engine) -> Option<u64> {
        let live = engine.live(&self.cursor);
        if live == 0 {
            return None;
        }
        Some(match self.starts.len().checked_sub(live) {
            Some(index) => self.starts.get(index).copied().unwrap_or(self.fork),
            // The match began before the fork, one stream byte per decoded byte.
            None => self.fork - (live - self.starts.len()) as u64,
        })
    }
}
