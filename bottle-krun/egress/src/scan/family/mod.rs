//! Token families: how a credential of a known issuer is recognised. A new family is a row of the
//! [`table`].
//!
//! A family needs a distinctive prefix, and behind it a checksum, or a length that ends at an edge
//! and the looks of chance. There is no leading edge: in escaped text the byte before a token is a
//! letter of the escape (`\n`, `%20`, `[0m`), and a case-exact prefix with all that behind it does
//! not occur by accident.

mod table;
#[cfg(test)]
pub(super) mod testing;

use super::checksum::{self, Crc};

pub(super) use table::{FAMILIES, SHIELDS};

/// One row: what follows which prefix.
#[derive(Debug)]
pub(super) struct Family {
    /// The name under which it is reported.
    pub(super) name: &'static str,
    /// The bytes it begins with.
    pub(super) prefix: &'static str,
    /// What follows the prefix. A part ends where the next byte is not of it, or at its most.
    body: &'static [Part],
    /// What turns the right shape into a finding.
    proof: Proof,
}

/// A piece of a token's body.
#[derive(Debug)]
enum Part {
    /// The CRC-32 of the body so far, six digits in base 62.
    Check,
    /// These bytes.
    Literal(&'static [u8]),
    /// Between so many and so many bytes of a kind.
    Some(Kind, usize, usize),
    /// Bytes of a kind up to these eight, which are among them; at most so many.
    Until(Kind, &'static [u8; 8], usize),
}

/// A kind of bytes.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// [`Kind::Base64`], `=`, line ends and blanks.
    Armor,
    /// `A-Z`, `a-z`, `0-9`, `+`, `/`
    Base64,
    /// `A-Z`, `a-z`, `0-9`
    Base62,
    /// `0-9`, `a-f`
    Hex,
    /// `A-Z`, `a-z`
    Letter,
    /// What may stand between a name and its value: blanks, quotes, `=`, `:`.
    Separator,
    /// Line ends and blanks.
    Space,
    /// `A-Z`, `0-9`
    Upper,
    /// `A-Z`, `a-z`, `0-9`, `-`, `_`
    Word,
}

impl Kind {
    fn has(self, byte: u8) -> bool {
        match self {
            Self::Armor => Self::Base64.has(byte) || Self::Space.has(byte) || byte == b'=',
            Self::Base64 => byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'),
            Self::Base62 => byte.is_ascii_alphanumeric(),
            Self::Hex => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
            Self::Letter => byte.is_ascii_alphabetic(),
            Self::Separator => matches!(byte, b' ' | b'\t' | b'"' | b'\'' | b'=' | b':'),
            Self::Space => matches!(byte, b' ' | b'\t' | b'\r' | b'\n'),
            Self::Upper => byte.is_ascii_uppercase() || byte.is_ascii_digit(),
            Self::Word => byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'),
        }
    }
}

/// What has to hold besides the shape.
#[derive(Debug)]
enum Proof {
    /// Nothing: the shape has a checksum.
    Shape,
    /// So many different bytes at least, and it does not end in one of these: an example.
    Random(u32, &'static [&'static [u8]]),
    /// The same, and both capital and small letters.
    Mixed(u32),
}

/// A token that has begun and is not decided yet. It keeps what a verdict needs and no text.
#[derive(Clone, Debug)]
pub(super) struct Run {
    family: &'static Family,
    /// The part at hand, and how many of its bytes were taken.
    part: usize,
    taken: usize,
    /// All bytes so far, the prefix included.
    len: usize,
    crc: Crc,
    /// The last eight bytes of the body.
    tail: u64,
    /// Which bytes of ASCII occurred.
    seen: u128,
}

/// What the next byte means for a [`Run`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Progress {
    /// It is no token.
    Dead,
    /// It is one, this byte included.
    Found,
    /// It was one, before this byte.
    FoundBefore,
    /// Nobody can say yet.
    Open,
}

impl Run {
    /// Begins behind the prefix.
    pub(super) fn new(family: &'static Family) -> Self {
        Self {
            family,
            part: 0,
            taken: 0,
            len: family.prefix.len(),
            crc: Crc::default(),
            tail: 0,
            seen: 0,
        }
    }

    /// Returns the family.
    pub(super) fn family(&self) -> &'static Family {
        self.family
    }

    /// Returns how many bytes belong to the token so far, its prefix included.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Takes the next byte.
    pub(super) fn push(&mut self, byte: u8) -> Progress {
        while let Some(part) = self.family.body.get(self.part) {
            let is_last = self.part + 1 == self.family.body.len();
            let (fits, is_complete) = match part {
                Part::Check => {
                    let digits = self.crc.digits();
                    (
                        digits.get(self.taken) == Some(&byte),
                        self.taken + 1 == digits.len(),
                    )
                }
                Part::Literal(bytes) => (
                    bytes.get(self.taken) == Some(&byte),
                    self.taken + 1 == bytes.len(),
                ),
                Part::Until(kind, end, most) => {
                    let tail = self.tail << 8 | u64::from(byte);
                    (
                        kind.has(byte) && self.taken < *most,
                        tail.to_be_bytes() == **end,
                    )
                }
                Part::Some(kind, least, most) => {
                    if !kind.has(byte) && self.taken >= *least && !is_last {
                        self.next_part();
                        continue;
                    }
                    if !kind.has(byte) || self.taken == *most {
                        // One more of its kind makes what has a fixed length something else.
                        let is_longer = kind.has(byte) && least == most;
                        return self
                            .verdict(Progress::FoundBefore, self.taken >= *least && !is_longer);
                    }
                    self.crc.push(byte);
                    (true, !is_last && self.taken + 1 == *most)
                }
            };
            if !fits {
                return Progress::Dead;
            }
            self.taken += 1;
            self.len += 1;
            self.tail = self.tail << 8 | u64::from(byte);
            self.seen |= 1 << (byte & 127);
            if is_complete {
                self.next_part();
            }
            return if is_complete && is_last {
                self.verdict(Progress::Found, true)
            } else {
                Progress::Open
            };
        }
        Progress::Dead
    }

    /// Says whether it is a token if nothing follows.
    pub(super) fn ends_here(&self) -> bool {
        let mut parts = self.family.body.iter().skip(self.part);
        let may_end = |part: &Part, taken| match part {
            Part::Some(_, least, _) => taken >= *least,
            Part::Check | Part::Literal(_) | Part::Until(..) => false,
        };
        parts.next().is_some_and(|part| may_end(part, self.taken))
            && parts.all(|part| may_end(part, 0))
            && self.is_proven()
    }

    fn next_part(&mut self) {
        self.part += 1;
        self.taken = 0;
    }

    fn verdict(&self, found: Progress, has_shape: bool) -> Progress {
        if has_shape && self.is_proven() {
            found
        } else {
            Progress::Dead
        }
    }

    fn is_proven(&self) -> bool {
        let letters = |from: u8| (1_u128 << 26).wrapping_sub(1) << from;
        match self.family.proof {
            Proof::Shape => true,
            Proof::Random(least, examples) => {
                let tail = self.tail.to_be_bytes();
                self.seen.count_ones() >= least
                    && !examples.iter().any(|example| tail.ends_with(example))
            }
            Proof::Mixed(least) => {
                self.seen.count_ones() >= least
                    && self.seen & letters(b'A') != 0
                    && self.seen & letters(b'a') != 0
            }
        }
    }
}

impl Family {
    /// Returns the most bytes that a token of it has.
    pub(super) fn len(&self) -> usize {
        self.prefix.len() + self.body.iter().map(Part::len).sum::<usize>()
    }
}

impl Part {
    const fn len(&self) -> usize {
        match self {
            Self::Check => checksum::LEN,
            Self::Literal(bytes) => bytes.len(),
            Self::Some(_, _, most) | Self::Until(_, _, most) => *most,
        }
    }
}
