//! The jail tried from inside, once, right before the machine starts.
//!
//! A layer that was set up and does not hold is worse than one that could not be set up. Each
//! check is something that must fail, or be empty, and an unexpected answer stops the start.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl;
use nix::unistd::getpid;

use super::{Failure, OrFailure, Step, root, sys};

/// System calls that the filter must answer with EPERM, with arguments for which the kernel alone
/// would answer something else.
const MUST_BE_REFUSED: [(&str, libc::c_long, u64, u64); 8] = [
    ("socket(AF_INET)", libc::SYS_socket, 2, 1),
    ("socket(AF_INET6)", libc::SYS_socket, 10, 1),
    ("socket(AF_NETLINK)", libc::SYS_socket, 16, 3),
    ("socket(AF_VSOCK)", libc::SYS_socket, 40, 1),
    ("listen(-1)", libc::SYS_listen, u64::MAX, 0),
    ("execve(NULL)", libc::SYS_execve, 0, 0),
    ("execveat(-1, NULL)", libc::SYS_execveat, u64::MAX, 0),
    ("unshare(0)", libc::SYS_unshare, 0, 0),
];

/// Tries the jail.
///
/// # Errors
///
/// [`Failure`] naming the layer that does not hold.
pub(crate) fn run() -> Result<(), Failure> {
    let step = Step::SelfCheck;
    let broken = |what: String| Err(Failure::new(step, what));

    if getpid().as_raw() != 1 {
        return broken("not PID 1 of a namespace".into());
    }
    let names = fs::read_dir("/")
        .and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<Result<BTreeSet<_>, _>>()
        })
        .or_failure(step, "list `/`")?;
    if names != root::NAMES.map(str::to_owned).into() {
        return broken(format!("the root holds {names:?}"));
    }
    match fs::create_dir("/d/new") {
        Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => {}
        other => return broken(format!("a directory can be made in the root: {other:?}")),
    }
    if !sys::has_no_capabilities().or_failure(step, "read the capabilities")? {
        return broken("capabilities are left".into());
    }
    if !prctl::get_no_new_privs().or_failure(step, "read no_new_privs")? {
        return broken("no_new_privs is not set".into());
    }
    if prctl::get_dumpable().or_failure(step, "read dumpable")? {
        return broken("the process can be dumped".into());
    }
    for (what, number, first, second) in MUST_BE_REFUSED {
        let answer = sys::probe(number, first, second);
        if answer != Err(Errno::EPERM) {
            return broken(format!("{what} is not refused by the filter: {answer:?}"));
        }
    }
    Ok(())
}
