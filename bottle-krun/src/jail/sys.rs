//! System calls for which `nix` has no function, each as a safe one.

#![expect(unsafe_code, reason = "system calls that nix does not wrap")]

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;

/// Version 3 of the capability interface: two 32-bit words per set.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// No capability has a higher number on any kernel; the kernel answers EINVAL at its own end.
const LAST_CAPABILITY: u64 = 63;

/// Opens a descriptor that names a process for good.
pub(crate) fn pidfd_open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: pidfd_open takes two numbers and returns a new descriptor or -1.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = RawFd::try_from(Errno::result(result)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel made this descriptor just now and nobody else has its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends SIGKILL to the process of a pidfd; one that has ended is no error.
pub(crate) fn pidfd_kill(pidfd: impl AsFd) -> Result<(), Errno> {
    match pidfd_signal(pidfd, Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Sends a signal to the process of a pidfd.
pub(crate) fn pidfd_signal(pidfd: impl AsFd, signal: Signal) -> Result<(), Errno> {
    let none: *const libc::siginfo_t = ptr::null();
    // SAFETY: pidfd_send_signal takes a descriptor that is open during the call, a number, and
    // NULL for the default siginfo.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal as libc::c_int,
            none,
            0,
        )
    };
    Errno::result(result).map(drop)
}

/// Puts a descriptor into the event loop of the running tokio reactor.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: `register` asks for a descriptor that is open and the same until the `AsyncFd` is
    // dropped: an `OwnedFd` is, and the `AsyncFd` owns it.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

/// Closes every descriptor from `first` on.
///
/// Nothing that owns such a descriptor may be used, or dropped, afterwards. What it can break is
/// logic and not memory: a closed number answers EBADF.
pub(crate) fn close_from(first: RawFd) -> Result<(), Errno> {
    let first = libc::c_uint::try_from(first).map_err(|_| Errno::EBADF)?;
    // SAFETY: close_range takes three numbers. Descriptors are not memory; no mapping ends.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    Errno::result(result).map(drop)
}

/// A packet that arrived; its bytes are in the caller's buffer.
#[derive(Debug)]
pub(crate) struct Received {
    /// How many bytes; 0 at the end.
    pub(crate) length: usize,
    /// Whether it was longer than the buffer.
    pub(crate) cut: bool,
    /// Descriptors that came with it.
    pub(crate) passengers: Vec<OwnedFd>,
}

/// Receives a packet and up to four descriptors, closed at exec.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<Received, Errno> {
    let mut control = nix::cmsg_space!([RawFd; 4]);
    let mut iov = [IoSliceMut::new(buffer)];
    let message = recvmsg::<UnixAddr>(
        socket.as_fd().as_raw_fd(),
        &mut iov,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut passengers = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            for number in numbers {
                // SAFETY: recvmsg made this descriptor for us just now; each number is seen once.
                passengers.push(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
    }
    Ok(Received {
        length: message.bytes,
        cut: message.flags.contains(MsgFlags::MSG_TRUNC),
        passengers,
    })
}

/// Removes every capability from the bounding set: no exec can bring one back.
pub(crate) fn drop_bounding_set() -> Result<(), Errno> {
    for capability in 0..=LAST_CAPABILITY {
        match prctl(libc::PR_CAPBSET_DROP, capability) {
            Ok(()) => {}
            Err(Errno::EINVAL) if capability > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Empties the ambient set.
pub(crate) fn clear_ambient_set() -> Result<(), Errno> {
    let clear = u64::from(libc::PR_CAP_AMBIENT_CLEAR_ALL.unsigned_abs());
    prctl(libc::PR_CAP_AMBIENT, clear)
}

fn prctl(option: libc::c_int, argument: u64) -> Result<(), Errno> {
    // SAFETY: the two options above take a number and no pointer; unused arguments are zero.
    let result = unsafe { libc::prctl(option, argument, 0u64, 0u64, 0u64) };
    Errno::result(result).map(drop)
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct CapabilityWords {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Empties the effective, permitted and inheritable sets of this thread.
pub(crate) fn clear_capabilities() -> Result<(), Errno> {
    let header = CapabilityHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let none = [CapabilityWords::default(); 2];
    // SAFETY: capset reads one header and, for version 3, two data words; both live on this stack.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    Errno::result(result).map(drop)
}

/// Returns whether effective, permitted and inheritable sets of this thread are empty.
pub(crate) fn has_no_capabilities() -> Result<bool, Errno> {
    let mut header = CapabilityHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let mut words = [CapabilityWords::default(); 2];
    // SAFETY: capget reads and writes one header and writes, for version 3, two data words; both
    // live on this stack.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, words.as_mut_ptr()) };
    Errno::result(result)?;
    Ok(words == [CapabilityWords::default(); 2])
}

/// Tries a system call with six arguments that are numbers, for [`super::selfcheck`].
///
/// Only for calls that fail before they look at memory: all arguments but the numbers are zero.
pub(crate) fn probe(number: libc::c_long, first: u64, second: u64) -> Result<i64, Errno> {
    // SAFETY: the numbers that `selfcheck` passes are of calls that take no pointer, or a NULL
    // pointer that the kernel answers with EFAULT.
    let result = unsafe { libc::syscall(number, first, second, 0u64, 0u64, 0u64, 0u64) };
    Errno::result(result)
}

/// Ends the process at once, without destructors or handlers. PID 1 of a namespace ignores the
/// SIGABRT that `abort` sends to itself.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes a number and does not return.
    unsafe { libc::_exit(code) }
}
