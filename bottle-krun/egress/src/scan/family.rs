//! Token families: how a credential of a known issuer is recognised. A new family is a row.
//!
//! A family needs a distinctive prefix, and a checksum or a fixed length that ends at an edge.
//! There is no leading edge: in escaped text the byte before a token is a letter of the escape
//! (`\n`, `%20`, `[0m`), and a prefix of four case-exact characters with a checksum behind it does
//! not occur by accident.

use super::checksum;

/// One row: what follows which prefix.
#[derive(Debug)]
pub(super) struct Family {
    /// The name under which it is reported.
    pub(super) name: &'static str,
    /// The bytes it begins with.
    pub(super) prefix: &'static str,
    /// What follows the prefix.
    body: &'static [Part],
    /// What turns the right shape into a finding.
    proof: Proof,
}

/// A piece of a token's body.
#[derive(Debug)]
enum Part {
    /// So many characters of `A-Z`, `a-z`, `0-9`.
    Base62(usize),
    /// This byte.
    Literal(u8),
}

/// What has to hold besides the shape.
#[derive(Debug)]
enum Proof {
    /// The last six characters are the CRC-32 of those before, in base 62.
    Checksum,
    /// The next byte cannot belong to a longer word.
    Edge,
}

const CLASSIC: &[Part] = &[Part::Base62(36)];

const fn github(prefix: &'static str) -> Family {
    Family {
        name: "GitHub Token",
        prefix,
        body: CLASSIC,
        proof: Proof::Checksum,
    }
}

/// Every family that is looked for.
pub(super) const FAMILIES: &[Family] = &[
    github("ghp_"),
    github("gho_"),
    github("ghu_"),
    github("ghs_"),
    github("ghr_"),
    Family {
        name: "GitHub Fine-Grained PAT",
        prefix: "github_pat_",
        body: &[Part::Base62(22), Part::Literal(b'_'), Part::Base62(59)],
        proof: Proof::Edge,
    },
];

/// A token that has begun and is not decided yet.
#[derive(Clone, Debug)]
pub(super) struct Run {
    family: &'static Family,
    body: Vec<u8>,
}

/// What the next byte means for a [`Run`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Progress {
    /// It is no token.
    Dead,
    /// It is one.
    Found,
    /// Nobody can say yet.
    Open,
}

impl Run {
    /// Begins behind the prefix.
    pub(super) fn new(family: &'static Family) -> Self {
        Self {
            family,
            body: Vec::with_capacity(family.body_len()),
        }
    }

    /// Returns the family's name.
    pub(super) fn name(&self) -> &'static str {
        self.family.name
    }

    /// Returns how many bytes belong to the token so far, its prefix included.
    pub(super) fn len(&self) -> usize {
        self.family.prefix.len() + self.body.len()
    }

    /// Takes the next byte.
    pub(super) fn push(&mut self, byte: u8) -> Progress {
        let Some(part) = self.family.part(self.body.len()) else {
            return if byte.is_ascii_alphanumeric() || byte == b'_' {
                Progress::Dead
            } else {
                Progress::Found
            };
        };
        let fits = match part {
            Part::Base62(_) => byte.is_ascii_alphanumeric(),
            Part::Literal(literal) => byte == *literal,
        };
        if !fits {
            return Progress::Dead;
        }
        self.body.push(byte);
        if self.body.len() < self.family.body_len() {
            return Progress::Open;
        }
        match self.family.proof {
            Proof::Checksum if checksum::ends_with_own(&self.body) => Progress::Found,
            Proof::Checksum => Progress::Dead,
            Proof::Edge => Progress::Open,
        }
    }

    /// Says whether it is a token if nothing follows.
    pub(super) fn ends_here(&self) -> bool {
        self.body.len() == self.family.body_len()
    }
}

impl Family {
    /// Returns the length of the whole token.
    pub(super) fn len(&self) -> usize {
        self.prefix.len() + self.body_len()
    }

    fn body_len(&self) -> usize {
        self.body.iter().map(Part::len).sum()
    }

    /// Returns the part to which the body's byte number `index` belongs, `None` behind the end.
    fn part(&self, index: usize) -> Option<&'static Part> {
        let mut end = 0;
        self.body.iter().find(|part| {
            end += part.len();
            index < end
        })
    }
}

impl Part {
    const fn len(&self) -> usize {
        match self {
            Self::Base62(count) => *count,
            Self::Literal(_) => 1,
        }
    }
}
