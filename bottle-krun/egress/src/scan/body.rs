//! A body on its way out.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;

use bytes::Bytes;

use super::codec::Codec;
use super::engine::{Engine, Patience, What};
use super::held::Held;
use super::lane::{Find, Readings};
use super::{ContentEncoding, Finding, ScanRefusal, Treatment};

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
/// The bytes that come out are exactly the bytes that went in, in order, not copied, unless the
/// treatment is to overwrite a secret. After a refusal the body must be aborted: nothing more comes
/// out. Held back are those bytes alone that a known value or token has begun with (of a token, which
/// begins with what everybody knows, from its fourth byte on, unless it is to be overwritten); of an
/// encoded body, the bytes that decode to them.
///
/// # Security
///
/// An encoded body is scanned as it stands too, so a secret in a gzip comment or in a `zstd`
/// skippable frame is found. What the guest has encrypted or encoded in a way of its own is not.
/// A secret in an encoded body cannot be overwritten: it is refused.
#[derive(Debug)]
pub(crate) struct BodyScan {
    engine: Arc<Engine>,
    treatment: Treatment,
    raw: Readings,
    decoding: Option<Decoding>,
    held: Held,
    refusal: Option<ScanRefusal>,
    /// What was found and did not lead to a refusal.
    findings: Vec<Finding>,
    /// Those of it that nobody has taken yet begin here.
    told: usize,
}

impl BodyScan {
    pub(super) fn new(
        engine: &Arc<Engine>,
        encoding: ContentEncoding,
        treatment: Treatment,
    ) -> Self {
        let codec = match encoding {
            _ if treatment == Treatment::Ignore => None,
            ContentEncoding::Brotli => Some(Codec::brotli()),
            ContentEncoding::Deflate => Some(Codec::deflate()),
            ContentEncoding::Gzip => Some(Codec::gzip()),
            ContentEncoding::Identity => None,
            ContentEncoding::Zstd => Codec::zstd(),
        };
        let is_undecodable = codec.is_none()
            && encoding != ContentEncoding::Identity
            && treatment != Treatment::Ignore;
        Self {
            engine: Arc::clone(engine),
            treatment,
            raw: Readings::new(Arc::clone(engine)),
            decoding: codec.map(|codec| Decoding::new(codec, engine)),
            held: Held::default(),
            refusal: is_undecodable.then_some(ScanRefusal::Undecodable),
            findings: Vec::new(),
            told: 0,
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
        if self.treatment == Treatment::Ignore {
            return Ok(vec![chunk]);
        }
        self.held.push(chunk.clone());
        match self.judge(&chunk) {
            Ok(until) => Ok(self.held.release(until)),
            Err(refusal) => {
                self.refusal = Some(refusal.clone());
                Err(refusal)
            }
        }
    }

    /// Says whether something is held back.
    pub(crate) fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Returns what may go out although it may yet belong to a secret, because nothing has come for
    /// a while and the sender may be waiting for an answer: up to three bytes.
    pub(crate) fn relax(&mut self) -> Vec<Bytes> {
        if self.refusal.is_some() {
            return Vec::new();
        }
        let until = self.raw.live_from(Patience::Short);
        match &mut self.decoding {
            None => self.held.release(until),
            Some(decoding) => {
                let until = decoding.safe(Patience::Short).min(until);
                self.held.release(until)
            }
        }
    }

    /// Ends the body, returns the rest of it.
    ///
    /// # Errors
    ///
    /// [`ScanRefusal`]: abort the body.
    pub(crate) fn finish(&mut self) -> Result<Vec<Bytes>, ScanRefusal> {
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        if self.treatment != Treatment::Ignore {
            if let Some(find) = self.raw.end() {
                self.found(find)?;
            }
            let ended = self.decoding.as_ref().map_or(Ok(None), Decoding::end);
            match ended {
                Ok(None) => {}
                Ok(Some(what)) => self.found_encoded(what)?,
                Err(refusal) => self.undecodable(refusal)?,
            }
        }
        Ok(self.held.release_all())
    }

    /// Returns what was found since the last call and did not lead to a refusal.
    pub(crate) fn findings(&mut self) -> &[Finding] {
        let from = mem::replace(&mut self.told, self.findings.len());
        &self.findings[from..]
    }

    /// Reads a chunk; returns the position up to which the body may go out.
    fn judge(&mut self, chunk: &[u8]) -> Result<u64, ScanRefusal> {
        let patience = match self.treatment {
            Treatment::Overwrite => Patience::Exact,
            Treatment::Ignore | Treatment::Refuse | Treatment::Report => Patience::Values,
        };
        let mut rest = chunk;
        while !rest.is_empty() {
            let (taken, find) = self.raw.feed(rest);
            rest = &rest[taken..];
            if let Some(find) = find {
                self.found(find)?;
            }
        }
        let mut until = self.raw.live_from(patience);
        let mut rest = chunk;
        while let Some(decoding) = &mut self.decoding
            && !rest.is_empty()
        {
            match decoding.judge(&mut rest) {
                Ok(Some(what)) => self.found_encoded(what)?,
                Ok(None) => until = until.min(decoding.safe(patience)),
                Err(refusal) => self.undecodable(refusal)?,
            }
        }
        if let Some(decoding) = &mut self.decoding {
            until = until.min(decoding.safe(patience));
        }
        match self.treatment {
            // What is reported passes anyway.
            Treatment::Report => Ok(u64::MAX),
            Treatment::Ignore | Treatment::Overwrite | Treatment::Refuse => Ok(until),
        }
    }

    fn found(&mut self, find: Find) -> Result<(), ScanRefusal> {
        let finding = Finding {
            name: self.engine.name(find.what),
        };
        match self.treatment {
            Treatment::Refuse => return Err(ScanRefusal::Secret(finding)),
            Treatment::Overwrite if self.decoding.is_some() => {
                return Err(ScanRefusal::Secret(finding));
            }
            Treatment::Overwrite => self.held.overwrite(find.from, find.to),
            Treatment::Ignore | Treatment::Report => {}
        }
        self.note(finding);
        Ok(())
    }

    fn found_encoded(&mut self, what: What) -> Result<(), ScanRefusal> {
        let finding = Finding {
            name: self.engine.name(what),
        };
        match self.treatment {
            Treatment::Overwrite | Treatment::Refuse => Err(ScanRefusal::Secret(finding)),
            Treatment::Ignore | Treatment::Report => {
                self.note(finding);
                Ok(())
            }
        }
    }

    /// Nobody knows what else is in it: it is refused, or passes with a note of that.
    fn undecodable(&mut self, refusal: ScanRefusal) -> Result<(), ScanRefusal> {
        match self.treatment {
            Treatment::Overwrite | Treatment::Refuse => Err(refusal),
            Treatment::Ignore | Treatment::Report => {
                self.decoding = None;
                self.note(Finding {
                    name: "nobody knows what, for it does not decode".to_owned(),
                });
                Ok(())
            }
        }
    }

    /// Keeps each kind once.
    fn note(&mut self, finding: Finding) {
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
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

    /// Reads encoded bytes up to the first secret in what they decode to.
    fn judge(&mut self, bytes: &mut &[u8]) -> Result<Option<What>, ScanRefusal> {
        while !bytes.is_empty() {
            let limit = self
                .taken
                .saturating_mul(MAX_GROWTH)
                .clamp(BOMB_FLOOR, MAX_DECODED);
            let decoded = &mut self.decoded;
            let mut found = None;
            let taken = self.codec.decode(bytes, &mut |piece| {
                if decoded.position() + piece.len() as u64 > limit {
                    return Err(ScanRefusal::Bomb);
                }
                let mut rest = piece;
                while !rest.is_empty() {
                    let (taken, find) = decoded.feed(rest);
                    rest = &rest[taken..];
                    if let (None, Some(find)) = (found, find) {
                        found = Some(find.what);
                    }
                }
                Ok(())
            })?;
            self.taken += taken as u64;
            *bytes = &bytes[taken..];
            if self.codec.is_settled() {
                self.marks.push_back((self.taken, self.decoded.position()));
            }
            let safe = self.safe(Patience::Values);
            if self.taken - safe > MAX_WAITING {
                return Err(ScanRefusal::Undecodable);
            }
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Returns the encoded position up to which the body may go out.
    fn safe(&mut self, patience: Patience) -> u64 {
        let live_from = self.decoded.live_from(patience);
        while let Some((encoded, end)) = self.marks.front()
            && *end <= live_from
        {
            self.safe = *encoded;
            self.marks.pop_front();
        }
        self.safe
    }

    fn end(&self) -> Result<Option<What>, ScanRefusal> {
        if !self.codec.may_end() {
            return Err(ScanRefusal::Undecodable);
        }
        Ok(self.decoded.end().map(|find| find.what))
    }
}
