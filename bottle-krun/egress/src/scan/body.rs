//! A body on its way out.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::codec::Codec;
use super::engine::Engine;
use super::held::Held;
use super::lane::Readings;
use super::{ContentEncoding, Finding, ScanRefusal};

/// So many encoded bytes may wait while they decode to nothing that can be judged: a `zstd` block
/// has up to 128 KiB. Plain bytes never wait in such numbers.
const MAX_WAITING: u64 = 256 << 10;

/// No body decodes to more than this.
const MAX_DECODED: u64 = 4 << 30;

/// A body that decodes to more than [`BOMB_FLOOR`] may not have grown by more than this factor.
const MAX_GROWTH: u64 = 256;

/// Below this, growth does not matter.
const BOMB_FLOOR: u64 = 16 << 20;

/// One body on its way out. Bytes go in, and come out once they cannot be part of a secret.
///
/// The bytes that come out are exactly the bytes that went in, in order, not copied. After a
/// refusal the body must be aborted: nothing more comes out. Held back are those bytes alone that
/// a known value or token has begun with (from its fourth byte on: fewer are no secret, and nearly
/// every chunk ends in one), so that its last byte never leaves; of an encoded body, the bytes that
/// decode to them.
///
/// # Security
///
/// An encoded body is scanned as it stands too, so a secret in a gzip comment or in a `zstd`
/// skippable frame is found. What the guest has encrypted or encoded in a way of its own is not.
#[derive(Debug)]
pub(crate) struct BodyScan {
    raw: Readings,
    decoding: Option<Decoding>,
    held: Held,
    refusal: Option<ScanRefusal>,
}

impl BodyScan {
    pub(super) fn new(engine: &Arc<Engine>, encoding: ContentEncoding) -> Self {
        let codec = match encoding {
            ContentEncoding::Brotli => Some(Codec::brotli()),
            ContentEncoding::Deflate => Some(Codec::deflate()),
            ContentEncoding::Gzip => Some(Codec::gzip()),
            ContentEncoding::Identity => None,
            ContentEncoding::Zstd => Codec::zstd(),
        };
        let is_undecodable = codec.is_none() && encoding != ContentEncoding::Identity;
        Self {
            raw: Readings::new(Arc::clone(engine)),
            decoding: codec.map(|codec| Decoding::new(codec, engine)),
            held: Held::default(),
            refusal: is_undecodable.then_some(ScanRefusal::Undecodable),
        }
    }

    /// Takes the next bytes, returns what may go out now.
    ///
    /// # Errors
    ///
    /// [`ScanRefusal`]: abort the body. Every later call refuses as well.
    pub(crate) fn push(&mut self, chunk: Bytes) -> Result<Vec<Bytes>, ScanRefusal> {
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        let verdict = self.judge(&chunk);
        self.held.push(chunk);
        match verdict {
            Ok(until) => Ok(self.held.release(until)),
            Err(refusal) => {
                self.refusal = Some(refusal.clone());
                Err(refusal)
            }
        }
    }

    /// Ends the body, returns the rest of it.
    ///
    /// # Errors
    ///
    /// [`ScanRefusal`]: abort the body.
    pub(crate) fn finish(mut self) -> Result<Vec<Bytes>, ScanRefusal> {
        if let Some(refusal) = self.refusal {
            return Err(refusal);
        }
        if let Some(name) = self.raw.end() {
            return Err(ScanRefusal::Secret(Finding { name }));
        }
        if let Some(decoding) = &self.decoding {
            decoding.end()?;
        }
        Ok(self.held.release_all())
    }

    /// Reads a chunk; returns the position up to which the body may go out.
    fn judge(&mut self, chunk: &[u8]) -> Result<u64, ScanRefusal> {
        feed(&mut self.raw, chunk)?;
        let until = self.raw.live_from();
        match &mut self.decoding {
            None => Ok(until),
            Some(decoding) => Ok(decoding.judge(chunk)?.min(until)),
        }
    }
}

/// The reading of what an encoded body decodes to.
#[derive(Debug)]
struct Decoding {
    codec: Codec,
    decoded: Readings,
    taken: u64,
    /// Pairs of positions: encoded bytes before the first decode to the decoded bytes before the
    /// second, and tell no more.
    marks: VecDeque<(u64, u64)>,
    /// The last encoded position whose decoded bytes cannot be part of a secret.
    safe: u64,
}

impl Decoding {
    fn new(codec: Codec, engine: &Arc<Engine>) -> Self {
        Self {
            codec,
            decoded: Readings::new(Arc::clone(engine)),
            taken: 0,
            marks: VecDeque::new(),
            safe: 0,
        }
    }

    /// Reads encoded bytes; returns the encoded position up to which they may go out.
    fn judge(&mut self, mut bytes: &[u8]) -> Result<u64, ScanRefusal> {
        while !bytes.is_empty() {
            let limit = self
                .taken
                .saturating_mul(MAX_GROWTH)
                .clamp(BOMB_FLOOR, MAX_DECODED);
            let decoded = &mut self.decoded;
            let taken = self.codec.decode(bytes, &mut |piece| {
                if decoded.position() + piece.len() as u64 > limit {
                    return Err(ScanRefusal::Bomb);
                }
                feed(decoded, piece)
            })?;
            self.taken += taken as u64;
            bytes = &bytes[taken..];
            if self.codec.is_settled() {
                self.marks.push_back((self.taken, self.decoded.position()));
            }
            let live_from = self.decoded.live_from();
            while let Some((encoded, end)) = self.marks.front()
                && *end <= live_from
            {
                self.safe = *encoded;
                self.marks.pop_front();
            }
            if self.taken - self.safe > MAX_WAITING {
                return Err(ScanRefusal::Undecodable);
            }
        }
        Ok(self.safe)
    }

    fn end(&self) -> Result<(), ScanRefusal> {
        if !self.codec.may_end() {
            return Err(ScanRefusal::Undecodable);
        }
        match self.decoded.end() {
            Some(name) => Err(ScanRefusal::Secret(Finding { name })),
            None => Ok(()),
        }
    }
}

fn feed(readings: &mut Readings, bytes: &[u8]) -> Result<(), ScanRefusal> {
    match readings.feed(bytes) {
        Some(name) => Err(ScanRefusal::Secret(Finding { name })),
        None => Ok(()),
    }
}
