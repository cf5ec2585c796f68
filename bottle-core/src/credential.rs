//! Credentials that the gateway puts into requests, so that the bottle never has them.
//!
//! A credential is spent on requests of one host with some methods below some paths, in one header:
//! the first three stand in the [rule](crate::policy::WrittenRule::credential) that names it, the
//! header and where the value comes from stand here.

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::policy::{CredentialName, CredentialNameError};
use crate::text::Escaped;

/// A credential as written. A value is never written: only where it comes from.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[expect(
    clippy::exhaustive_structs,
    reason = "whoever carries a credential must carry all of it"
)]
pub struct WrittenCredential {
    /// The name by which rules call it.
    pub name: String,
    /// The header it is put into. Whatever the bottle sends there is removed.
    pub header: String,
    /// `env:NAME`, `file:/PATH` or `cmd:PROGRAM ARGUMENTS`, of the host.
    pub from: String,
    /// The header's value with `{}` where the secret goes. Default `{}`.
    #[serde(default)]
    pub format: Option<String>,
    /// The user of HTTP's `Basic` scheme, whose password is the secret; instead of `format`.
    #[serde(default)]
    pub basic: Option<String>,
}

/// A credential: which header, how its value is made, and from where. It holds no secret.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Credential {
    name: CredentialName,
    header: String,
    from: CredentialFrom,
    form: Form,
}

/// Where on the host a secret comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a new source must be opened wherever one is"
)]
pub enum CredentialFrom {
    /// What a program prints: its path or name and its arguments. No shell is involved.
    Command(Vec<String>),
    /// A variable of the environment in which the bottle is started.
    Env(String),
    /// A file, by absolute path.
    File(PathBuf),
}

/// How a header's value is made of a secret.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a new form must be written wherever one is"
)]
pub enum Form {
    /// `Basic`, with this user.
    Basic(String),
    /// The secret between these two texts.
    Between(String, String),
}

impl Credential {
    /// Returns the name by which rules call it.
    pub fn name(&self) -> &CredentialName {
        &self.name
    }

    /// Returns the header, lower case.
    pub fn header(&self) -> &str {
        &self.header
    }

    /// Returns where the secret comes from.
    pub fn from(&self) -> &CredentialFrom {
        &self.from
    }

    /// Returns how the header's value is made.
    pub fn form(&self) -> &Form {
        &self.form
    }
}

impl TryFrom<WrittenCredential> for Credential {
    type Error = CredentialError;

    fn try_from(written: WrittenCredential) -> Result<Self, CredentialError> {
        let WrittenCredential {
            name,
            header,
            from,
            format,
            basic,
        } = written;
        let name: CredentialName = name.parse()?;
        let wrong = |why| CredentialError::Header {
            header: header.clone(),
            why,
        };
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if header.is_empty() || !header.bytes().all(is_token) {
            return Err(wrong("use letters, digits and `-`"));
        }
        let lower = header.to_ascii_lowercase();
        if NOT_FOR_SECRETS.contains(&lower.as_str()) || lower.starts_with("proxy-") {
            return Err(wrong("it has a meaning for the connection itself"));
        }
        let form = match (format, basic) {
            (Some(_), Some(_)) => return Err(CredentialError::TwoForms { name: name.clone() }),
            (None, Some(user)) if user.contains(':') || !is_visible(&user) => {
                return Err(CredentialError::User { user });
            }
            (None, Some(user)) => Form::Basic(user),
            (format, None) => {
                let format = format.unwrap_or_else(|| "{}".to_owned());
                match format.split_once("{}") {
                    Some((before, after)) if is_visible(&format) && !after.contains("{}") => {
                        Form::Between(before.to_owned(), after.to_owned())
                    }
                    Some(_) | None => return Err(CredentialError::Format { format }),
                }
            }
        };
        Ok(Self {
            name,
            header: lower,
            from: from.parse()?,
            form,
        })
    }
}

/// Parses `env:NAME`, `file:/PATH` or `cmd:PROGRAM ARGUMENTS`.
impl FromStr for CredentialFrom {
    type Err = CredentialError;

    fn from_str(text: &str) -> Result<Self, CredentialError> {
        match text.split_once(':') {
            Some(("env", name)) if !name.is_empty() && !name.contains(['=', '\0']) => {
                Ok(Self::Env(name.to_owned()))
            }
            Some(("file", path)) if path.starts_with('/') => Ok(Self::File(path.into())),
            Some(("cmd", command)) => {
                let argv: Vec<_> = command.split_whitespace().map(str::to_owned).collect();
                if argv.is_empty() {
                    Err(CredentialError::From)
                } else {
                    Ok(Self::Command(argv))
                }
            }
            Some(_) | None => Err(CredentialError::From),
        }
    }
}

impl Display for CredentialFrom {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command(argv) => write!(f, "cmd:{}", argv.join(" ")),
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

/// Why what is written is no credential.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum CredentialError {
    /// The secret has no one place in the header's value.
    #[error(
        "`{}` is no format of a header (write `{{}}` once, where the secret goes)",
        Escaped(format)
    )]
    Format {
        /// What stood there.
        format: String,
    },
    /// Nobody knows where the secret comes from. What stood there may be the secret: it is not shown.
    #[error("a credential comes from `env:NAME`, `file:/PATH` or `cmd:PROGRAM ARGUMENTS`")]
    From,
    /// The header cannot carry a credential.
    #[error("header `{}` cannot carry a credential: {why}", Escaped(header))]
    Header {
        /// The header.
        header: String,
        /// Why not.
        why: &'static str,
    },
    /// The name is no name.
    #[error(transparent)]
    Name(#[from] CredentialNameError),
    /// Both `format` and `basic` are given.
    #[error("credential `{}` has both `format` and `basic`", name.as_str())]
    TwoForms {
        /// The credential.
        name: CredentialName,
    },
    /// The user cannot stand in `Basic`.
    #[error("`{}` is no user of HTTP's Basic scheme", Escaped(user))]
    User {
        /// The user.
        user: String,
    },
}

fn is_visible(text: &str) -> bool {
    text.bytes().all(|b| (b' '..=b'~').contains(&b))
}

const NOT_FOR_SECRETS: [&str; 13] = [
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> WrittenCredential {
        WrittenCredential {
            name: "api".to_owned(),
            header: "X-Api-Key".to_owned(),
            from: "env:API_KEY".to_owned(),
            ..WrittenCredential::default()
        }
    }

    #[test]
    fn a_credential_is_a_header_and_where_its_value_comes_from() {
        let plain = Credential::try_from(written()).unwrap();
        assert_eq!(plain.header(), "x-api-key");
        assert_eq!(plain.from(), &CredentialFrom::Env("API_KEY".to_owned()));
        assert_eq!(plain.form(), &Form::Between(String::new(), String::new()));
        let bearer = WrittenCredential {
            format: Some("Bearer {}".to_owned()),
            from: "cmd:gh auth  token".to_owned(),
            ..written()
        };
        let bearer = Credential::try_from(bearer).unwrap();
        assert_eq!(bearer.from().to_string(), "cmd:gh auth token");
        assert_eq!(
            bearer.form(),
            &Form::Between("Bearer ".to_owned(), String::new())
        );
    }

    #[test]
    fn what_cannot_be_put_into_a_request_is_refused() {
        let cases = [
            (
                WrittenCredential {
                    header: "Host".to_owned(),
                    ..written()
                },
                "header `Host` cannot carry a credential: it has a meaning for the connection itself",
            ),
            (
                WrittenCredential {
                    header: "proxy-authorization".to_owned(),
                    ..written()
                },
                "header `proxy-authorization` cannot carry a credential: it has a meaning for the connection itself",
            ),
            (
                WrittenCredential {
                    header: "a b".to_owned(),
                    ..written()
                },
                "header `a b` cannot carry a credential: use letters, digits and `-`",
            ),
            (
                WrittenCredential {
                    format: Some("Bearer".to_owned()),
                    ..written()
                },
                "`Bearer` is no format of a header (write `{}` once, where the secret goes)",
            ),
            (
                WrittenCredential {
                    format: Some("{}\r\nx: {}".to_owned()),
                    ..written()
                },
                "`{}\\u{d}\\u{a}x: {}` is no format of a header (write `{}` once, where the secret goes)",
            ),
            (
                WrittenCredential {
                    format: Some("{}".to_owned()),
                    basic: Some("me".to_owned()),
                    ..written()
                },
                "credential `api` has both `format` and `basic`",
            ),
            (
                WrittenCredential {
                    basic: Some("a:b".to_owned()),
                    ..written()
                },
                "`a:b` is no user of HTTP's Basic scheme",
            ),
            (
                WrittenCredential {
                    from: "hunter2-hunter2".to_owned(),
                    ..written()
                },
                "a credential comes from `env:NAME`, `file:/PATH` or `cmd:PROGRAM ARGUMENTS`",
            ),
            (
                WrittenCredential {
                    from: "file:relative".to_owned(),
                    ..written()
                },
                "a credential comes from `env:NAME`, `file:/PATH` or `cmd:PROGRAM ARGUMENTS`",
            ),
        ];
        for (written, error) in cases {
            assert_eq!(
                Credential::try_from(written).unwrap_err().to_string(),
                error
            );
        }
    }
}
