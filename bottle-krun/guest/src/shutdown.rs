//! The end of a bottle: every process, then the disks.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, sync};
use tokio::time::timeout;

use crate::reap::Reaper;
use crate::sys;

/// How long the kernel may take to end processes that were killed.
const KILLED: Duration = Duration::from_secs(5);

/// Ends all processes but init: by this signal, then by SIGKILL.
pub(crate) async fn end_processes(reaper: &Reaper, signal: u8, grace: Duration) {
    let everybody = Pid::from_raw(-1);
    // Nobody being there is no error.
    let _ = sys::signal_all(signal);
    let _ = kill(everybody, Signal::SIGCONT);
    if timeout(grace, reaper.childless()).await.is_err() {
        let _ = kill(everybody, Signal::SIGKILL);
        let _ = timeout(KILLED, reaper.childless()).await;
    }
}

/// Makes the disks consistent: nothing is written after it. What can't be made read-only has been
/// synced at least.
pub(crate) fn close_disks(overlay: &File) {
    sync();
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    let _ = mount(None::<&str>, "/", None::<&str>, read_only, None::<&str>);
    let disk = format!("/proc/self/fd/{}", overlay.as_raw_fd());
    let _ = mount(
        None::<&str>,
        disk.as_str(),
        None::<&str>,
        read_only,
        None::<&str>,
    );
    sync();
}
