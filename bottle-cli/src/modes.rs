//! The modes in which a program left the terminal, and what takes them back.
//!
//! A program that ends by itself tidies up. One that we leave, or whose bottle goes away under it,
//! does not: mouse reports, bracketed paste or the other screen would stay with the person's shell.

use std::io;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use vt100::Parser;

/// What a program has done to the terminal. Clones are the same.
#[derive(Clone)]
pub(crate) struct Modes(Arc<Mutex<Option<Parser>>>);

impl Modes {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Some(usual()))))
    }

    /// Takes note of everything that is read.
    pub(crate) fn watch(
        &self,
        output: Box<dyn AsyncRead + Send + Unpin>,
    ) -> Box<dyn AsyncRead + Send + Unpin> {
        Box::new(Watched {
            output,
            modes: self.clone(),
        })
    }

    fn write(&self, bytes: &[u8]) {
        let mut parser = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = parser
            .as_mut()
            .map(|parser| catch_unwind(AssertUnwindSafe(|| parser.process(bytes))));
        if let Some(Err(_)) = seen {
            // The guest chose the bytes: what they did to the terminal is not known any more.
            *parser = None;
        }
    }

    /// Returns what makes the terminal usual again; empty if it is.
    pub(crate) fn undo(&self) -> String {
        let parser = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(parser) = &*parser else {
            return String::new();
        };
        let screen = parser.screen();
        let mut undo = usual().screen().input_mode_diff(screen);
        if screen.alternate_screen() {
            undo.push_str("\x1b[?1049l");
        }
        if screen.hide_cursor() {
            undo.push_str("\x1b[?25h");
        }
        if !undo.is_empty() {
            undo.push_str("\x1b[m");
        }
        undo
    }
}

fn usual() -> Parser {
    const ROWS: NonZero<u16> = NonZero::new(24).expect("it is not zero");
    const COLS: NonZero<u16> = NonZero::new(80).expect("it is not zero");
    Parser::new(ROWS, COLS, 0)
}

/// An output that is taken note of.
struct Watched {
    output: Box<dyn AsyncRead + Send + Unpin>,
    modes: Modes,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.output).poll_read(cx, buf))?;
        self.modes
            .write(buf.filled().get(before..).unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_did_to_the_terminal_is_undone_and_nothing_else() {
        let undo = |bytes: &[u8]| {
            let modes = Modes::new();
            modes.write(bytes);
            let undo = modes.undo();
            modes.write(undo.as_bytes());
            assert_eq!(modes.undo(), "", "{undo:?}");
            undo
        };
        assert_eq!(undo(b"plain \x1b[31mred"), "");
        assert!(undo(b"\x1b[?1049h\x1b[?25l").contains("\x1b[?1049l"));
        assert!(undo(b"\x1b[?2004h").contains("\x1b[?2004l"));
        assert!(undo(b"\x1b[?1000h\x1b[?1006h").contains("\x1b[?1000l"));
        assert_eq!(undo(b"\x1b[?1049h\x1b[?1049l"), "");
    }
}
