//! The duty of PID 1: every process that ends is waited for, here and nowhere else.
//!
//! A process is registered by the same thread, without a pause, right after it was forked, so that
//! its status can't be reaped before somebody waits for it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use nix::errno::Errno;
use nix::unistd::Pid;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, oneshot};
use tokio::task::spawn_local;

use crate::error::{InitError, failed};
use crate::sys;

/// How a process ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    Exited { code: u8 },
    Signaled { signal: u8 },
}

/// Waits for all processes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reaper(Rc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    waiting: RefCell<HashMap<Pid, oneshot::Sender<End>>>,
    childless: Notify,
}

impl Reaper {
    /// Will tell how the process ends. To be called right after the fork.
    pub(crate) fn register(&self, pid: Pid) -> oneshot::Receiver<End> {
        let (sender, receiver) = oneshot::channel();
        self.0.waiting.borrow_mut().insert(pid, sender);
        receiver
    }

    /// Returns as soon as no process but init is left.
    pub(crate) async fn childless(&self) {
        // A stored permit may be stale: look again.
        while self.reap() {
            self.0.childless.notified().await;
        }
    }

    /// Reaps as long as the runtime runs.
    pub(crate) fn start(&self) -> Result<(), InitError> {
        let signals = signal(SignalKind::child()).map_err(failed("handle", "SIGCHLD"))?;
        spawn_local(self.clone().run(signals));
        Ok(())
    }

    async fn run(self, mut signals: Signal) {
        loop {
            if !self.reap() {
                self.0.childless.notify_waiters();
            }
            signals.recv().await;
        }
    }

    /// Takes all statuses that are there; whether processes are left.
    fn reap(&self) -> bool {
        loop {
            let (pid, end) = match sys::wait_any() {
                Ok(Some(ended)) => ended,
                Ok(None) => return true,
                Err(Errno::EINTR) => continue,
                Err(_) => return false,
            };
            if let Some(waiter) = self.0.waiting.borrow_mut().remove(&pid) {
                let _ = waiter.send(end);
            }
        }
    }
}
