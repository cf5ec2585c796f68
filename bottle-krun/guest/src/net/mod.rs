//! The workload's network: a namespace of its own whose every way out ends in init.
//!
//! ```text
//! workload's namespace                        init's namespace
//!   lo   127.0.0.1:53 DNS stub                  lo   local 0.0.0.0/0 and ::/0: every address is ours
//!   v1   10.200.0.2/30, fd00:b::2/126  ◄veth►   v0   10.200.0.1/30, fd00:b::1/126
//!        default via v0                              *:ports capture, *:53 DNS stub, UDP watch
//! ```
//!
//! The workload's own loopback and ports are untouched, and it can neither see nor close what
//! captures it. A port without a listener refuses at once, by the kernel itself.

mod capture;
pub(crate) mod dial;
pub(crate) mod dns_stub;
pub(crate) mod netlink;
mod relay;
#[cfg(test)]
mod tests;
mod udp_server;
pub(crate) mod udp_watch;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread;

use bottle_wire::guest::FromGuest;
use bottle_wire::mux::Opener;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};

use self::dns_stub::DnsStub;
use self::netlink::{LO, Netlink, VethEnd};
use self::udp_server::UdpServer;
use crate::error::{InitError, failed};

/// The ends of the cable. Numbers are free because each stands in a new namespace.
const OURS: VethEnd<'static> = VethEnd {
    name: "v0",
    index: 16,
};
const THEIRS: VethEnd<'static> = VethEnd {
    name: "v1",
    index: 16,
};

const OUR_V4: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
const THEIR_V4: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 2);
const OUR_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xb, 0, 0, 0, 0, 0, 1);
const THEIR_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xb, 0, 0, 0, 0, 0, 2);

/// The largest that an IP packet can be; veth takes it.
const MTU: u32 = 65_535;

/// Where the workload's resolver asks.
const STUB: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), DNS);

/// The port of DNS.
pub(crate) const DNS: u16 = 53;

/// The network, laid but without anybody who answers.
#[derive(Debug)]
pub(crate) struct Network {
    /// The workload's namespace.
    pub(crate) namespace: OwnedFd,
    stub_udp: OwnedFd,
    stub_tcp: OwnedFd,
}

/// What was made inside the workload's namespace.
struct Inside {
    namespace: OwnedFd,
    netlink: Netlink,
    stub_udp: OwnedFd,
    stub_tcp: OwnedFd,
}

impl Network {
    /// Makes the namespace and the cable. Also mounts `/sys`, which shows the namespace of whoever
    /// mounts it.
    pub(crate) fn lay() -> Result<Self, InitError> {
        let inside = thread::Builder::new()
            .spawn(make_inside)
            .map_err(failed("start", "a thread"))?
            .join()
            .map_err(|_| InitError::Netlink {
                object: "the workload's namespace",
            })??;
        let mut ours = Netlink::new()?;
        let mut theirs = inside.netlink;
        ours.up(LO)?;
        ours.veth(OURS, THEIRS, inside.namespace.as_fd(), MTU)?;
        ours.address4(OURS.index, OUR_V4, 30)?;
        ours.address6(OURS.index, OUR_V6, 126)?;
        ours.up(OURS.index)?;
        ours.everything_is_local()?;
        theirs.address4(THEIRS.index, THEIR_V4, 30)?;
        theirs.address6(THEIRS.index, THEIR_V6, 126)?;
        theirs.up(THEIRS.index)?;
        theirs.default_routes(THEIRS.index, OUR_V4, OUR_V6)?;
        // Or every address of the world would answer to ping; every refusal must be heard; and
        // answers come from addresses that no interface has.
        for (knob, value) in [
            ("ipv6/ip_nonlocal_bind", "1"),
            ("ipv4/icmp_echo_ignore_all", "1"),
            ("ipv6/icmp/echo_ignore_all", "1"),
            ("ipv4/icmp_ratelimit", "0"),
            ("ipv6/icmp/ratelimit", "0"),
        ] {
            set_knob(knob, value)?;
        }
        Ok(Self {
            namespace: inside.namespace,
            stub_udp: inside.stub_udp,
            stub_tcp: inside.stub_tcp,
        })
    }

    /// Starts to answer: capture on `ports`, DNS, the UDP watch. Returns the namespace.
    pub(crate) fn serve(
        self,
        ports: &[u16],
        opener: &Opener<FromGuest>,
    ) -> Result<OwnedFd, InitError> {
        let stub = DnsStub::start(opener.clone());
        stub.serve_udp(UdpServer::new(self.stub_udp)?);
        stub.serve_tcp(capture::listener(self.stub_tcp)?);
        for any in [
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ] {
            let dns = SocketAddr::new(any, DNS);
            stub.serve_udp(UdpServer::new(bound(SockType::Datagram, dns)?)?);
            stub.serve_tcp(capture::listener(bound(SockType::Stream, dns)?)?);
            for port in ports
                .iter()
                .copied()
                .filter(|port| *port != DNS && *port != 0)
            {
                let listener = bound(SockType::Stream, SocketAddr::new(any, port))?;
                capture::start(capture::listener(listener)?, opener.clone());
            }
        }
        udp_watch::start(OURS.index, opener.clone())?;
        Ok(self.namespace)
    }
}

fn make_inside() -> Result<Inside, InitError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(failed("make", "a network namespace"))?;
    let own = "/proc/thread-self/ns/net";
    let namespace = fs::File::open(own).map_err(failed("open", own))?;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("sysfs"), "/sys", Some("sysfs"), quiet, None::<&str>)
        .map_err(failed("mount", "/sys"))?;
    // Absent where the kernel has none of it.
    let _ = mount(
        Some("cgroup2"),
        "/sys/fs/cgroup",
        Some("cgroup2"),
        quiet,
        None::<&str>,
    );
    // As container engines do: there is nobody else whose ports could be taken.
    set_knob("ipv4/ip_unprivileged_port_start", "0")?;
    let mut netlink = Netlink::new()?;
    netlink.up(LO)?;
    Ok(Inside {
        namespace: namespace.into(),
        netlink,
        stub_udp: bound(SockType::Datagram, STUB)?,
        stub_tcp: bound(SockType::Stream, STUB)?,
    })
}

/// Sets a network parameter of the current thread's namespace.
fn set_knob(name: &str, value: &str) -> Result<(), InitError> {
    let path = format!("/proc/sys/net/{name}");
    fs::write(&path, value).map_err(failed("set", path))
}

/// A non-blocking socket of the current thread's namespace, bound and, if a stream, listening.
fn bound(kind: SockType, address: SocketAddr) -> Result<OwnedFd, InitError> {
    let named = || failed("listen on", address.to_string());
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, kind, flags, None).map_err(named())?;
    setsockopt(&fd, sockopt::ReuseAddr, &true).map_err(named())?;
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true).map_err(named())?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address)).map_err(named())?;
    if kind == SockType::Stream {
        listen(&fd, Backlog::MAXALLOWABLE).map_err(named())?;
    }
    Ok(fd)
}
