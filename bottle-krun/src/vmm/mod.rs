//! The process that becomes the machine, and how the shim starts and ends it.
//!
//! ```text
//! shim ── launch ──► warden ── Command ──► vmm (PID 1 of its namespace)
//!   │  Order            │  Order              │
//!   │◄── Report ────────┼◄── Report ──────────┤    one socket pair each, one JSON value a packet
//!   │    (Vmm carries   │                     │
//!   │     a pidfd)      ├── Go ──────────────►│    answer to Ready
//!   └ end of file ─────►└ SIGKILL ───────────►┘
//! ```
//!
//! libkrun takes over the process that starts a machine and ends it with `_exit`, aborts on broken
//! invariants, and holds the guest's memory: so it gets a process of its own, which does nothing
//! else. Each of the three notices the end of the others: the warden by end of file and by pidfd,
//! the vmm by the signal that the kernel sends when its parent ends (the warden has one thread, so
//! "parent" and "forking thread" are the same), the shim by end of file, and it holds a pidfd of
//! the vmm for the case that the warden was killed.

pub(crate) mod boot;
pub(crate) mod channel;
pub(crate) mod launch;
pub(crate) mod protocol;

#[cfg(test)]
mod tests;
