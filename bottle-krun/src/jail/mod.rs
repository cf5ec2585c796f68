//! The jail of the vmm: what a taken-over libkrun finds itself in.
//!
//! ```text
//! warden   namespaces ── root (built, not entered) ── start vmm as PID 1 of the namespace
//! vmm      kernel library ── libkrun context ── pivot ── limits ── identity ── landlock ── seccomp
//!          ── self-check ── enter
//! ```
//!
//! Every layer is an error if it cannot be set up: the error names the layer, what refused, and
//! what a person can do about it. There is no way to leave one out. Two layers are not in this
//! form yet and say so when their turn comes: Landlock, and a system-call *allow*-list (the filter
//! of [`seccomp`] refuses a list instead).
//!
//! [`sys`] is the crate's only `unsafe` code besides `ffi` and the vCPU probe of `host`.

pub(crate) mod identity;
pub(crate) mod limits;
pub(crate) mod namespaces;
pub(crate) mod root;
pub(crate) mod seccomp;
pub(crate) mod selfcheck;
pub(crate) mod sys;

use std::error::Error;
use std::fmt::{self, Display, Formatter};

use serde::{Deserialize, Serialize};

/// One step on the way into the jail, in order.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Step {
    /// The warden starts and understands its order.
    Warden,
    /// Namespaces are left, the network's with nothing in it.
    Namespaces,
    /// The private root is built.
    Root,
    /// The vmm starts as PID 1 and understands its order.
    Vmm,
    /// The guest kernel's library is loaded.
    Kernel,
    /// The machine is described to libkrun.
    Context,
    /// The old root is gone.
    Pivot,
    /// Descriptors, resource limits, environment.
    Limits,
    /// User, groups, capabilities, privileges.
    Identity,
    /// File rules.
    Landlock,
    /// System calls.
    Seccomp,
    /// All of the above is tried from inside.
    SelfCheck,
    /// The machine runs.
    Enter,
}

impl Step {
    /// Returns the step's name, one word.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Warden => "warden",
            Self::Namespaces => "namespaces",
            Self::Root => "root",
            Self::Vmm => "vmm",
            Self::Kernel => "kernel",
            Self::Context => "context",
            Self::Pivot => "pivot",
            Self::Limits => "limits",
            Self::Identity => "identity",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::SelfCheck => "self-check",
            Self::Enter => "enter",
        }
    }
}

impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A step that failed, as it travels from warden and vmm to the shim.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// Where.
    pub(crate) step: Step,
    /// What, with its causes.
    pub(crate) text: String,
    /// What a person can do about it.
    pub(crate) hint: Option<String>,
}

impl Failure {
    /// A failure with nothing to advise.
    pub(crate) fn new(step: Step, text: impl Into<String>) -> Self {
        Self {
            step,
            text: text.into(),
            hint: None,
        }
    }

    /// A failure of an operation, with the chain of its causes.
    pub(crate) fn of(step: Step, what: impl Display, cause: &dyn Error) -> Self {
        let mut text = format!("{what}: {cause}");
        let mut next = cause.source();
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        Self::new(step, text)
    }

    /// The same with advice.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }
}

/// Turns an error into the [`Failure`] of a step.
pub(crate) trait OrFailure<T> {
    /// Names the step and the operation.
    fn or_failure(self, step: Step, what: impl Display) -> Result<T, Failure>;
}

impl<T, E: Error> OrFailure<T> for Result<T, E> {
    fn or_failure(self, step: Step, what: impl Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::of(step, what, &error))
    }
}
