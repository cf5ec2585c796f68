//! Tells the host where the workload's datagrams wanted to go. The kernel itself refuses them at
//! once, since nobody listens; a packet socket with a filter sees them on the way.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use bottle_wire::guest::FromGuest;
use bottle_wire::mux::Opener;
use nix::libc::{self, sock_filter};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socket};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::task::spawn_local;

use super::DNS;
use crate::error::{InitError, failed};
use crate::sys;

/// Bytes of a packet that the filter lets through: IPv4 with options, IPv6, and a UDP header.
const HEADERS: u32 = 68;

/// A destination is told again after so long.
const AGAIN: Duration = Duration::from_secs(60);

/// Destinations remembered, and told within a second.
const MAX_SEEN: usize = 1024;
const MAX_PER_SECOND: u32 = 32;

/// The kernel's number for UDP.
const UDP: u8 = 17;

/// Starts to watch an interface of the current namespace.
pub(crate) fn start(interface: u32, opener: Opener<FromGuest>) -> Result<(), InitError> {
    let named = || failed("watch", "the workload's datagrams");
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    // No protocol: nothing arrives before the filter is there and the socket is bound.
    let fd = socket(AddressFamily::Packet, SockType::Datagram, flags, None).map_err(named())?;
    sys::attach_filter(fd.as_fd(), &filter()).map_err(failed("watch", "v0"))?;
    sys::bind_packet(fd.as_fd(), interface).map_err(failed("watch", "v0"))?;
    let watch = sys::watch(fd).map_err(failed("watch", "v0"))?;
    spawn_local(run(watch, opener));
    Ok(())
}

async fn run(watch: AsyncFd<OwnedFd>, opener: Opener<FromGuest>) {
    let mut news = News::new(Instant::now());
    let mut packet = [0; HEADERS as usize];
    let receive = |fd: &OwnedFd, packet: &mut [u8]| {
        recv(fd.as_raw_fd(), packet, MsgFlags::MSG_DONTWAIT).map_err(io::Error::from)
    };
    while let Ok(length) = watch
        .async_io(Interest::READABLE, |fd| receive(fd, &mut packet))
        .await
    {
        let Some(destination) = destination(&packet[..length]) else {
            continue;
        };
        if destination.port() == DNS || !news.is_new(destination, Instant::now()) {
            continue;
        }
        if let Ok(mut stream) = opener.open(&FromGuest::UdpRefused { destination }).await {
            let _ = stream.shutdown().await;
        }
    }
}

/// Lets the headers through of UDP packets that come in over the cable.
fn filter() -> [sock_filter; 11] {
    let op = |code: u32, jt, jf, k| sock_filter {
        code: u16::try_from(code).unwrap_or_default(),
        jt,
        jf,
        k,
    };
    let load_byte = |at| op(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, at);
    let equal = |k, jt, jf| op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, jt, jf, k);
    let give = |length| op(libc::BPF_RET | libc::BPF_K, 0, 0, length);
    let packet_type = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE).cast_unsigned();
    // Jumps count the instructions that are left out.
    [
        load_byte(packet_type),
        equal(u32::from(libc::PACKET_HOST), 0, 8),
        load_byte(0),
        op(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, 0, 0, 4),
        equal(6, 2, 0),
        load_byte(9),
        equal(u32::from(UDP), 2, 3),
        load_byte(6),
        equal(u32::from(UDP), 0, 1),
        give(HEADERS),
        give(0),
    ]
}

/// Where a packet wants to go, if it is a UDP packet with its header.
fn destination(packet: &[u8]) -> Option<SocketAddr> {
    let (address, header) = match packet.first()? >> 4 {
        4 => {
            let header_length = usize::from(packet[0] & 0x0f) * 4;
            let fragment = u16::from_be_bytes(*packet.get(6..)?.first_chunk()?) & 0x1fff;
            if header_length < 20 || fragment != 0 || *packet.get(9)? != UDP {
                return None;
            }
            let address: [u8; 4] = *packet.get(16..)?.first_chunk()?;
            (IpAddr::from(address), header_length)
        }
        6 => {
            if *packet.get(6)? != UDP {
                return None;
            }
            let address: [u8; 16] = *packet.get(24..)?.first_chunk()?;
            (IpAddr::from(address), 40)
        }
        _ => return None,
    };
    let port = u16::from_be_bytes(*packet.get(header + 2..)?.first_chunk()?);
    Some(SocketAddr::new(address, port))
}

/// What was told lately.
#[derive(Debug)]
struct News {
    seen: HashMap<SocketAddr, Instant>,
    second: Instant,
    told: u32,
}

impl News {
    fn new(now: Instant) -> Self {
        Self {
            seen: HashMap::new(),
            second: now,
            told: 0,
        }
    }

    /// Whether a destination is worth telling; it counts as told then.
    fn is_new(&mut self, destination: SocketAddr, now: Instant) -> bool {
        if self
            .seen
            .get(&destination)
            .is_some_and(|told| now.duration_since(*told) < AGAIN)
        {
            return false;
        }
        if now.duration_since(self.second) >= Duration::from_secs(1) {
            self.second = now;
            self.told = 0;
        }
        if self.told == MAX_PER_SECOND {
            return false;
        }
        if self.seen.len() >= MAX_SEEN {
            self.seen.clear();
        }
        self.told += 1;
        self.seen.insert(destination, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn packet4(port: u16) -> Vec<u8> {
        let mut packet = vec![0; 28];
        packet[0] = 0x45;
        packet[9] = UDP;
        packet[16..20].copy_from_slice(&[8, 8, 4, 4]);
        packet[22..24].copy_from_slice(&port.to_be_bytes());
        packet
    }

    #[test]
    fn both_families_are_understood_and_nothing_else() {
        assert_eq!(
            destination(&packet4(123)),
            Some("8.8.4.4:123".parse().unwrap())
        );
        let mut tcp = packet4(80);
        tcp[9] = 6;
        assert_eq!(destination(&tcp), None);
        let mut fragment = packet4(80);
        fragment[7] = 1;
        assert_eq!(destination(&fragment), None);
        let mut packet = vec![0; 48];
        packet[0] = 0x60;
        packet[6] = UDP;
        packet[24] = 0x20;
        packet[39] = 1;
        packet[43] = 99;
        assert_eq!(destination(&packet), Some("[2000::1]:99".parse().unwrap()));
        assert_eq!(destination(&packet[..43]), None);
    }

    #[test]
    fn a_destination_is_told_once_a_minute_and_few_within_a_second() {
        let start = Instant::now();
        let mut news = News::new(start);
        let to = |port| SocketAddr::from(([1, 1, 1, 1], port));
        assert!(news.is_new(to(1), start));
        assert!(!news.is_new(to(1), start + AGAIN / 2));
        assert!(news.is_new(to(1), start + AGAIN));
        let told = (100..200)
            .filter(|port| news.is_new(to(*port), start + AGAIN))
            .count();
        assert_eq!(told, MAX_PER_SECOND as usize - 1);
    }

    proptest! {
        #[test]
        fn hostile_packets_never_panic(packet in vec(any::<u8>(), 0..80)) {
            let _ = destination(&packet);
        }
    }
}
