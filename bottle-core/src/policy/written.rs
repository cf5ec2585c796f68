//! A rule as it is written down, in a manifest or between processes, and how it becomes a [`Rule`].

use std::num::NonZero;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::host::{HostError, HostPattern};
use super::method::{Method, MethodError};
use super::path::PathError;
use super::rule::{
    CredentialName, CredentialNameError, DEFAULT_PORT, Dlp, Effect, Grant, Inspect, Mode,
    PLAIN_HTTP_PORT, Requests, Rule,
};
use crate::text::Escaped;

/// A rule as written. What is absent has its default.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
#[expect(
    clippy::exhaustive_structs,
    reason = "whoever carries a rule must carry all of it"
)]
pub struct WrittenRule {
    /// Whether it permits or forbids.
    pub action: Action,
    /// A name, or `*.` and a suffix: every name below, the suffix itself not. Required.
    pub host: String,
    /// TCP ports. Default 443; 80 is HTTP without TLS and has to be named.
    pub ports: Vec<u16>,
    /// Methods in capital letters. Default any; `HEAD` is not part of `GET`.
    pub methods: Vec<String>,
    /// Beginnings of paths, whole segments. Default any.
    pub paths: Vec<String>,
    /// How closely flows are looked at. Default [`WrittenMode::Inspect`].
    pub mode: Option<WrittenMode>,
    /// Whether the host may have a loopback, private or link-local address. Default no.
    ///
    /// # Security
    ///
    /// Whoever runs the host's zone then chooses which machine near this one is reached.
    pub private: bool,
    /// Says that a wildcard over a public suffix, as `*.github.io`, is meant.
    ///
    /// # Security
    ///
    /// Anybody can have a name under such a suffix, the one who wrote the code in the bottle too.
    pub wide: bool,
    /// What becomes of a request with a secret. Default [`Dlp::Block`].
    pub dlp: Option<Dlp>,
    /// The credential that the gateway puts in. Default none.
    pub credential: Option<String>,
    /// The most bytes of a request's body. Default no limit.
    pub max_body: Option<u64>,
    /// The most names under the wildcard. Default
    /// [`DEFAULT_MAX_NAMES`](super::wildcard::DEFAULT_MAX_NAMES).
    pub max_names: Option<u32>,
}

/// Whether a rule permits or forbids.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(
    clippy::exhaustive_enums,
    reason = "a new action must break every match"
)]
pub enum Action {
    /// It permits.
    #[default]
    Allow,
    /// It forbids.
    Deny,
}

/// The word for a [`Mode`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(clippy::exhaustive_enums, reason = "a new mode must break every match")]
pub enum WrittenMode {
    /// [`Mode::Inspect`]
    Inspect,
    /// [`Mode::Splice`]
    Splice,
    /// [`Mode::Tcp`]
    Tcp,
}

impl TryFrom<WrittenRule> for Rule {
    type Error = RuleError;

    fn try_from(written: WrittenRule) -> Result<Self, RuleError> {
        let WrittenRule {
            action,
            host,
            mut ports,
            methods,
            paths,
            mode,
            private,
            wide,
            dlp,
            credential,
            max_body,
            max_names,
        } = written;
        let host: HostPattern = host.parse()?;
        if ports.contains(&0) {
            return Err(RuleError::Port {
                text: "0".to_owned(),
            });
        }
        let has_ports = !ports.is_empty();
        if !has_ports {
            ports.push(DEFAULT_PORT);
        }
        ports.sort_unstable();
        ports.dedup();
        let methods: Result<_, MethodError> = methods.iter().map(|m| m.parse::<Method>()).collect();
        let paths: Result<_, PathError> = paths.iter().map(|path| path.parse()).collect();
        let requests = Requests {
            methods: methods?,
            paths: paths?,
        };
        let mixed = |what, with| Err(RuleError::Mixed { what, with });
        if action == Action::Deny {
            let allowing = [
                (mode.is_some(), "mode"),
                (private, "private"),
                (wide, "wide"),
                (dlp.is_some(), "dlp"),
                (credential.is_some(), "credential"),
                (max_body.is_some(), "max-body"),
                (max_names.is_some(), "max-names"),
            ];
            if let Some((_, what)) = allowing.iter().find(|(is_there, _)| *is_there) {
                return mixed(what, "a rule that denies");
            }
            return Ok(Self {
                host,
                ports,
                effect: Effect::Deny(requests),
            });
        }
        let is_exact = matches!(host, HostPattern::Exact(_));
        match (host.is_wide(), wide) {
            (true, false) => {
                return Err(RuleError::Wide {
                    host: host.to_string(),
                });
            }
            (false, true) => {
                return mixed("wide", "a host that is no wildcard over a public suffix");
            }
            (true, true) if private => return mixed("private", "wide"),
            (true, true) | (false, false) => {}
        }
        if is_exact && max_names.is_some() {
            return mixed("max-names", "a host that is no wildcard");
        }
        let number = |what| RuleError::Zero { what };
        let max_names = max_names
            .map(|most| NonZero::new(most).ok_or_else(|| number("max-names")))
            .transpose()?;
        let max_body = max_body
            .map(|most| NonZero::new(most).ok_or_else(|| number("max-body")))
            .transpose()?;
        let mode = match mode.unwrap_or(WrittenMode::Inspect) {
            WrittenMode::Inspect => {
                let credential: Option<CredentialName> =
                    credential.map(|name| name.parse()).transpose()?;
                if credential.is_some() {
                    if !is_exact {
                        return mixed("credential", "a wildcard");
                    }
                    if requests.methods.is_empty() || requests.paths.is_empty() {
                        return Err(RuleError::CredentialScope);
                    }
                    if ports.contains(&PLAIN_HTTP_PORT) {
                        return mixed("credential", "port 80, which has no TLS");
                    }
                }
                Mode::Inspect(Inspect {
                    requests,
                    dlp: dlp.unwrap_or_default(),
                    credential,
                    max_body,
                })
            }
            unseen @ (WrittenMode::Splice | WrittenMode::Tcp) => {
                let seeing = [
                    (!requests.methods.is_empty(), "methods"),
                    (!requests.paths.is_empty(), "paths"),
                    (dlp.is_some(), "dlp"),
                    (credential.is_some(), "credential"),
                    (max_body.is_some(), "max-body"),
                ];
                if let Some((_, what)) = seeing.iter().find(|(is_there, _)| *is_there) {
                    return mixed(what, "a mode that sees no requests (`splice`, `tcp`)");
                }
                if unseen == WrittenMode::Splice {
                    if ports.contains(&PLAIN_HTTP_PORT) {
                        return mixed("splice", "port 80, which has no TLS");
                    }
                    Mode::Splice
                } else if !is_exact {
                    return mixed("tcp", "a wildcard");
                } else if !has_ports {
                    return Err(RuleError::TcpPorts);
                } else {
                    Mode::Tcp
                }
            }
        };
        Ok(Self {
            host,
            ports,
            effect: Effect::Allow(Grant {
                mode,
                private,
                max_names,
            }),
        })
    }
}

impl From<&Rule> for WrittenRule {
    fn from(rule: &Rule) -> Self {
        let Rule {
            host,
            ports,
            effect,
        } = rule;
        let requests = rule.requests();
        let mut written = Self {
            host: host.to_string(),
            ports: ports.clone(),
            methods: requests.map_or_else(Vec::new, |r| {
                r.methods.iter().map(Method::to_string).collect()
            }),
            paths: requests.map_or_else(Vec::new, |r| {
                r.paths.iter().map(ToString::to_string).collect()
            }),
            ..Self::default()
        };
        let Grant {
            mode,
            private,
            max_names,
        } = match effect {
            Effect::Allow(grant) => grant,
            Effect::Deny(_) => {
                written.action = Action::Deny;
                return written;
            }
        };
        written.private = *private;
        written.wide = host.is_wide();
        written.max_names = max_names.map(NonZero::get);
        match mode {
            Mode::Inspect(Inspect {
                requests: _,
                dlp,
                credential,
                max_body,
            }) => {
                written.mode = Some(WrittenMode::Inspect);
                written.dlp = Some(*dlp);
                written.credential = credential.as_ref().map(|name| name.as_str().to_owned());
                written.max_body = max_body.map(NonZero::get);
            }
            Mode::Splice => written.mode = Some(WrittenMode::Splice),
            Mode::Tcp => written.mode = Some(WrittenMode::Tcp),
        }
        written
    }
}

/// Parses `HOST[:PORT]`, as `--allow` takes it.
impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        if let Some((_, rest)) = text.split_once("://") {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            return Err(RuleError::Url {
                host: rest.get(..end).unwrap_or_default().to_owned(),
            });
        }
        let (host, ports) = match text.rsplit_once(':') {
            None => (text, Vec::new()),
            Some((host, port)) => match port.parse() {
                Ok(port) if port != 0 => (host, vec![port]),
                Ok(_) | Err(_) => {
                    return Err(RuleError::Port {
                        text: port.to_owned(),
                    });
                }
            },
        };
        let written = WrittenRule {
            host: host.to_owned(),
            ports,
            ..WrittenRule::default()
        };
        written.try_into()
    }
}

/// Why what is written is no rule.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum RuleError {
    /// The credential has no legal name.
    #[error(transparent)]
    Credential(#[from] CredentialNameError),
    /// A credential is given to more than what needs it.
    #[error("a rule with a `credential` names `methods` and `paths` too")]
    CredentialScope,
    /// The host is neither a name nor a wildcard.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A method is none.
    #[error(transparent)]
    Method(#[from] MethodError),
    /// Two parts of the rule contradict each other.
    #[error("`{what}` cannot stand together with {with}")]
    Mixed {
        /// The part.
        what: &'static str,
        /// What it contradicts.
        with: &'static str,
    },
    /// A path is ambiguous or none.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The part after the last `:` is no port.
    #[error("`{}` is not a port (use 1 to 65535)", Escaped(text))]
    Port {
        /// What stood there.
        text: String,
    },
    /// A `tcp` rule names no port.
    #[error("a rule with mode `tcp` names its ports")]
    TcpPorts,
    /// It is a URL; a rule is for a whole host.
    #[error("a rule names a host and no URL (use `{}`)", Escaped(host))]
    Url {
        /// What stands in it between scheme and path.
        host: String,
    },
    /// The wildcard covers names that anybody can have.
    #[error(
        "anybody can have a name under `{}`: name the hosts, or say `wide = true`",
        Escaped(host)
    )]
    Wide {
        /// The wildcard.
        host: String,
    },
    /// A limit of nothing.
    #[error("`{what}` is at least 1")]
    Zero {
        /// Which limit.
        what: &'static str,
    },
}
