//! A UDP socket that answers from the address that was asked: with every address local, the
//! kernel's choice would be another one.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockaddrLike, SockaddrStorage,
    getsockname, recvmsg, sendmsg, setsockopt, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{InitError, failed};
use crate::sys;

/// The socket.
#[derive(Debug)]
pub(crate) struct UdpServer(AsyncFd<OwnedFd>);

/// Who asked, and which address.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    peer: SockaddrStorage,
    asked: IpAddr,
}

impl UdpServer {
    /// Takes a bound, non-blocking socket into the current runtime.
    pub(crate) fn new(fd: OwnedFd) -> Result<Self, InitError> {
        let named = || failed("set up", "a UDP socket");
        let own: SockaddrStorage = getsockname(fd.as_raw_fd()).map_err(named())?;
        if own.family() == Some(AddressFamily::Inet6) {
            setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true).map_err(named())?;
        } else {
            setsockopt(&fd, sockopt::Ipv4PacketInfo, &true).map_err(named())?;
        }
        sys::watch(fd)
            .map(Self)
            .map_err(failed("set up", "a UDP socket"))
    }

    /// Receives one datagram.
    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Asker)> {
        self.0
            .async_io(Interest::READABLE, |fd| receive(fd, buffer))
            .await
    }

    /// Answers, if the socket takes it at once: datagrams may be lost.
    pub(crate) fn answer(&self, message: &[u8], asker: &Asker) {
        let data = [IoSlice::new(message)];
        let fd = self.0.as_raw_fd();
        let flags = MsgFlags::MSG_DONTWAIT;
        let _ = match asker.asked {
            IpAddr::V4(asked) => {
                let from = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr {
                        s_addr: u32::from_ne_bytes(asked.octets()),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                let control = [ControlMessage::Ipv4PacketInfo(&from)];
                sendmsg(fd, &data, &control, flags, Some(&asker.peer))
            }
            IpAddr::V6(asked) => {
                let from = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: asked.octets(),
                    },
                    ipi6_ifindex: 0,
                };
                let control = [ControlMessage::Ipv6PacketInfo(&from)];
                sendmsg(fd, &data, &control, flags, Some(&asker.peer))
            }
        };
    }
}

fn receive(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, Asker)> {
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let mut data = [IoSliceMut::new(buffer)];
    let received = recvmsg::<SockaddrStorage>(
        fd.as_raw_fd(),
        &mut data,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let mut asked = None;
    for message in received.cmsgs()? {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "foreign enum; nothing else was asked for"
        )]
        match message {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                asked = Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes()));
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                asked = Some(IpAddr::from(info.ipi6_addr.s6_addr));
            }
            _ => {}
        }
    }
    let (Some(asked), Some(peer)) = (asked, received.address) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    Ok((received.bytes, Asker { peer, asked }))
}
