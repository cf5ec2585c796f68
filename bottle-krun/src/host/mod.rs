//! What this host can do: the checks of `bottle doctor`, made before a start too.
//!
//! Nothing here concludes from names or settings what can be tried: a vCPU is run, a namespace is
//! entered, each in a process of its own with a deadline.

pub(crate) mod kernel;
pub(crate) mod namespaces;
pub(crate) mod vcpu;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::reexec::Role;

pub(crate) use self::kernel::{KernelMissing, find_kernel};
pub(crate) use self::namespaces::{NamespaceStatus, namespaces_usable};
pub(crate) use self::vcpu::{KvmStatus, kvm_usable};

/// The longest answer of a probe.
const MAX_ANSWER: u64 = 4096;

/// Why a probe gave no answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum ProbeError {
    /// The helper program could not be run, or is not one.
    #[error("the helper program did not run the probe")]
    Helper {
        /// What stopped it.
        source: io::Error,
    },
    /// It did not answer in time.
    #[error("the probe did not answer within {seconds} s")]
    Silent {
        /// How long it had.
        seconds: u64,
    },
}

/// Runs `helper` in `role` and reads its one JSON answer from its standard output.
///
/// Never takes longer than `deadline`: a helper that hangs is killed and, should the kernel not
/// let it die, left to the system.
fn ask<T: DeserializeOwned>(
    helper: &Path,
    role: Role,
    deadline: Duration,
) -> Result<T, ProbeError> {
    let failed = |source| ProbeError::Helper { source };
    let (read, write) = io::pipe().map_err(failed)?;
    let mut command = role.command(helper);
    command
        .stdin(Stdio::null())
        .stdout(write)
        .stderr(Stdio::null());
    let mut child = command.spawn().map_err(failed)?;
    drop(command);

    let answer = read_until(read.into(), deadline);
    let _ = child.kill();
    match answer {
        Ok(Some(answer)) => {
            let _ = child.wait();
            serde_json::from_slice(&answer).map_err(|error| failed(error.into()))
        }
        Ok(None) => {
            // Most die at once; one that sits in the kernel may not be waited for.
            let _ = child.try_wait();
            Err(ProbeError::Silent {
                seconds: deadline.as_secs(),
            })
        }
        Err(source) => {
            let _ = child.wait();
            Err(failed(source))
        }
    }
}

/// Reads to the end of file, or returns `None` at the deadline.
fn read_until(pipe: OwnedFd, deadline: Duration) -> io::Result<Option<Vec<u8>>> {
    let end = Instant::now() + deadline;
    let mut pipe = File::from(pipe);
    let mut answer = Vec::new();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, wait)? == 0 {
            continue;
        }
        let mut buffer = [0; 512];
        let length = pipe.read(&mut buffer)?;
        if length == 0 || answer.len() as u64 > MAX_ANSWER {
            return Ok(Some(answer));
        }
        answer.extend_from_slice(buffer.get(..length).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests;
