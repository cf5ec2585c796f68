//! Tokens of every row, made when tests run: none stands in the tree.

use super::{Family, Kind, Part};
use crate::scan::checksum::Crc;

impl Family {
    /// Makes a token that the issuer could have given out; `seed` chooses which.
    pub(in super::super) fn example(&self, seed: u64) -> String {
        self.filled(&mut Chance(seed), |kind, chance| chance.pick(&kind.all()))
    }

    /// The same shape, filled by a hand that is too lazy for chance.
    pub(in super::super) fn placeholder(&self) -> String {
        self.filled(&mut Chance(0), |kind, _| match kind {
            Kind::Hex => b'0',
            Kind::Upper => b'X',
            Kind::Separator | Kind::Space => b' ',
            Kind::Armor | Kind::Base62 | Kind::Base64 | Kind::Letter | Kind::Word => b'x',
        })
    }

    /// Says whether a checksum alone decides.
    pub(in super::super) fn has_checksum(&self) -> bool {
        self.body.iter().any(|part| matches!(part, Part::Check))
    }

    fn filled(&self, chance: &mut Chance, byte: impl Fn(Kind, &mut Chance) -> u8) -> String {
        let mut token = self.prefix.as_bytes().to_vec();
        let mut crc = Crc::default();
        for part in self.body {
            match part {
                Part::Check => token.extend(crc.digits()),
                Part::Literal(bytes) => token.extend(*bytes),
                Part::Some(kind, least, _) => {
                    for _ in 0..*least {
                        token.push(byte(*kind, chance));
                        token.last().into_iter().for_each(|last| crc.push(*last));
                    }
                }
                Part::Until(kind, end, _) => {
                    token.extend((0..40).map(|_| byte(*kind, chance)));
                    token.extend(*end);
                }
            }
        }
        token.into_iter().map(char::from).collect()
    }
}

impl Kind {
    fn all(self) -> Vec<u8> {
        (0..128).filter(|byte| self.has(*byte)).collect()
    }
}

/// Repeatable chance.
#[derive(Debug)]
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub(crate) fn pick(&mut self, of: &[u8]) -> u8 {
        let index = self.next() % of.len() as u64;
        of[usize::try_from(index).unwrap_or(0)]
    }
}
