//! The system calls that no safe wrapper offers: all of init's `unsafe` code.
#![expect(unsafe_code, reason = "system calls without a safe wrapper")]

use std::fs::File;
use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use bottle_wire::guest::Window;
use nix::errno::Errno;
use nix::libc;
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;

use crate::reap::End;

/// Takes the status of one child that has ended, without waiting; `None` if none has.
///
/// Unlike nix's it knows real-time signals.
///
/// # Errors
///
/// `ECHILD` if there are no children.
pub(crate) fn wait_any() -> Result<Option<(Pid, End)>, Errno> {
    let mut status = 0;
    // SAFETY: waitpid writes one int through its pointer, which is a live local's.
    let pid = Errno::result(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) })?;
    let byte = |value: i32| u8::try_from(value & 0xff).unwrap_or(u8::MAX);
    let end = if libc::WIFSIGNALED(status) {
        End::Signaled {
            signal: byte(libc::WTERMSIG(status)),
        }
    } else {
        End::Exited {
            code: byte(libc::WEXITSTATUS(status)),
        }
    };
    Ok((pid != 0).then_some((Pid::from_raw(pid), end)))
}

/// Takes a non-blocking descriptor into the current runtime.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor must stay the same and open while it is registered: an `OwnedFd`
    // gives out one number only and is closed by `AsyncFd`, after it has deregistered.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Adds bytes to the kernel's random pool, as worth their length.
pub(crate) fn credit_entropy(random: &File, bytes: &[u8; 32]) -> io::Result<()> {
    /// `struct rand_pool_info` with its buffer.
    #[repr(C)]
    struct Pool {
        entropy_bits: libc::c_int,
        length: libc::c_int,
        buffer: [u8; 32],
    }
    nix::ioctl_write_ptr_bad!(add_entropy, nix::request_code_write!(b'R', 3, 8), Pool);
    let pool = Pool {
        entropy_bits: 256,
        length: 32,
        buffer: *bytes,
    };
    // SAFETY: RNDADDENTROPY reads a rand_pool_info and `length` bytes behind it: a live local.
    unsafe { add_entropy(random.as_raw_fd(), &raw const pool) }?;
    Ok(())
}

/// Lets the other end of a pseudo-terminal be opened, given the multiplexer's.
pub(crate) fn unlock_terminal(ours: BorrowedFd<'_>) -> io::Result<()> {
    nix::ioctl_write_ptr_bad!(lock, libc::TIOCSPTLCK, libc::c_int);
    let unlocked = 0;
    // SAFETY: TIOCSPTLCK reads one int through its pointer, which is a live local's.
    unsafe { lock(ours.as_raw_fd(), &raw const unlocked) }?;
    Ok(())
}

/// Opens the other end of a pseudo-terminal, by no path; it becomes nobody's controlling terminal.
pub(crate) fn other_end(ours: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    nix::ioctl_write_int_bad!(open_peer, libc::TIOCGPTPEER);
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags by value and touches no memory of ours.
    let fd = unsafe { open_peer(ours.as_raw_fd(), flags) }?;
    // SAFETY: the kernel has just opened this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets the size of a terminal.
pub(crate) fn resize_terminal(terminal: BorrowedFd<'_>, window: Window) -> io::Result<()> {
    nix::ioctl_write_ptr_bad!(set_size, libc::TIOCSWINSZ, libc::winsize);
    let Window {
        rows,
        cols,
        x_pixels,
        y_pixels,
    } = window;
    let size = libc::winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: x_pixels,
        ws_ypixel: y_pixels,
    };
    // SAFETY: TIOCSWINSZ reads one winsize through its pointer, which is a live local's.
    unsafe { set_size(terminal.as_raw_fd(), &raw const size) }?;
    Ok(())
}

/// Makes standard input the controlling terminal of this session's leader. Only a system call, so
/// fit for [`before_exec`].
pub(crate) fn take_terminal() -> io::Result<()> {
    nix::ioctl_write_int_bad!(take, libc::TIOCSCTTY);
    // SAFETY: TIOCSCTTY takes an int by value and touches no memory of ours.
    unsafe { take(libc::STDIN_FILENO, 0) }?;
    Ok(())
}

/// Attaches a classic BPF program to a socket.
pub(crate) fn attach_filter(
    socket: BorrowedFd<'_>,
    program: &[libc::sock_filter],
) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog {
        len: length,
        filter: program.as_ptr().cast_mut(),
    };
    let size = libc::socklen_t::try_from(size_of_val(&program))
        .map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel copies `len` instructions from `filter`, a live slice, and writes nothing.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size,
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// Binds a packet socket to one interface, for all protocols.
pub(crate) fn bind_packet(socket: BorrowedFd<'_>, interface: u32) -> io::Result<()> {
    let all = libc::ETH_P_ALL.cast_unsigned();
    let address = libc::sockaddr_ll {
        sll_family: libc::sa_family_t::try_from(libc::AF_PACKET)
            .map_err(|_| io::ErrorKind::InvalidInput)?,
        sll_protocol: u16::try_from(all)
            .map_err(|_| io::ErrorKind::InvalidInput)?
            .to_be(),
        sll_ifindex: interface.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let size = libc::socklen_t::try_from(size_of_val(&address))
        .map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: bind reads `size` bytes of a live local and keeps no pointer.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) };
    Errno::result(result)?;
    Ok(())
}

/// Runs `setup` in the child between fork and exec.
///
/// `setup` may only make system calls: no allocation, no lock. Other threads of init exist while
/// it is forked.
pub(crate) fn before_exec(
    command: &mut Command,
    setup: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: the closure runs in a forked child and keeps to system calls, as its one caller
    // (`exec::spawn`) shows: what it needs was allocated before the fork.
    unsafe { command.pre_exec(setup) };
}

/// Signals every process but this one, with real-time signals too.
pub(crate) fn signal_all(signal: u8) -> Result<(), Errno> {
    // SAFETY: kill has no memory arguments.
    Errno::result(unsafe { libc::kill(-1, libc::c_int::from(signal)) }).map(drop)
}

/// Signals a process group, with real-time signals too.
pub(crate) fn signal_group(group: Pid, signal: libc::c_int) -> Result<(), Errno> {
    // SAFETY: killpg has no memory arguments.
    Errno::result(unsafe { libc::killpg(group.as_raw(), signal) }).map(drop)
}
