//! Tells the host which processes the kernel killed for want of memory.
//!
//! The kernel's log is the one source that every kernel has and that names the process: a counter
//! (`/proc/vmstat`, a control group's `memory.events`) would say that something was killed, and
//! would have to be asked again and again. The log is only read when there is something new in it.
//!
//! # Security
//!
//! What the workload's root writes into the log is marked as not the kernel's, and ignored. The
//! name of a process is the workload's choice.

use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use bottle_wire::guest::ToHost;
use nix::errno::Errno;
use nix::libc;
use nix::unistd::read;
use tokio::io::Interest;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::spawn_local;

use crate::sys;

/// Records are cut by the kernel to about 1 KiB, and escaped.
const MAX_RECORD: usize = 8 << 10;

/// The first priority that is not the kernel's own.
const FIRST_FOREIGN: u32 = 8;

/// Starts to watch, from now on.
///
/// # Errors
///
/// What `/dev/kmsg` says.
pub(crate) fn watch(say: UnboundedSender<ToHost>) -> io::Result<()> {
    let mut log = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")?;
    log.seek(SeekFrom::End(0))?;
    let log = sys::watch(OwnedFd::from(log))?;
    spawn_local(async move {
        let mut record = vec![0; MAX_RECORD];
        loop {
            let next = log.async_io(Interest::READABLE, |log| Ok(read(log, &mut record)?));
            match next.await {
                Ok(0) => return,
                Ok(length) => {
                    if let Some(word) = killed(&record[..length]) {
                        let _ = say.send(word);
                    }
                }
                // Records that went by unread, or one that is longer than any of ours.
                Err(error) if lost(&error) => {}
                Err(_) => return,
            }
        }
    });
    Ok(())
}

fn lost(error: &io::Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe
        || error.raw_os_error().map(Errno::from_raw) == Some(Errno::EINVAL)
}

/// `PRIORITY,NUMBER,TIME,FLAGS;[Memory cgroup o|O]ut of memory: Killed process PID (NAME) total-vm:…`
fn killed(record: &[u8]) -> Option<ToHost> {
    let record = String::from_utf8_lossy(record);
    let (prefix, message) = record.split_once(';')?;
    let priority: u32 = prefix.split(',').next()?.parse().ok()?;
    if priority >= FIRST_FOREIGN {
        return None;
    }
    let process = ["Out of memory", "Memory cgroup out of memory"]
        .into_iter()
        .find_map(|cause| {
            message
                .strip_prefix(cause)?
                .strip_prefix(": Killed process ")
        })?;
    let (pid, rest) = process.split_once(" (")?;
    let (name, _) = rest.rsplit_once(") total-vm:")?;
    Some(ToHost::OutOfMemory {
        pid: pid.parse().ok()?,
        name: name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn word(pid: u32, name: &str) -> Option<ToHost> {
        let name = name.to_owned();
        Some(ToHost::OutOfMemory { pid, name })
    }

    #[test]
    fn a_killed_process_is_named_whatever_it_calls_itself() {
        let record =
            b"3,712,9123456,-;Out of memory: Killed process 77 (python3) total-vm:1kB, x\n";
        assert_eq!(killed(record), word(77, "python3"));
        let record = b"3,7,9,-;Memory cgroup out of memory: Killed process 5 (a) (b) total-vm:1kB";
        assert_eq!(killed(record), word(5, "a) (b"));
    }

    #[test]
    fn nothing_but_the_kernels_own_word_counts() {
        for other in [
            &b"11,712,91,-;Out of memory: Killed process 77 (forged) total-vm:1kB"[..],
            b"3,712,91,-;said: Out of memory: Killed process 77 (forged) total-vm:1kB",
            b"3,712,91,-;Out of memory: Killed process x (x) total-vm:1kB",
            b"3,712,91,-;oom_reaper: reaped process 77 (x), now anon-rss:0kB",
            b"",
        ] {
            assert_eq!(killed(other), None);
        }
    }

    proptest! {
        #[test]
        fn hostile_records_never_panic(record in vec(any::<u8>(), 0..200)) {
            let _ = killed(&record);
        }
    }
}
