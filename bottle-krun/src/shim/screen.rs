//! What a terminal shows, kept so that whoever attaches later sees it at once.

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bottle_wire::client::Window;
use vt100::Parser;

/// The largest terminal that is followed, in characters each way: a larger one costs memory.
const MAX_SIDE: NonZero<u16> = some(500);

/// Rows and columns of a terminal that does not say.
const USUAL: (NonZero<u16>, NonZero<u16>) = (some(24), some(80));

/// A terminal's screen. No scrollback: what left it is in the log.
pub(super) struct Screen {
    /// Absent once it has met with something that it can't digest.
    parser: Option<Parser>,
}

impl Screen {
    pub(super) fn new(window: Window) -> Self {
        let (rows, cols) = size(window);
        Self {
            parser: Some(Parser::new(rows, cols, 0)),
        }
    }

    /// Shows what the process wrote.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.attempt(|parser| parser.process(bytes));
    }

    pub(super) fn resize(&mut self, window: Window) {
        let (rows, cols) = size(window);
        self.attempt(|parser| parser.screen_mut().set_size(rows, cols));
    }

    /// Returns what paints it on an empty terminal.
    pub(super) fn paint(&mut self) -> Vec<u8> {
        let painted = self.attempt(|parser| {
            let screen = parser.screen();
            let alternate: &[u8] = if screen.alternate_screen() {
                b"\x1b[?1049h"
            } else {
                b""
            };
            [alternate, screen.state_formatted().as_bytes()].concat()
        });
        painted.unwrap_or_default()
    }

    /// The bytes are the guest's: if they trip the parser up, the bottle has no picture any more,
    /// and nothing worse.
    fn attempt<T>(&mut self, work: impl FnOnce(&mut Parser) -> T) -> Option<T> {
        let parser = self.parser.as_mut()?;
        let done = catch_unwind(AssertUnwindSafe(|| work(parser)));
        if done.is_err() {
            tracing::warn!("the screen can't be followed any more");
            self.parser = None;
        }
        done.ok()
    }
}

/// Rows and columns that can be worked with.
fn size(window: Window) -> (NonZero<u16>, NonZero<u16>) {
    let side = |wanted, usual| NonZero::new(wanted).map_or(usual, |wanted| wanted.min(MAX_SIDE));
    (side(window.rows, USUAL.0), side(window.cols, USUAL.1))
}

/// A number that is known not to be zero.
const fn some(number: u16) -> NonZero<u16> {
    NonZero::new(number).expect("it is not zero")
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Window = Window {
        rows: 5,
        cols: 20,
        x_pixels: 0,
        y_pixels: 0,
    };

    fn shown(painted: &[u8]) -> (String, bool) {
        let mut parser = Parser::new(some(5), some(20), 0);
        parser.process(painted);
        let screen = parser.screen();
        (screen.contents(), screen.alternate_screen())
    }

    #[test]
    fn who_attaches_later_sees_what_is_on_the_screen() {
        let mut screen = Screen::new(WINDOW);
        screen.write(b"$ ls\r\na  b\r\n\x1b[31mred\x1b[m $ ");
        assert_eq!(
            shown(&screen.paint()),
            ("$ ls\na  b\nred $ ".to_owned(), false)
        );
    }

    #[test]
    fn a_program_that_fills_the_screen_is_painted_on_the_other_screen() {
        let mut screen = Screen::new(WINDOW);
        screen.write(b"shell\x1b[?1049h\x1b[2J\x1b[3;2Heditor");
        let (text, alternate) = shown(&screen.paint());
        assert!(alternate && text.contains("editor") && !text.contains("shell"));
        screen.write(b"\x1b[?1049l");
        assert_eq!(shown(&screen.paint()), ("shell".to_owned(), false));
    }

    #[test]
    fn a_terminal_without_a_size_has_the_usual_one_and_a_huge_one_is_cut() {
        assert_eq!(size(Window::default()), USUAL);
        let huge = Window {
            rows: u16::MAX,
            cols: u16::MAX,
            ..WINDOW
        };
        assert_eq!(size(huge), (MAX_SIDE, MAX_SIDE));
    }

    proptest! {
        #[test]
        fn nothing_that_a_guest_writes_ends_the_shim(
            pieces in vec((vec(any::<u8>(), 0..100), 0..9_u16, 0..9_u16), 0..20)
        ) {
            let mut screen = Screen::new(WINDOW);
            for (bytes, rows, cols) in pieces {
                screen.write(&bytes);
                screen.resize(Window { rows, cols, ..WINDOW });
                screen.paint();
            }
        }
    }
}
