//! The few netlink requests that lay the workload's network: own messages, no tool of the image.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use crate::error::{InitError, failed};

/// Interface number of `lo`, in every network namespace.
pub(crate) const LO: u32 = 1;

// The C library's types for these are wider than their fields in netlink messages.
const REQUEST_AND_ACK: u16 = 0x1 | 0x4;
const CREATE_EXCLUSIVELY: u16 = 0x400 | 0x200;
const INET: u8 = 2;
const INET6: u8 = 10;
const IFF_UP: u32 = 1;
const IFA_F_NODAD: u8 = 2;

/// `VETH_INFO_PEER` of linux/veth.h.
const VETH_INFO_PEER: u16 = 1;

/// A route netlink socket; it stays in the namespace in which it was made.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VethEnd<'a> {
    pub(crate) name: &'a str,
    pub(crate) index: u32,
}

impl Netlink {
    /// Opens a socket in the current thread's namespace.
    pub(crate) fn new() -> Result<Self, InitError> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )
        .map_err(failed("make", "a netlink socket"))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Makes a veth pair: `here` in this socket's namespace, `there` in the other one.
    pub(crate) fn veth(
        &mut self,
        here: VethEnd<'_>,
        there: VethEnd<'_>,
        namespace: BorrowedFd<'_>,
        mtu: u32,
    ) -> Result<(), InitError> {
        let mut message = Message::new(libc::RTM_NEWLINK, CREATE_EXCLUSIVELY);
        message.link(here.index, 0);
        message.attribute(libc::IFLA_IFNAME, here.name.as_bytes());
        message.attribute(libc::IFLA_MTU, &mtu.to_ne_bytes());
        message.nested(libc::IFLA_LINKINFO, |message| {
            message.attribute(libc::IFLA_INFO_KIND, b"veth");
            message.nested(libc::IFLA_INFO_DATA, |message| {
                message.nested(VETH_INFO_PEER, |message| {
                    message.link(there.index, 0);
                    message.attribute(libc::IFLA_IFNAME, there.name.as_bytes());
                    message.attribute(libc::IFLA_MTU, &mtu.to_ne_bytes());
                    message.attribute(
                        libc::IFLA_NET_NS_FD,
                        &namespace.as_raw_fd().cast_unsigned().to_ne_bytes(),
                    );
                });
            });
        });
        self.request(message, "make a veth pair")
    }

    /// Sets an interface up.
    pub(crate) fn up(&mut self, index: u32) -> Result<(), InitError> {
        let mut message = Message::new(libc::RTM_NEWLINK, 0);
        message.link(index, IFF_UP);
        self.request(message, "set an interface up")
    }

    /// Gives an interface an IPv4 address.
    pub(crate) fn address4(
        &mut self,
        index: u32,
        address: Ipv4Addr,
        prefix: u8,
    ) -> Result<(), InitError> {
        let mut message = Message::new(libc::RTM_NEWADDR, CREATE_EXCLUSIVELY);
        message.bytes(&[INET, prefix, 0, 0]);
        message.bytes(&index.to_ne_bytes());
        message.attribute(libc::IFA_LOCAL, &address.octets());
        message.attribute(libc::IFA_ADDRESS, &address.octets());
        self.request(message, "set an IPv4 address")
    }

    /// Gives an interface an IPv6 address, without asking the link whether it is taken.
    pub(crate) fn address6(
        &mut self,
        index: u32,
        address: Ipv6Addr,
        prefix: u8,
    ) -> Result<(), InitError> {
        let mut message = Message::new(libc::RTM_NEWADDR, CREATE_EXCLUSIVELY);
        message.bytes(&[INET6, prefix, IFA_F_NODAD, 0]);
        message.bytes(&index.to_ne_bytes());
        message.attribute(libc::IFA_ADDRESS, &address.octets());
        self.request(message, "set an IPv6 address")
    }

    /// Makes every address local, in table main: longer prefixes of it still win.
    pub(crate) fn everything_is_local(&mut self) -> Result<(), InitError> {
        for (family, scope) in [
            (INET, libc::RT_SCOPE_HOST),
            (INET6, libc::RT_SCOPE_UNIVERSE),
        ] {
            let mut message = Message::new(libc::RTM_NEWROUTE, CREATE_EXCLUSIVELY);
            message.route(family, scope, libc::RTN_LOCAL);
            message.attribute(libc::RTA_OIF, &LO.to_ne_bytes());
            self.request(message, "make every address local")?;
        }
        Ok(())
    }

    /// Sets the default routes.
    pub(crate) fn default_routes(
        &mut self,
        index: u32,
        via4: Ipv4Addr,
        via6: Ipv6Addr,
    ) -> Result<(), InitError> {
        let gateways = [
            (INET, via4.octets().to_vec()),
            (INET6, via6.octets().to_vec()),
        ];
        for (family, gateway) in gateways {
            let mut message = Message::new(libc::RTM_NEWROUTE, CREATE_EXCLUSIVELY);
            message.route(family, libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST);
            message.attribute(libc::RTA_GATEWAY, &gateway);
            message.attribute(libc::RTA_OIF, &index.to_ne_bytes());
            self.request(message, "set a default route")?;
        }
        Ok(())
    }

    /// Sends a request and waits for its acknowledgement.
    fn request(&mut self, message: Message, what: &'static str) -> Result<(), InitError> {
        self.sequence += 1;
        let fd = self.socket.as_raw_fd();
        send(fd, &message.finish(self.sequence), MsgFlags::empty())
            .map_err(failed("ask to", what))?;
        let mut answer = [0; 4096];
        let length = recv(fd, &mut answer, MsgFlags::empty()).map_err(failed("ask to", what))?;
        match acknowledged(&answer[..length], self.sequence) {
            Some(0) => Ok(()),
            Some(errno) => Err(failed(what, "netlink")(io::Error::from_raw_os_error(
                -errno,
            ))),
            None => Err(InitError::Netlink { object: what }),
        }
    }
}

/// The error number of an acknowledgement: zero or negative.
fn acknowledged(answer: &[u8], sequence: u32) -> Option<i32> {
    let word = |at: usize| answer.get(at..at + 4)?.try_into().ok();
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let ours = u32::from_ne_bytes(word(8)?) == sequence;
    let code = i32::from_ne_bytes(word(16)?);
    (i32::from(kind) == libc::NLMSG_ERROR && ours && code <= 0).then_some(code)
}

/// A request in the making.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut message = Self(vec![0; 4]);
        message.bytes(&kind.to_ne_bytes());
        message.bytes(&(flags | REQUEST_AND_ACK).to_ne_bytes());
        message.bytes(&[0; 8]); // sequence number, port
        message
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// `struct ifinfomsg`, changing what `up` names.
    fn link(&mut self, index: u32, up: u32) {
        self.bytes(&[0; 4]);
        self.bytes(&index.to_ne_bytes());
        self.bytes(&up.to_ne_bytes());
        self.bytes(&up.to_ne_bytes());
    }

    /// `struct rtmsg` of a route to everything in table main.
    fn route(&mut self, family: u8, scope: u8, kind: u8) {
        self.bytes(&[
            family,
            0,
            0,
            0,
            libc::RT_TABLE_MAIN,
            libc::RTPROT_STATIC,
            scope,
            kind,
        ]);
        self.bytes(&[0; 4]);
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |message| message.bytes(value));
    }

    /// An attribute whose value `fill` appends; padded to four bytes.
    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.bytes(&[0; 2]);
        self.bytes(&kind.to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.0.len() - start).expect("our attributes are short");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("our messages are short");
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_nest_with_lengths_and_padding() {
        let mut message = Message::new(16, 0);
        message.nested(18, |message| message.attribute(1, b"veth!"));
        let bytes = message.finish(7);
        assert_eq!(bytes.len(), 16 + 4 + 12);
        assert_eq!(u32::from_ne_bytes(bytes[..4].try_into().unwrap()), 32);
        assert_eq!(u32::from_ne_bytes(bytes[8..12].try_into().unwrap()), 7);
        assert_eq!(u16::from_ne_bytes(bytes[16..18].try_into().unwrap()), 16);
        assert_eq!(u16::from_ne_bytes(bytes[20..22].try_into().unwrap()), 9);
        assert_eq!(&bytes[24..29], b"veth!");
    }

    #[test]
    fn only_the_answer_to_our_question_counts() {
        let mut answer = vec![0; 36];
        answer[4] = 2;
        answer[8] = 9;
        assert_eq!(acknowledged(&answer, 9), Some(0));
        assert_eq!(acknowledged(&answer, 8), None);
        answer[16..20].copy_from_slice(&(-17_i32).to_ne_bytes());
        assert_eq!(acknowledged(&answer, 9), Some(-17));
        for cut in 0..20 {
            assert_eq!(acknowledged(&answer[..cut], 9), None);
        }
    }
}
