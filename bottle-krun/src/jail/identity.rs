//! Who the warden and the vmm are, and how they stop being more.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bottle_core::id::BottleId;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, getegid, geteuid, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};

use super::{Failure, OrFailure, Step, sys};

/// First of the 16,777,216 user and group ids from which a bottle started by root gets its own.
///
/// The range `0x7E00_0000..0x7F00_0000` lies above what distributions, directory services and
/// container managers hand out, and below the numbers that 32-bit signed code takes for negative.
pub(crate) const FIRST_ID: u32 = 0x7E00_0000;
const IDS: u32 = 0x0100_0000;

/// The identity of warden and vmm on the host.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) enum Identity {
    /// The user who starts the bottle, as 0 of a user namespace with no other user in it.
    Mapped {
        /// The user's id on the host.
        uid: u32,
        /// Their group.
        gid: u32,
    },
    /// Started by root: an id of the bottle's own, in root's user namespace.
    Own {
        /// User and group id.
        id: u32,
        /// The group through which `/dev/kvm` opens, where its others may not.
        kvm_group: Option<u32>,
    },
}

impl Identity {
    /// Chooses the identity for a bottle that the current user starts.
    ///
    /// # Errors
    ///
    /// [`Failure`] if root cannot give the bottle's user access to `/dev/kvm`.
    pub(crate) fn choose(id: &BottleId) -> Result<Self, Failure> {
        if !geteuid().is_root() {
            return Ok(Self::Mapped {
                uid: geteuid().as_raw(),
                gid: getegid().as_raw(),
            });
        }
        let kvm = Path::new("/dev/kvm");
        let meta = kvm
            .metadata()
            .map_err(|error| kvm_missing(Failure::of(Step::Identity, "stat `/dev/kvm`", &error)))?;
        let kvm_group = if meta.mode() & 0o006 == 0o006 {
            None
        } else if meta.mode() & 0o060 == 0o060 && meta.gid() != 0 {
            Some(meta.gid())
        } else {
            let text = format!(
                "`/dev/kvm` opens neither for others nor for a group (owner {}:{}, mode {:o})",
                meta.uid(),
                meta.gid(),
                meta.mode() & 0o777
            );
            return Err(Failure::new(Step::Identity, text).hint(
                "a bottle started by root runs as a user of its own: \
                 `chgrp kvm /dev/kvm && chmod 0660 /dev/kvm`",
            ));
        };
        Ok(Self::Own {
            id: own_id(id),
            kvm_group,
        })
    }

    /// Returns the owner that files handed to the vmm need, where it is not the starting user.
    pub(crate) fn owner(self) -> Option<u32> {
        match self {
            Self::Mapped { .. } => None,
            Self::Own { id, .. } => Some(id),
        }
    }
}

/// Adds what a person can do about a missing `/dev/kvm`.
fn kvm_missing(failure: Failure) -> Failure {
    failure.hint("load the kernel's `kvm_intel` or `kvm_amd`; `bottle doctor` says more")
}

/// Derives a bottle's own user id: FNV-1a of its name, folded into the range.
///
/// Two bottles may fall on one id (one in 16 million): they then still share no namespace, no
/// file that either could name, and no process that either could see.
fn own_id(id: &BottleId) -> u32 {
    let hash = id.as_str().bytes().fold(0x811C_9DC5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    FIRST_ID + (hash ^ (hash >> 24)) % IDS
}

/// Gives up everything that the rest of the process's life does not need, for good.
///
/// Afterwards: the identity's own ids, no group but `/dev/kvm`'s, no capability in any set, no
/// gain by exec, not readable by processes of the same user.
///
/// # Errors
///
/// [`Failure`] naming what could not be given up.
pub(crate) fn assume(identity: Identity) -> Result<(), Failure> {
    let step = Step::Identity;
    sys::clear_ambient_set().or_failure(step, "empty the ambient capabilities")?;
    sys::drop_bounding_set().or_failure(step, "empty the capability bounding set")?;
    match identity {
        // Groups cannot be changed: `setgroups` is denied in the namespace, so that a group which
        // takes rights away cannot be left. They show as 65534 and still open `/dev/kvm`.
        Identity::Mapped { .. } => {}
        Identity::Own { id, kvm_group } => {
            let groups: Vec<Gid> = kvm_group.into_iter().map(Gid::from_raw).collect();
            setgroups(&groups).or_failure(step, "leave root's groups")?;
            let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
            setresgid(gid, gid, gid).or_failure(step, format!("become group {id}"))?;
            setresuid(uid, uid, uid).or_failure(step, format!("become user {id}"))?;
        }
    }
    sys::clear_capabilities().or_failure(step, "drop all capabilities")?;
    prctl::set_no_new_privs().or_failure(step, "set no_new_privs")?;
    prctl::set_dumpable(false).or_failure(step, "become undumpable")?;
    Ok(())
}

/// Asks the kernel to kill this process when its parent, a process of one thread, ends.
///
/// Changes of identity undo it: this comes after [`assume`].
pub(crate) fn die_with_parent() -> Result<(), Errno> {
    prctl::set_pdeathsig(Signal::SIGKILL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bottle_of_root_gets_an_id_from_the_documented_range() {
        for name in ["a", "web-1", "x0123456789", "another"] {
            let id = own_id(&name.parse().unwrap());
            assert!((0x7E00_0000..0x7F00_0000).contains(&id), "{name}: {id:#x}");
        }
        assert_ne!(
            own_id(&"web-1".parse().unwrap()),
            own_id(&"web-2".parse().unwrap())
        );
    }
}
