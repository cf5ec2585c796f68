//! The krun backend: bottles in libkrun microVMs.
//!
//! ```text
//! KrunBackend (client) ──socket──► shim ──socketpair──► warden ──► vmm (PID 1 of the jail)
//!   backend, claim, bottle, process shim/                warden     vmm/, jail/, ffi/
//! ```
//!
//! All of them are one program: [`reexec()`] is called first in `main` and becomes whichever of them
//! its caller asked for.

mod backend;
mod bottle;
mod claim;
mod doctor;
mod error;
mod ffi;
mod host;
mod images;
mod jail;
mod main_log;
mod options;
mod plan;
mod process;
mod random;
mod record;
mod reexec;
mod registries;
mod rules;
mod shim;
mod state;
mod stop_signal;
mod stored;
mod vmm;
mod warden;

pub use backend::KrunBackend;
pub use doctor::doctor;
pub use options::KrunOptions;

/// Becomes shim, warden, vmm or probe if this process was started as one, and returns otherwise.
///
/// A program that embeds this crate calls it first in `main`, before threads exist.
pub fn reexec() {
    reexec::dispatch();
}
