//! `StopSignal` of an image: a name or a number.

use std::str::FromStr;

use nix::sys::signal::Signal;

/// What ends a workload whose image says nothing.
const DEFAULT: u8 = 15;
/// The first and the last of the real-time signals, as programs in the guest number them.
const REAL_TIME: [u8; 2] = [34, 64];

/// Returns the number of a signal as images name it: `SIGINT`, `INT`, `2`, `SIGRTMIN+3`; SIGTERM
/// for an empty text, nothing for one that names no signal.
pub(crate) fn number(text: &str) -> Option<u8> {
    let [first, last] = REAL_TIME;
    if text.is_empty() {
        return Some(DEFAULT);
    }
    if let Ok(number) = text.parse::<u8>() {
        return (1..=last).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let offset = |rest: &str, sign: char| match rest {
        "" => Some(0),
        rest => rest.strip_prefix(sign)?.parse::<u8>().ok(),
    };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        first.checked_add(offset(rest, '+')?)?
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        last.checked_sub(offset(rest, '-')?)?
    } else {
        let signal = Signal::from_str(&format!("SIG{name}")).ok()?;
        return u8::try_from(signal as i32).ok();
    };
    (first..=last).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_understood_and_nothing_else() {
        for (text, expected) in [
            ("", Some(15)),
            ("SIGINT", Some(2)),
            ("int", Some(2)),
            ("9", Some(9)),
            ("64", Some(64)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-14", Some(50)),
            ("0", None),
            ("65", None),
            ("-1", None),
            ("SIGRTMIN+31", None),
            ("SIGRTMIN-1", None),
            ("SIGRTMAX-31", None),
            ("SIGNOTHING", None),
            ("SIG", None),
        ] {
            assert_eq!(number(text), expected, "{text}");
        }
    }
}
