//! How this crate's errors become the seam's, with blame and a hint.

use std::error::Error;
use std::io;

use bottle_core::backend::{BackendError, Blame, Hint};
use bottle_core::id::BottleId;
use bottle_core::reporter::Stage;
use bottle_wire::client::{self, LaunchReport};
use thiserror::Error;

/// An operation that failed for a reason of the host.
pub(crate) fn failed(
    op: impl Into<String>,
    source: impl Into<Box<dyn Error + Send + Sync>>,
) -> BackendError {
    BackendError::Failed {
        op: op.into(),
        blame: Blame::Environment,
        hint: None,
        source: source.into(),
    }
}

/// A stage that failed on the client's side.
pub(crate) fn start_failed(
    id: &BottleId,
    stage: Stage,
    blame: Blame,
    source: impl Into<Box<dyn Error + Send + Sync>>,
) -> BackendError {
    BackendError::Start {
        id: id.clone(),
        stage,
        blame,
        hint: None,
        console: Vec::new(),
        source: source.into(),
    }
}

/// A stage that failed on the shim's side, as it was reported.
pub(crate) fn from_shim(
    id: &BottleId,
    stage: &str,
    blame: client::Blame,
    hint: Option<String>,
    console: Vec<String>,
    chain: Vec<String>,
) -> BackendError {
    let stage = Stage::ALL
        .into_iter()
        .find(|s| s.name() == stage)
        .unwrap_or(Stage::Shim);
    let blame = match blame {
        client::Blame::Environment => Blame::Environment,
        client::Blame::Guest => Blame::Guest,
        client::Blame::Bug | _ => Blame::Bug,
    };
    BackendError::Start {
        id: id.clone(),
        stage,
        blame,
        hint: hint.map(Hint),
        console,
        source: Box::new(Remote::from_chain(chain)),
    }
}

/// A chain of causes that crossed a process boundary as text.
#[derive(Debug, Error)]
#[error("{text}")]
pub(crate) struct Remote {
    text: String,
    source: Option<Box<Self>>,
}

impl Remote {
    /// Rebuilds a chain, outermost first.
    pub(crate) fn from_chain(chain: Vec<String>) -> Self {
        let mut causes = chain.into_iter().rev();
        let innermost = causes
            .next()
            .unwrap_or_else(|| "no reason was given".to_owned());
        let innermost = Self {
            text: innermost,
            source: None,
        };
        causes.fold(innermost, |source, text| Self {
            text,
            source: Some(Box::new(source)),
        })
    }
}

/// Takes an error apart into texts, outermost first.
pub(crate) fn chain_of(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut chain = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        chain.push(error.to_string());
        cause = error.source();
    }
    chain
}

/// What is known of a shim that went away without a word.
pub(crate) const GONE: &str = "the bottle's host process went away";

/// How many lines are quoted of what somebody wrote last.
const LAST_LINES: usize = 3;

/// Returns the last lines of a text as one line.
pub(crate) fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let from = lines.len().saturating_sub(LAST_LINES);
    lines[from..].join("; ")
}

/// What a client makes of a shim that goes away or talks nonsense.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum ShimError {
    /// The shim's connection ended in the middle.
    #[error("{GONE}")]
    Gone {
        /// What the connection said.
        #[source]
        source: Option<io::Error>,
    },
    /// It said something that does not belong here.
    #[error("the bottle's host process answered out of turn: {what}")]
    OutOfTurn {
        /// What it said.
        what: String,
    },
}

impl ShimError {
    /// Names an answer that was not expected.
    pub(crate) fn out_of_turn(report: &LaunchReport) -> Self {
        Self::OutOfTurn {
            what: format!("{report:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_of_causes_survives_the_process_boundary() {
        let chain = vec!["outer".to_owned(), "middle".to_owned(), "inner".to_owned()];
        assert_eq!(chain_of(&Remote::from_chain(chain.clone())), chain);
    }
}
