//! What shim, warden and vmm say to each other. They may be different builds (a named helper), so
//! the order carries a version.

use std::path::PathBuf;

use bottle_core::id::BottleId;
use bottle_core::units::{MiB, Vcpus};
use serde::{Deserialize, Serialize};

use crate::jail::identity::Identity;
use crate::jail::{Failure, Step};

/// The version of this protocol; a helper of another one refuses the order.
pub(crate) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "/1");

/// Shim to warden, and by it to the vmm: the machine to make.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// [`VERSION`].
    pub(crate) version: String,
    /// The bottle.
    pub(crate) id: BottleId,
    /// Whose rights the two processes keep.
    pub(crate) identity: Identity,
    /// The guest kernel's library, absolute.
    pub(crate) kernel: PathBuf,
    /// The image's disk, absolute.
    pub(crate) image: PathBuf,
    /// The overlay's disk, absolute.
    pub(crate) overlay: PathBuf,
    /// The directory with the control socket, absolute.
    pub(crate) sockets: PathBuf,
    /// The console's FIFO, absolute.
    pub(crate) console: PathBuf,
    /// Virtual CPUs.
    pub(crate) vcpus: Vcpus,
    /// Memory.
    pub(crate) memory: MiB,
    /// What init proves itself with.
    pub(crate) nonce: [u8; 32],
}

impl Order {
    /// Refuses an order of another version.
    pub(crate) fn check(&self, step: Step) -> Result<(), Failure> {
        if self.version == VERSION {
            return Ok(());
        }
        Err(Failure::new(
            step,
            format!(
                "the helper program speaks {VERSION}, the program that started it {}",
                self.version
            ),
        )
        .hint("install both from the same release"))
    }
}

/// Vmm to warden, warden to shim. The vmm may be taken over: what it says is text to be shown and
/// nothing is decided by it but when to stop waiting.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// A step is about to be taken.
    Step(Step),
    /// The step is not in this form of the jail yet.
    NotYet(Step),
    /// A step failed; the process ends.
    Failed(Failure),
    /// The vmm exists; carries a pidfd. Warden only.
    Vmm,
    /// The jail is complete and tried; the next thing is to start the machine.
    Ready,
    /// The vmm panicked and ends.
    Panicked(String),
    /// The vmm has ended; the last report. Warden only.
    Ended(WaitStatus),
}

/// How the vmm's process ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) enum WaitStatus {
    /// It exited with this code. libkrun's says nothing about the guest.
    Exited(i32),
    /// A signal ended it.
    Signaled(i32),
}

/// Warden to vmm: start the machine.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Go;
