//! Values of flags that are only of the command line: parsed here, looked up by the commands.

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

/// `NAME=VALUE`, or `NAME` for the value it has on the host.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct EnvArg {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
}

impl FromStr for EnvArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = match text.split_once('=') {
            None => (text, None),
            Some((name, value)) => (name, Some(value.to_owned())),
        };
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err("a variable is set by `NAME=VALUE`, or taken over by `NAME`".to_owned());
        }
        Ok(Self {
            name: name.to_owned(),
            value,
        })
    }
}

/// Where a secret value is found; the value itself never stands on a command line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum SecretRef {
    /// In a variable.
    Env(String),
    /// In a file.
    File(PathBuf),
}

impl FromStr for SecretRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("env", name)) if !name.is_empty() && !name.contains('=') => {
                Ok(Self::Env(name.to_owned()))
            }
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(_) | None => {
                Err("name where the value is found: `env:NAME` or `file:PATH`".to_owned())
            }
        }
    }
}

impl Display for SecretRef {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

/// A signal to send, by name (`TERM`, `SIGTERM`) or number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct KillSignal(pub(crate) u8);

impl FromStr for KillSignal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        /// The Linux numbers of those that people send (signal(7), x86 and ARM).
        const NAMES: [(&str, u8); 16] = [
            ("HUP", 1),
            ("INT", 2),
            ("QUIT", 3),
            ("ABRT", 6),
            ("KILL", 9),
            ("USR1", 10),
            ("SEGV", 11),
            ("USR2", 12),
            ("PIPE", 13),
            ("ALRM", 14),
            ("TERM", 15),
            ("CHLD", 17),
            ("CONT", 18),
            ("STOP", 19),
            ("TSTP", 20),
            ("WINCH", 28),
        ];
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let named = NAMES.iter().find(|(known, _)| *known == name);
        let number = named
            .map(|(_, number)| *number)
            .or_else(|| text.parse().ok());
        number
            .filter(|number| (1..=64).contains(number))
            .map(Self)
            .ok_or_else(|| "name a signal, as `TERM`, or its number, 1 to 64".to_owned())
    }
}

/// A moment, written as a time or as how long ago it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Since {
    /// At this time.
    At(SystemTime),
    /// So long ago.
    Ago(Duration),
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(ago) = humantime::parse_duration(text) {
            return Ok(Self::Ago(ago));
        }
        humantime::parse_rfc3339_weak(text)
            .map(Self::At)
            .map_err(|_| {
                "write a time as `2026-01-02T03:04:05Z`, or how long ago as `10m`".to_owned()
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_a_name_or_a_number() {
        for (text, number) in [("TERM", 15), ("sigkill", 9), ("usr1", 10), ("34", 34)] {
            assert_eq!(text.parse(), Ok(KillSignal(number)), "{text}");
        }
        for text in ["", "0", "65", "TREM", "-9"] {
            assert!(text.parse::<KillSignal>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_moment_is_a_time_or_so_long_ago() {
        assert_eq!("1m 30s".parse(), Ok(Since::Ago(Duration::from_secs(90))));
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
        assert_eq!("1970-01-02T00:00:00Z".parse(), Ok(Since::At(time)));
        assert_eq!("1970-01-02 00:00:00".parse(), Ok(Since::At(time)));
        "yesterday".parse::<Since>().unwrap_err();
    }
}
