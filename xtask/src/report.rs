//! The one door to the terminal: progress goes to stderr, what a task produces to stdout.

use std::io::{self, Write};
use std::time::Duration;

/// Says what happens next, or what was found.
#[expect(clippy::print_stderr, reason = "the one place where xtask speaks")]
pub(crate) fn say(text: impl AsRef<str>) {
    eprintln!("xtask: {}", text.as_ref());
}

/// Writes one line of a task's own output.
///
/// A reader that went away is no error.
pub(crate) fn line(text: impl AsRef<str>) {
    raw(text.as_ref().as_bytes());
    raw(b"\n");
}

/// Passes on output that something else produced.
pub(crate) fn raw(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    // A closed pipe is how `cargo xtask … | head` ends.
    if out.write_all(bytes).is_ok() {
        let _closed = out.flush();
    }
}

/// Formats a duration for a person.
pub(crate) fn took(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds >= 60 {
        format!("{}m{:02}s", seconds / 60, seconds % 60)
    } else {
        format!("{:.1}s", time.as_secs_f32())
    }
}
