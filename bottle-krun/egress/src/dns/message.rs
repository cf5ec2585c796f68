//! DNS messages (RFC 1035, EDNS0 of RFC 6891): bytes to a query, an answer to bytes.
//!
//! Total, and small on purpose: one question, no compression in it, and an answer that repeats the
//! question as it stood and adds at most one record. So an answer is at most 39 bytes
//! longer than its query.

use std::iter;
use std::net::IpAddr;

/// The most bytes by which an answer exceeds its query: an IPv6 record and an OPT record.
#[cfg(test)]
pub(super) const MAX_GROWTH: usize = 28 + 11;

/// A longer query is refused unread; none of one question needs as much.
const MAX_QUERY: usize = 4096;

const HEADER: usize = 12;

/// So long the guest may keep an answer, in seconds.
const TTL: u32 = 10;

/// What we say we can take over UDP.
const UDP_PAYLOAD: u16 = 1232;

/// The class of the Internet.
pub(super) const CLASS_IN: u16 = 1;

const TYPE_OPT: u16 = 41;

/// A query with one question.
#[derive(Clone, Copy, Debug)]
pub(super) struct Query<'a> {
    header: Header,
    /// The question as it stood.
    question: &'a [u8],
    /// Its name: labels with their length bytes, without the root.
    pub(super) name: Name<'a>,
    /// The type of record that is asked for.
    pub(super) qtype: u16,
    /// The class that is asked for.
    pub(super) qclass: u16,
    /// The version of EDNS, if there is an OPT record.
    pub(super) edns_version: Option<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Header {
    id: u16,
    /// The opcode, in place, and the flags RD and CD.
    flags: u16,
}

/// A name on the wire, checked: every label is whole and there are at most 255 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    /// Returns the labels, leftmost first.
    pub(super) fn labels(self) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = self.0;
        iter::from_fn(move || {
            let (len, tail) = rest.split_first()?;
            let (label, tail) = tail.split_at_checked(usize::from(*len))?;
            rest = tail;
            Some(label)
        })
    }

    /// Says whether this is the root.
    pub(super) fn is_root(self) -> bool {
        self.0.is_empty()
    }
}

/// What a message that is no query of ours gets.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rejection {
    /// This answer, which repeats the id alone.
    Reply([u8; HEADER]),
    /// Nothing: it is an answer, or no message at all.
    Silence,
}

/// What is said to a query.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    /// One address.
    Address(IpAddr),
    /// The name exists and has no such record.
    Empty,
    /// A response code.
    Fail(Rcode),
}

/// A response code.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Rcode {
    /// EDNS of a version that we do not know.
    BadVersion,
    /// The message is malformed.
    FormatError,
    /// Something other than a query.
    NotImplemented,
    /// There is no such name.
    NxDomain,
    /// We do not answer this.
    Refused,
}

impl Rcode {
    const fn code(self) -> u16 {
        match self {
            Self::BadVersion => 16,
            Self::FormatError => 1,
            Self::NotImplemented => 4,
            Self::NxDomain => 3,
            Self::Refused => 5,
        }
    }
}

impl<'a> Query<'a> {
    /// Parses a message.
    ///
    /// # Errors
    ///
    /// [`Rejection`]: what to say instead of an answer.
    pub(super) fn parse(message: &'a [u8]) -> Result<Self, Rejection> {
        let mut reader = Reader { message, at: 0 };
        let mut word = || reader.word().ok_or(Rejection::Silence);
        let (id, flags) = (word()?, word()?);
        let counts = [word()?, word()?, word()?, word()?];
        if flags & 0x8000 != 0 {
            return Err(Rejection::Silence);
        }
        let header = Header {
            id,
            flags: flags & 0x7910,
        };
        if flags & 0x7800 != 0 {
            return Err(header.reject(Rcode::NotImplemented));
        }
        if message.len() > MAX_QUERY {
            return Err(header.reject(Rcode::FormatError));
        }
        Self::body(header, counts, reader).ok_or_else(|| header.reject(Rcode::FormatError))
    }

    fn body(header: Header, counts: [u16; 4], mut reader: Reader<'a>) -> Option<Self> {
        let [1, 0, 0, additional] = counts else {
            return None;
        };
        let name = reader.name()?;
        let (qtype, qclass) = (reader.word()?, reader.word()?);
        let question = &reader.message[HEADER..reader.at];
        let mut edns_version = None;
        for _ in 0..additional {
            let owner = reader.name()?;
            let (rtype, _class) = (reader.word()?, reader.word()?);
            let [_rcode, version, _, _] = reader.array()?;
            let length = reader.word()?;
            reader.take(usize::from(length))?;
            if rtype == TYPE_OPT {
                if edns_version.is_some() || !owner.is_root() {
                    return None;
                }
                edns_version = Some(version);
            }
        }
        (reader.at == reader.message.len()).then_some(Self {
            header,
            question,
            name,
            qtype,
            qclass,
            edns_version,
        })
    }

    /// Returns the answer's bytes.
    pub(super) fn answer(&self, answer: Answer) -> Vec<u8> {
        let (code, address) = match answer {
            Answer::Address(address) => (0, Some(address)),
            Answer::Empty => (0, None),
            Answer::Fail(rcode) => (rcode.code(), None),
        };
        let counts = [
            1,
            address.is_some().into(),
            0,
            self.edns_version.is_some().into(),
        ];
        let mut out = self.header.response(code, counts).to_vec();
        out.extend(self.question);
        if let Some(address) = address {
            let (rtype, data) = match address {
                IpAddr::V4(address) => (1_u16, address.octets().to_vec()),
                IpAddr::V6(address) => (28, address.octets().to_vec()),
            };
            // The name is the one at offset 12.
            out.extend([0xc0, 0x0c]);
            out.extend(rtype.to_be_bytes());
            out.extend(CLASS_IN.to_be_bytes());
            out.extend(TTL.to_be_bytes());
            out.extend(if data.len() == 4 { [0, 4] } else { [0, 16] });
            out.extend(data);
        }
        if self.edns_version.is_some() {
            out.push(0);
            out.extend(TYPE_OPT.to_be_bytes());
            out.extend(UDP_PAYLOAD.to_be_bytes());
            // The upper bits of the code, version 0, no flags, no options.
            let [_, upper] = (code >> 4).to_be_bytes();
            out.extend([upper, 0, 0, 0, 0, 0]);
        }
        out
    }
}

impl Header {
    fn reject(self, rcode: Rcode) -> Rejection {
        Rejection::Reply(self.response(rcode.code(), [0; 4]))
    }

    fn response(self, code: u16, counts: [u16; 4]) -> [u8; HEADER] {
        // QR and RA; opcode, RD and CD as they came; the lower bits of the code.
        let flags = 0x8080 | self.flags | (code & 0xf);
        let [qd, an, ns, ar] = counts;
        let mut bytes = [0; HEADER];
        for (to, word) in bytes
            .chunks_exact_mut(2)
            .zip([self.id, flags, qd, an, ns, ar])
        {
            to.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }
}

struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let bytes = self.message.get(self.at..)?.get(..count)?;
        self.at += count;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn word(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// Takes a name without compression; a query has nothing that it could point to.
    fn name(&mut self) -> Option<Name<'a>> {
        let start = self.at;
        loop {
            let [len] = self.array()?;
            if len == 0 {
                let wire = self.message.get(start..self.at - 1)?;
                return (wire.len() < 255).then_some(Name(wire));
            }
            if len > 63 {
                return None;
            }
            self.take(usize::from(len))?;
        }
    }
}
