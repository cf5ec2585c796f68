//! Namespaces of the jail, left in one call by a process of one thread.

use std::fs;
use std::io;

use bottle_core::id::BottleId;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::sethostname;

use super::identity::Identity;
use super::{Failure, Step};

/// Leaves the host's mount, pid, network, ipc, uts and cgroup namespaces; a user who is not root
/// also the user namespace, in which they become 0 and are the only user.
///
/// The next child is PID 1 of the new pid namespace. The network namespace holds `lo`, down, and
/// stays so.
///
/// # Errors
///
/// [`Failure`] with what forbids it on this host and how to allow it.
pub(crate) fn enter(identity: Identity, id: &BottleId) -> Result<(), Failure> {
    let step = Step::Namespaces;
    let host = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    match identity {
        Identity::Own { .. } => unshare(host).map_err(refused_to_root)?,
        Identity::Mapped { uid, gid } => {
            unshare(host | CloneFlags::CLONE_NEWUSER).map_err(refused_to_user)?;
            // Groups first: without the denial an unprivileged gid_map is refused. To 0, since
            // the capabilities of any other id vanish at the exec of the vmm.
            write_map("setgroups", "deny")?;
            write_map("uid_map", &format!("0 {uid} 1"))?;
            write_map("gid_map", &format!("0 {gid} 1"))?;
        }
    }
    // AppArmor lets `unshare` succeed and takes the capabilities away: this is where it shows.
    sethostname(id.as_str())
        .map_err(|errno| app_armor(Failure::of(step, "name the uts namespace", &errno)))
}

fn write_map(file: &str, line: &str) -> Result<(), Failure> {
    let path = format!("/proc/self/{file}");
    fs::write(&path, line).map_err(|error: io::Error| {
        let failure = Failure::of(
            Step::Namespaces,
            format!("write `{line}` to `{path}`"),
            &error,
        );
        app_armor(failure)
    })
}

fn refused_to_root(errno: Errno) -> Failure {
    Failure::of(Step::Namespaces, "leave the host's namespaces", &errno).hint(
        "root needs CAP_SYS_ADMIN here; a container must be started with it, or start the bottle \
         as an ordinary user",
    )
}

fn refused_to_user(errno: Errno) -> Failure {
    let failure = Failure::of(
        Step::Namespaces,
        "leave the host's namespaces as an unprivileged user",
        &errno,
    );
    failure.hint(if errno == Errno::ENOSPC {
        "user namespaces are used up or disabled: raise `sysctl user.max_user_namespaces` \
             (and max_{mnt,pid,net,ipc,uts,cgroup}_namespaces)"
    } else if errno == Errno::EPERM {
        "user namespaces are not allowed for this user: `sysctl \
             kernel.unprivileged_userns_clone=1` where that exists; inside a container or a \
             chroot they may be refused altogether"
    } else {
        "`bottle doctor` says what this host allows"
    })
}

fn app_armor(failure: Failure) -> Failure {
    failure.hint(
        "this host allows user namespaces and takes their capabilities away (Ubuntu's \
         `kernel.apparmor_restrict_unprivileged_userns`): install an AppArmor profile with \
         `userns,` for the bottle program, or set that sysctl to 0",
    )
}
