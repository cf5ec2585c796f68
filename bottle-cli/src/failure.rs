//! Failures as a person reads them: what, because of what, and what to do.
//!
//! ```text
//! error: cannot start bottle `web`: stage `jail` failed
//!   caused by: …
//!   console: …
//! hint: …
//! ```

use std::fmt::Display;

use anyhow::Error;
use bottle_core::backend::{BackendError, Blame, SpawnFailure};
use bottle_core::registry::RegistryError;
use bottle_core::text::EscapedUpTo;

use crate::printer::Printer;

/// The longest line of a failure, in characters.
const MAX_LINE: usize = 4096;

/// Why a command was not done, who has to act, and how.
#[derive(Debug)]
pub(crate) struct Failure {
    blame: Blame,
    console: Vec<String>,
    error: Error,
    hints: Vec<String>,
    spawn_code: Option<u8>,
}

impl Failure {
    /// The request cannot be met as it stands.
    pub(crate) fn user(error: impl Into<Error>) -> Self {
        Self::new(Blame::User, error.into())
    }

    /// The host lacks something.
    pub(crate) fn environment(error: impl Into<Error>) -> Self {
        Self::new(Blame::Environment, error.into())
    }

    /// What ran inside brought the bottle down.
    pub(crate) fn guest(error: impl Into<Error>) -> Self {
        Self::new(Blame::Guest, error.into())
    }

    fn new(blame: Blame, error: Error) -> Self {
        Self {
            blame,
            console: Vec::new(),
            error,
            hints: Vec::new(),
            spawn_code: None,
        }
    }

    /// Adds what a person can do.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Adds what the guest's console said last.
    #[must_use]
    pub(crate) fn console(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.console.extend(lines);
        self
    }

    /// Returns docker's status if what failed was to start a process inside.
    pub(crate) fn spawn_code(&self) -> Option<u8> {
        self.spawn_code
    }

    /// Returns the error with its causes, without what a person can do.
    pub(crate) fn into_error(self) -> Error {
        self.error
    }

    /// Prints it to standard error.
    pub(crate) fn print(&self, printer: &Printer) {
        let Self {
            blame,
            console,
            error,
            hints,
            spawn_code: _,
        } = self;
        let line = |label: &str, text: &dyn Display| {
            // Whatever a guest or an image chose may stand anywhere in the text.
            let text = text.to_string();
            printer.say(&format!("{label}: {}", EscapedUpTo(&text, MAX_LINE)));
        };
        let mut last = error.to_string();
        line("error", &last);
        for cause in error.chain().skip(1) {
            let cause = cause.to_string();
            if cause != last {
                line("  caused by", &cause);
                last = cause;
            }
        }
        for said in console {
            line("  console", said);
        }
        for hint in hints {
            line("hint", hint);
        }
        if *blame == Blame::Bug {
            line(
                "hint",
                &"this is a bug in bottle: please report it with the lines above",
            );
        }
    }
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        let mut failure = Self::new(error.blame(), Error::msg(""));
        failure
            .hints
            .extend(error.hint().map(|hint| hint.0.clone()));
        if let BackendError::Start { console, .. } = &error {
            failure.console.clone_from(console);
        }
        if let BackendError::Spawn(spawn) = &error {
            failure.spawn_code = Some(spawn.code());
            failure.hints.extend(spawn_hint(spawn).map(str::to_owned));
        }
        failure.error = error.into();
        failure
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        if let RegistryError::Construct { name, source } = error {
            let mut failure = Self::from(source);
            failure.error = failure
                .error
                .context(format!("cannot use backend `{name}`"));
            return failure;
        }
        Self::user(error)
    }
}

fn spawn_hint(failure: &SpawnFailure) -> Option<&'static str> {
    match failure {
        SpawnFailure::NotFound { .. } => {
            Some("programs are looked up in the `PATH` of the image, not of this host")
        }
        SpawnFailure::NotExecutable { .. } | SpawnFailure::Setup { .. } => None,
    }
}
