//! Whether an ordinary user can make a jail here.

use std::io;
use std::path::Path;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::unistd::{getegid, geteuid};

use super::{ProbeError, ask};
use crate::jail::identity::Identity;
use crate::jail::{Failure, OrFailure, Step, namespaces};
use crate::reexec::Role;

/// How long the probe may take.
const DEADLINE: Duration = Duration::from_secs(2);

/// What the current user can do with namespaces.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum NamespaceStatus {
    /// A process left all of them and mounted in its own.
    Works,
    /// It was refused.
    Refused {
        /// What refused.
        why: String,
        /// What a person can do about it.
        hint: Option<String>,
    },
}

/// Tries what the jail does, in a process that `helper` (see [`crate::reexec()`]) becomes. Blocks for
/// at most two seconds.
///
/// # Errors
///
/// [`ProbeError`] if there was no answer.
pub(crate) fn namespaces_usable(helper: &Path) -> Result<NamespaceStatus, ProbeError> {
    let answer: Option<Failure> = ask(helper, Role::ProbeNamespaces, DEADLINE)?;
    Ok(match answer {
        None => NamespaceStatus::Works,
        Some(Failure { text, hint, .. }) => NamespaceStatus::Refused { why: text, hint },
    })
}

/// The probe: the answer is a [`Failure`] or `null`.
pub(crate) fn run_probe() -> u8 {
    let failure = try_it().err();
    match serde_json::to_writer(io::stdout(), &failure) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

fn try_it() -> Result<(), Failure> {
    let identity = if geteuid().is_root() {
        Identity::Own {
            id: 0,
            kvm_group: None,
        }
    } else {
        Identity::Mapped {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
        }
    };
    let id = "probe".parse().or_failure(Step::Namespaces, "name it")?;
    namespaces::enter(identity, &id)?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .or_failure(Step::Namespaces, "make the mounts private")?;
    mount(none, "/", Some("tmpfs"), MsFlags::empty(), none)
        .or_failure(Step::Namespaces, "mount a tmpfs")
}
