//! Values of flags that are only of the command line: parsed here, looked up by the commands.

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;
use std::str::FromStr;

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
