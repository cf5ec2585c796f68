//! The one connection to the host: an AF_VSOCK stream.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};

use crate::error::{InitError, failed};

/// The host's address in the vsock family.
const HOST_CID: u32 = 2;

/// Dials a port of the host, waiting for the connection: nothing else of init runs yet. What it
/// returns does not block.
pub(crate) fn dial(port: u32) -> Result<OwnedFd, InitError> {
    let named = || format!("vsock port {port} of the host");
    let fd = socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(failed("make a socket for", named()))?;
    connect(fd.as_raw_fd(), &VsockAddr::new(HOST_CID, port)).map_err(failed("dial", named()))?;
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(failed("set up", named()))?;
    Ok(fd)
}
