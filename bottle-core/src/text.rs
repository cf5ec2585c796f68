//! The one way in which a string chosen by a guest, image, registry or repository is printed.

use std::fmt::{self, Display, Formatter, Write};

/// The longest text that [`Escaped`] prints, in characters; the rest becomes `…`.
pub const MAX_PRINTED: usize = 256;

/// Prints somebody else's text so that it can neither move a cursor nor pretend to be ours.
///
/// Control characters (C0, DEL, C1), bidirectional controls, zero-width and line separators come
/// out as `\u{…}` escapes; everything after [`MAX_PRINTED`] characters is cut.
///
/// # Security
///
/// It makes text safe for a terminal and a log line, not for a shell or for HTML.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (count, c) in self.0.chars().enumerate() {
            if count == MAX_PRINTED {
                return f.write_char('…');
            }
            if is_dangerous(c) {
                write!(f, "{}", c.escape_unicode())?;
            } else {
                f.write_char(c)?;
            }
        }
        Ok(())
    }
}

fn is_dangerous(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_sequence_comes_out_as_text() {
        assert_eq!(
            Escaped("a\u{1b}[2Jb\u{9b}c\u{202e}d").to_string(),
            "a\\u{1b}[2Jb\\u{9b}c\\u{202e}d"
        );
        assert_eq!(Escaped("grüße").to_string(), "grüße");
    }

    #[test]
    fn a_long_text_is_cut() {
        let printed = Escaped(&"x".repeat(10_000)).to_string();
        assert_eq!(printed.chars().count(), MAX_PRINTED + 1);
    }
}
