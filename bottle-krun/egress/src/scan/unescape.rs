//! Decoders of escaped text, byte by byte: each decoded byte knows where its escape began.
//!
//! What is no valid escape stands for itself. No decoder keeps more than one escape.

/// A byte and the position in the stream at which its written form begins.
pub(super) type Placed = (u8, u64);

/// Undoes `%XX`.
#[derive(Clone, Debug, Default)]
pub(super) struct Percent {
    pending: Vec<Placed>,
}

impl Percent {
    /// Takes a byte, gives what is decoded now.
    pub(super) fn push(&mut self, next: Placed, out: &mut impl FnMut(Placed)) {
        let digit = (next.0 as char).to_digit(16);
        match (self.pending.as_slice(), digit) {
            ([], _) if next.0 == b'%' => self.pending.push(next),
            ([], _) => out(next),
            ([_], Some(_)) => self.pending.push(next),
            ([(_, start), (high, _)], Some(low)) => {
                let high = (*high as char).to_digit(16).unwrap_or(0);
                let start = *start;
                self.pending.clear();
                out((byte(high << 4 | low), start));
            }
            (_, _) => {
                self.pending.drain(..).for_each(&mut *out);
                self.push(next, out);
            }
        }
    }

    /// Says whether no escape is open.
    pub(super) fn is_neutral(&self) -> bool {
        self.pending.is_empty()
    }
}

/// Undoes the escapes of a JSON string.
#[derive(Clone, Debug, Default)]
pub(super) struct Json {
    pending: Vec<Placed>,
    /// The first half of a surrogate pair.
    high: Option<(u32, u64)>,
}

impl Json {
    /// Takes a byte, gives what is decoded now.
    pub(super) fn push(&mut self, next: Placed, out: &mut impl FnMut(Placed)) {
        match self.pending.len() {
            0 if next.0 == b'\\' => self.pending.push(next),
            0 => {
                self.flush_high(out);
                out(next);
            }
            1 => match next.0 {
                b'u' => self.pending.push(next),
                b'b' => self.simple(8, out),
                b'f' => self.simple(12, out),
                b'n' => self.simple(b'\n', out),
                b'r' => self.simple(b'\r', out),
                b't' => self.simple(b'\t', out),
                b'"' | b'\\' | b'/' => self.simple(next.0, out),
                _ => self.give_up(next, out),
            },
            _ if !next.0.is_ascii_hexdigit() => self.give_up(next, out),
            2..5 => self.pending.push(next),
            _ => self.unicode(next.0, out),
        }
    }

    /// Says whether no escape is open.
    pub(super) fn is_neutral(&self) -> bool {
        self.pending.is_empty() && self.high.is_none()
    }

    fn simple(&mut self, meaning: u8, out: &mut impl FnMut(Placed)) {
        self.flush_high(out);
        for (_, start) in self.pending.drain(..) {
            out((meaning, start));
        }
    }

    fn give_up(&mut self, next: Placed, out: &mut impl FnMut(Placed)) {
        self.flush_high(out);
        self.pending.drain(..).for_each(&mut *out);
        self.push(next, out);
    }

    fn unicode(&mut self, last: u8, out: &mut impl FnMut(Placed)) {
        let start = self.pending.first().map_or(0, |(_, start)| *start);
        let digits = self.pending.drain(..).skip(2).map(|(digit, _)| digit);
        let unit = digits.chain([last]).fold(0, |unit, digit| {
            unit << 4 | (digit as char).to_digit(16).unwrap_or(0)
        });
        match (self.high.take(), unit) {
            (Some((high, start)), 0xdc00..0xe000) => {
                let code = 0x1_0000 + ((high - 0xd800) << 10 | (unit - 0xdc00));
                give(code, start, out);
            }
            (high, _) => {
                self.high = high;
                self.flush_high(out);
                if (0xd800..0xdc00).contains(&unit) {
                    self.high = Some((unit, start));
                } else {
                    give(unit, start, out);
                }
            }
        }
    }

    /// A half without its other half stands for nothing.
    fn flush_high(&mut self, out: &mut impl FnMut(Placed)) {
        if let Some((high, start)) = self.high.take() {
            give(high, start, out);
        }
    }
}

/// Gives a code point as UTF-8.
fn give(code: u32, start: u64, out: &mut impl FnMut(Placed)) {
    let mut buffer = [0; 4];
    let c = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
    for byte in c.encode_utf8(&mut buffer).bytes() {
        out((byte, start));
    }
}

/// Drops one line end after each line: text that a tool has wrapped becomes one line again.
#[derive(Clone, Debug, Default)]
pub(super) struct Unwrap {
    last: u8,
}

impl Unwrap {
    /// Takes a byte, gives what stays.
    pub(super) fn push(&mut self, next: Placed, out: &mut impl FnMut(Placed)) {
        let is_dropped = match next.0 {
            b'\r' => !matches!(self.last, b'\r' | b'\n'),
            b'\n' => self.last != b'\n',
            _ => false,
        };
        self.last = next.0;
        if !is_dropped {
            out(next);
        }
    }

    /// Says whether the next byte does not depend on what was seen.
    pub(super) fn is_neutral(&self) -> bool {
        !matches!(self.last, b'\r' | b'\n')
    }
}

fn byte(value: u32) -> u8 {
    (value & 0xff) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Vec<Placed> {
        let mut decoder = Json::default();
        let mut out = Vec::new();
        for (at, byte) in (0..).zip(text.bytes()) {
            decoder.push((byte, at), &mut |placed| out.push(placed));
        }
        out
    }

    fn bytes(placed: &[Placed]) -> Vec<u8> {
        placed.iter().map(|(byte, _)| *byte).collect()
    }

    #[test]
    fn json_escapes_are_undone_and_know_where_they_began() {
        assert_eq!(
            json(r"a\u0041\/\n"),
            [(b'a', 0), (b'A', 1), (b'/', 7), (b'\n', 9)]
        );
        assert_eq!(bytes(&json(r"\uD83D\ude00!")), "😀!".as_bytes());
        assert_eq!(bytes(&json(r#"\"\\\t"#)), b"\"\\\t");
    }

    #[test]
    fn what_is_no_json_escape_stands_for_itself() {
        for text in [r"\x41", r"\u00g1", r"\u-", r"a\qb\\"] {
            let expected = text.replace(r"\\", "\\");
            assert_eq!(bytes(&json(text)), expected.as_bytes(), "{text}");
        }
        assert_eq!(
            bytes(&json(r"\ud800x\udc00")),
            "\u{fffd}x\u{fffd}".as_bytes()
        );
    }

    #[test]
    fn percent_escapes_are_undone_and_bad_ones_stay() {
        let decode = |text: &str| {
            let mut decoder = Percent::default();
            let mut out = Vec::new();
            for (at, byte) in (0..).zip(text.bytes()) {
                decoder.push((byte, at), &mut |placed| out.push(placed));
            }
            bytes(&out)
        };
        assert_eq!(decode("%41%4a%4A%zz%%41%4%42x"), b"AJJ%zz%A%4Bx");
    }

    #[test]
    fn one_line_end_is_dropped_and_an_empty_line_stays() {
        let mut decoder = Unwrap::default();
        let mut out = Vec::new();
        for byte in *b"ab\ncd\r\nef\n\n\ng" {
            decoder.push((byte, 0), &mut |placed| out.push(placed));
        }
        assert_eq!(bytes(&out), b"abcdef\n\ng");
    }
}
