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
        EscapedUpTo(self.0, MAX_PRINTED).fmt(f)
    }
}

/// Like [`Escaped`], cut after a number of characters of the caller's choice.
///
/// For whole messages in which somebody else's text may stand, such as a chain of causes.
#[derive(Clone, Copy, Debug)]
pub struct EscapedUpTo<'a>(pub &'a str, pub usize);

impl Display for EscapedUpTo<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(text, limit) = *self;
        for (count, c) in text.chars().enumerate() {
            if count == limit {
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
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_goes_in_nothing_that_steers_a_terminal_comes_out(text in any::<String>()) {
            let printed = EscapedUpTo(&text, usize::MAX).to_string();
            prop_assert!(!printed.chars().any(is_dangerous));
            prop_assert!(!printed.contains(char::is_control));
        }

        #[test]
        fn text_of_harmless_characters_is_printed_as_it_is(text in "[a-zA-Z0-9 äöü/.:-]{0,256}") {
            prop_assert_eq!(Escaped(&text).to_string(), text);
        }
    }

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
