//! What is known of a bottle whether it runs or not.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::id::BottleId;
use crate::ports::Publish;

/// A bottle in a list.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Summary {
    /// Its id.
    pub id: BottleId,
    /// The name that its id is derived from.
    pub name: BottleId,
    /// The image, as it was asked for.
    pub image: String,
    /// The words that its main process runs.
    pub command: Vec<String>,
    /// What its user wrote on it.
    pub labels: Labels,
    /// When it was made, milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// Whether it goes on without the client that started it.
    pub detached: bool,
    /// Whether it stays when it has ended.
    pub kept: bool,
    /// Whether its main process has a terminal.
    pub tty: bool,
    /// Ports of the host that lead into it.
    pub ports: Vec<Publish>,
    /// What it does.
    #[serde(flatten)]
    pub state: State,
}

impl Summary {
    /// Says whether it runs.
    pub fn runs(&self) -> bool {
        self.state == State::Running
    }
}

/// What a bottle in a list does.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
#[expect(
    clippy::exhaustive_enums,
    reason = "a new state must be worded wherever one is shown"
)]
pub enum State {
    /// It runs, or is about to.
    Running,
    /// It has ended, and can be started again or removed.
    Ended {
        /// How, as its record says: `exited 0`.
        how: String,
        /// The exit status of its main process, as a shell tells it.
        code: Option<u8>,
        /// When, milliseconds since the Unix epoch; zero if that is not known.
        at_ms: u64,
    },
}

/// A live view of a bottle that runs.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Live {
    /// The process of the host that serves it.
    pub pid: u32,
    /// Since when it runs, milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// The release of the kernel in it; empty if it has none of its own.
    pub kernel: String,
    /// Ports of the host that lead into it, those that the system chose included.
    pub ports: Vec<Publish>,
    /// Whether its main process has been started.
    pub main_started: bool,
    /// Clients that are attached to the main process.
    pub attached: u32,
    /// Processes that clients run in it besides the main one.
    pub execs: u32,
}

/// Labels: what a user writes on a bottle, `KEY=VALUE`.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Labels(pub BTreeMap<String, String>);

/// One label.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Label {
    /// Letters, digits, `.`, `_`, `-` and `/`.
    pub key: String,
    /// Anything without control characters; may be empty.
    pub value: String,
}

impl FromIterator<Label> for Labels {
    fn from_iter<T: IntoIterator<Item = Label>>(labels: T) -> Self {
        Self(labels.into_iter().map(|it| (it.key, it.value)).collect())
    }
}

/// Parses `KEY=VALUE`, or `KEY` for an empty value.
impl FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
        if key.is_empty() || !key.chars().all(legal) || value.chars().any(char::is_control) {
            return Err(LabelError {
                text: text.to_owned(),
            });
        }
        Ok(Self {
            key: key.to_owned(),
            value: value.to_owned(),
        })
    }
}

impl Display for Label {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

/// Why a text is no label.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("{text:?} is not `KEY=VALUE` (a key has letters, digits and `._-/`)")]
pub struct LabelError {
    text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_a_key_and_perhaps_a_value() {
        let parse = |text: &str| text.parse::<Label>();
        assert_eq!(parse("team/a=b=c").unwrap().value, "b=c");
        assert_eq!(parse("keep").unwrap().to_string(), "keep=");
        for text in ["", "=x", "a b=c", "a=\u{1b}[2J"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_listed_bottle_has_its_state_among_its_other_fields() {
        let id: BottleId = "web".parse().unwrap();
        let summary = Summary {
            id: id.clone(),
            name: id,
            image: "oci:base".to_owned(),
            command: vec!["sh".to_owned()],
            labels: Labels::default(),
            created_ms: 1,
            detached: true,
            kept: true,
            tty: false,
            ports: Vec::new(),
            state: State::Ended {
                how: "exited 7".to_owned(),
                code: Some(7),
                at_ms: 2,
            },
        };
        let json = serde_json::to_value(&summary).unwrap();
        assert_eq!(json["state"], "ended");
        assert_eq!(json["code"], 7);
        assert_eq!(json["labels"], serde_json::json!({}));
    }
}
