//! The warden: makes the jail, starts the vmm in it, and sees that neither outlives the shim.
//!
//! It has one thread, since only such a process may leave its namespaces, and since the kernel
//! ties "kill when the parent ends" to the parent's thread. It holds nothing: no secret, no
//! policy, and once the vmm runs no privilege that the vmm lacks.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Stdio};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, dup2_stdin, setsid};

use crate::jail::root::{PrivateRoot, Sources};
use crate::jail::{Failure, OrFailure, Step, identity, namespaces, sys};
use crate::reexec::Role;
use crate::vmm::channel::Channel;
use crate::vmm::protocol::{Go, Order, Report, WaitStatus};

/// Runs the warden on descriptor 0; returns the process's exit code, which says nothing.
pub(crate) fn run() -> u8 {
    let Ok(shim) = take_channel() else {
        return 1;
    };
    match serve(&shim) {
        Ok(()) => 0,
        Err(failure) => {
            // Without a shim there is nobody to tell.
            let _ = shim.send(&Report::Failed(failure));
            1
        }
    }
}

/// Makes descriptor 0 a channel, puts `/dev/null` there, and closes whatever else was inherited.
pub(crate) fn take_channel() -> io::Result<Channel> {
    sys::close_from(3)?;
    let channel = io::stdin().as_fd().try_clone_to_owned()?;
    dup2_stdin(File::open("/dev/null")?)?;
    Ok(Channel::from_fd(channel))
}

fn serve(shim: &Channel) -> Result<(), Failure> {
    let step = Step::Warden;
    // Out of the terminal's process group: its Ctrl-C is for the client.
    setsid().or_failure(step, "start a session")?;
    umask(Mode::from_bits_truncate(0o022));
    let order: Order = match shim.receive().or_failure(step, "read the order")? {
        Some(order) => order,
        None => return Ok(()),
    };
    order.check(step)?;

    tell(shim, Step::Namespaces)?;
    namespaces::enter(order.identity, &order.id)?;
    tell(shim, Step::Root)?;
    PrivateRoot::build(&Sources {
        descriptor: order.image.descriptor(),
        parts: &order.image.parts().collect::<Vec<_>>(),
        overlay: order.overlay.as_deref(),
        sockets: &order.sockets,
        console: &order.console,
    })?;

    tell(shim, Step::Vmm)?;
    let (vmm, mut child, pidfd) = spawn(&order)?;
    let shim_knows = shim.send_with(&Report::Vmm, pidfd.as_fd());
    let ended = shim_knows
        .or_failure(Step::Vmm, "hand over the vmm")
        .and_then(|()| identity::assume(order.identity))
        .and_then(|()| supervise(shim, &vmm, &pidfd));
    if ended.is_err() {
        sys::pidfd_kill(&pidfd).or_failure(Step::Vmm, "kill the vmm")?;
    }
    let status = reap(&mut child).or_failure(Step::Vmm, "wait for the vmm")?;
    ended?;
    // What it said last may still be under way.
    while let Ok(Some(report)) = vmm.receive::<Report>() {
        forward(shim, &report);
    }
    let _ = shim.send(&Report::Ended(status));
    Ok(())
}

fn tell(shim: &Channel, step: Step) -> Result<(), Failure> {
    shim.send(&Report::Step(step))
        .or_failure(step, "tell the shim")
}

/// Starts the vmm as PID 1 of the new namespace and gives it the order.
fn spawn(order: &Order) -> Result<(Channel, Child, OwnedFd), Failure> {
    let step = Step::Vmm;
    let (ours, theirs) = Channel::pair().or_failure(step, "make its channel")?;
    let child = Role::Vmm
        .command(Path::new("/proc/self/exe"))
        .stdin(Stdio::from(theirs.into_fd()))
        .stdout(Stdio::inherit())
        .stderr(Stdio::inherit())
        .spawn()
        .or_failure(step, "start it")?;
    let pid = i32::try_from(child.id()).map(Pid::from_raw);
    let pid = pid.or_failure(step, "read its pid")?;
    let pidfd = sys::pidfd_open(pid).or_failure(step, "open its pidfd")?;
    // An error here is that it ended already: its status says more.
    let _ = ours.send(order);
    Ok((ours, child, pidfd))
}

/// Passes on what the vmm says until it has ended, or kills it when the shim has.
fn supervise(shim: &Channel, vmm: &Channel, pidfd: &OwnedFd) -> Result<(), Failure> {
    let mut vmm_talks = true;
    loop {
        let mut fds = vec![
            PollFd::new(shim.as_fd(), PollFlags::POLLIN),
            PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
        ];
        if vmm_talks {
            fds.push(PollFd::new(vmm.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Failure::of(Step::Vmm, "wait for events", &errno)),
        }
        let ready = |index: usize| {
            fds.get(index)
                .and_then(|fd| fd.any())
                .is_some_and(|any| any)
        };
        let (shim_ready, ended, vmm_ready) = (ready(0), ready(1), ready(2));
        if shim_ready {
            // The shim says nothing after its order: this is its end.
            return Err(Failure::new(Step::Vmm, "the shim has gone"));
        }
        if vmm_ready {
            match vmm.receive::<Report>() {
                Ok(Some(report)) => {
                    forward(shim, &report);
                    if report == Report::Ready && vmm.send(&Go).is_err() {
                        vmm_talks = false;
                    }
                    continue;
                }
                // Its end, or words that no vmm of ours says: its process has the last word.
                Ok(None) | Err(_) => vmm_talks = false,
            }
        }
        if ended {
            return Ok(());
        }
    }
}

/// Passes on what a vmm may say.
fn forward(shim: &Channel, report: &Report) {
    match report {
        Report::Step(_)
        | Report::NotYet(_)
        | Report::Failed(_)
        | Report::Ready
        | Report::Panicked(_) => {
            // If the shim has gone, the next poll says so.
            let _ = shim.send(report);
        }
        // Only the warden's to say.
        Report::Vmm | Report::Ended(_) => {}
    }
}

fn reap(child: &mut Child) -> io::Result<WaitStatus> {
    let status = child.wait()?;
    Ok(match (status.code(), status.signal()) {
        (Some(code), _) => WaitStatus::Exited(code),
        (None, signal) => WaitStatus::Signaled(signal.unwrap_or(0)),
    })
}
