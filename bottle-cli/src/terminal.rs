//! The terminal that a command was called from: its size, its raw mode, and the keys that detach.

use std::fmt::{self, Debug, Formatter};
use std::io;
use std::str::FromStr;
use std::sync::Arc;

use bottle_core::backend::Window;
use rustix::stdio::{stdin, stdout};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// What is done with a terminal.
pub trait Terminal: Send + Sync + Debug {
    /// Returns its size now.
    fn window(&self) -> Window;

    /// Passes every key on as it is, and shows nothing by itself, until the guard is dropped.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn raw(&self) -> io::Result<Box<dyn Raw>>;
}

/// Restores the terminal when it is dropped.
pub trait Raw: Send + Debug {}

/// The terminal of this process: standard input and output are the same one.
#[derive(Debug)]
struct Own;

/// Returns the terminal of this process, if its standard input and output are terminals.
pub(crate) fn own() -> Option<Arc<dyn Terminal>> {
    (isatty(stdin()) && isatty(stdout())).then(|| Arc::new(Own) as _)
}

impl Terminal for Own {
    fn window(&self) -> Window {
        let Ok(size) = tcgetwinsize(stdout()) else {
            return Window::default();
        };
        Window {
            rows: size.ws_row,
            cols: size.ws_col,
            x_pixels: size.ws_xpixel,
            y_pixels: size.ws_ypixel,
        }
    }

    fn raw(&self) -> io::Result<Box<dyn Raw>> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Drain, &raw)?;
        Ok(Box::new(Restore(before)))
    }
}

/// How the terminal was.
struct Restore(Termios);

impl Raw for Restore {}

impl Debug for Restore {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("Restore")
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing.
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.0);
    }
}

/// Hears of every change of the terminal's size.
pub(crate) fn resizes() -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel(1);
    // Without the signal the size stays what it was.
    if let Ok(mut changed) = signal(SignalKind::window_change()) {
        tokio::spawn(async move {
            while changed.recv().await.is_some() {
                // One that waits says the same.
                let _ = sender.try_send(());
            }
        });
    }
    receiver
}

/// A sequence of keys that detaches from a terminal, as docker writes it: `ctrl-p,ctrl-q`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct DetachKeys(Vec<u8>);

impl Default for DetachKeys {
    fn default() -> Self {
        Self(vec![0x10, 0x11])
    }
}

impl FromStr for DetachKeys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let key = |word: &str| match (word.strip_prefix("ctrl-"), word.as_bytes()) {
            (Some(rest), _) => match rest.as_bytes() {
                [letter @ b'a'..=b'z'] => Some(letter - b'a' + 1),
                [sign @ (b'@' | b'[' | b'\\' | b']' | b'^' | b'_')] => Some(sign - b'@'),
                _ => None,
            },
            (None, [one]) if one.is_ascii_graphic() => Some(*one),
            (None, _) => None,
        };
        let keys: Option<Vec<u8>> = text.split(',').map(key).collect();
        keys.map(Self).ok_or_else(|| {
            "name keys as in `ctrl-p,ctrl-q`: single characters, or `ctrl-` and a letter or one of \
             `@[\\]^_`"
                .to_owned()
        })
    }
}

/// Looks for the keys in what is typed.
#[derive(Debug)]
pub(crate) struct Detector {
    keys: Vec<u8>,
    /// How many of them were typed last.
    seen: usize,
}

impl Detector {
    pub(crate) fn new(keys: &DetachKeys) -> Self {
        Self {
            keys: keys.0.clone(),
            seen: 0,
        }
    }

    /// Returns what is to be passed on of what was typed, and whether the keys were complete. The
    /// beginning of the sequence is held back until it is clear that it is none.
    pub(crate) fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len());
        for &byte in typed {
            if self.keys.get(self.seen) == Some(&byte) {
                self.seen += 1;
                if self.seen == self.keys.len() {
                    self.seen = 0;
                    return (passed, true);
                }
                continue;
            }
            let held = self.keys.get(..self.seen).unwrap_or_default();
            passed.extend_from_slice(held);
            self.seen = 0;
            if self.keys.first() == Some(&byte) {
                self.seen = 1;
            } else {
                passed.push(byte);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_named_as_docker_names_them() {
        assert_eq!("ctrl-p,ctrl-q".parse(), Ok(DetachKeys::default()));
        assert_eq!("ctrl-],q".parse(), Ok(DetachKeys(vec![0x1d, b'q'])));
        for text in ["", "ctrl-", "ctrl-P", "ctrl-p,", "ab", "ctrl-pq"] {
            assert!(text.parse::<DetachKeys>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_sequence_detaches_wherever_it_is_split_and_anything_else_passes() {
        let all = |chunks: &[&[u8]]| {
            let mut detector = Detector::new(&DetachKeys::default());
            let mut passed = Vec::new();
            for chunk in chunks {
                let (bytes, detached) = detector.filter(chunk);
                passed.extend(bytes);
                if detached {
                    return (passed, true);
                }
            }
            (passed, false)
        };
        assert_eq!(all(&[b"ls\x10\x11rest"]), (b"ls".to_vec(), true));
        assert_eq!(all(&[b"ls\x10", b"\x11"]), (b"ls".to_vec(), true));
        assert_eq!(all(&[b"\x10a\x11"]), (b"\x10a\x11".to_vec(), false));
        assert_eq!(all(&[b"\x10\x10\x11"]), (b"\x10".to_vec(), true));
        assert_eq!(all(&[b"plain"]), (b"plain".to_vec(), false));
    }
}
