//! Helpers are re-executions of a program that calls [`crate::reexec()`] first in `main`.
//!
//! A helper is recognised by its first argument; its work arrives on descriptor 0. Nothing that a
//! user could type gains anything by it: a helper has the rights of who started it.

use std::env;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{self, Command};

use crate::{host, shim, vmm, warden};

/// The first argument of a helper, before the role's name.
const MARKER: &str = "--bottle-krun-helper=";

/// What a re-executed process is to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Role {
    /// Tries a vCPU; see [`host`].
    ProbeKvm,
    /// Tries a user namespace; see [`host`].
    ProbeNamespaces,
    /// The bottle's host process; see [`shim`].
    Shim,
    /// The machine's process; see [`vmm`].
    Vmm,
    /// The machine's parent; see [`warden`].
    Warden,
}

impl Role {
    const ALL: [Self; 5] = [
        Self::ProbeKvm,
        Self::ProbeNamespaces,
        Self::Shim,
        Self::Vmm,
        Self::Warden,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::ProbeKvm => "probe-kvm",
            Self::ProbeNamespaces => "probe-namespaces",
            Self::Shim => "shim",
            Self::Vmm => "vmm",
            Self::Warden => "warden",
        }
    }

    fn parse(argument: &str) -> Option<Self> {
        let name = argument.strip_prefix(MARKER)?;
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// A command that starts `helper` in this role, with an empty environment.
    ///
    /// The caller adds the standard streams.
    pub(crate) fn command(self, helper: &Path) -> Command {
        let mut command = Command::new(helper);
        command
            .arg0(format!("bottle-{}", self.name()))
            .arg(format!("{MARKER}{}", self.name()))
            .env_clear();
        command
    }
}

/// Becomes the helper that the command line names and does not return; returns at once in any
/// other process.
#[expect(clippy::exit, reason = "a helper's `main` is not the program's")]
pub(crate) fn dispatch() {
    let mut arguments = env::args_os().skip(1);
    let (Some(first), None) = (arguments.next(), arguments.next()) else {
        return;
    };
    let Some(role) = first.to_str().and_then(Role::parse) else {
        return;
    };
    let code = match role {
        Role::ProbeKvm => host::vcpu::run_probe(),
        Role::ProbeNamespaces => host::namespaces::run_probe(),
        Role::Shim => shim::run(),
        Role::Vmm => vmm::boot::run(),
        Role::Warden => warden::run(),
    };
    process::exit(i32::from(code));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_is_found_by_its_own_argument_and_no_other_text_is_one() {
        for role in Role::ALL {
            assert_eq!(Role::parse(&format!("{MARKER}{}", role.name())), Some(role));
        }
        assert_eq!(Role::parse("start"), None);
        assert_eq!(Role::parse(MARKER), None);
        assert_eq!(Role::parse("warden"), None);
    }
}
