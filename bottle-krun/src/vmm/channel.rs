//! Packets of JSON over a socket pair, for the two processes that do not run an event loop.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::jail::sys;

/// The longest packet that is sent or taken: an order with a disk of 512 layers has 40 KiB.
pub(crate) const MAX_PACKET: usize = 64 * 1024;

/// One end of a socket pair that keeps packets apart.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

impl Channel {
    /// Makes both ends, closed at exec.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        Ok((Self(ours), Self(theirs)))
    }

    /// Takes a descriptor that is such an end.
    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Gives the descriptor back.
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Sends one value; blocks while the peer is behind.
    pub(crate) fn send<T: Serialize>(&self, value: &T) -> io::Result<()> {
        send(self, value, None)
    }

    /// Sends one value and a descriptor.
    pub(crate) fn send_with<T: Serialize>(
        &self,
        value: &T,
        passenger: BorrowedFd<'_>,
    ) -> io::Result<()> {
        send(self, value, Some(passenger))
    }

    /// Receives one value; `None` when the other end is closed.
    pub(crate) fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<T>> {
        Ok(receive(self)?.map(|(value, _)| value))
    }
}

/// Sends one value and perhaps a descriptor over an end that may or may not block.
pub(crate) fn send<T: Serialize>(
    socket: impl AsFd,
    value: &T,
    passenger: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let packet = serde_json::to_vec(value)?;
    if packet.len() > MAX_PACKET {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let raw: Vec<RawFd> = passenger.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    loop {
        let sent = sendmsg::<UnixAddr>(
            socket.as_fd().as_raw_fd(),
            &[IoSlice::new(&packet)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
        match sent {
            Err(Errno::EINTR) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}

/// Receives one value, perhaps with a descriptor; `None` when the other end is closed.
pub(crate) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let mut buffer = vec![0; MAX_PACKET];
    let received = loop {
        match sys::receive(&socket, &mut buffer) {
            Err(Errno::EINTR) => {}
            Err(Errno::ECONNRESET) => return Ok(None),
            other => break other?,
        }
    };
    if received.length == 0 {
        return Ok(None);
    }
    if received.cut {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    let packet = buffer.get(..received.length).unwrap_or_default();
    let value = serde_json::from_slice(packet)?;
    Ok(Some((value, received.passengers.into_iter().next())))
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
