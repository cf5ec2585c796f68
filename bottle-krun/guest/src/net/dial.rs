//! Connections from the host to servers of the workload: the host asks for a port, and the stream
//! becomes a connection to it on the workload's own loopback.
//!
//! # Security
//!
//! The host chooses a port and no address: nothing but a server inside is reached, and the
//! workload can ask for nothing here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdStream};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use bottle_wire::guest::DialReport;
use bottle_wire::message;
use bottle_wire::mux::MuxStream;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::relay::{adopt, relay};

/// How long a server's queue may be full.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where servers are looked for, in this order: most listen on the first, or on all addresses.
const LOOPBACKS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// Connects to a port of the namespace and carries the stream; says first whether it could.
pub(crate) async fn dial(namespace: io::Result<OwnedFd>, port: u16, mut stream: MuxStream) {
    let connected = async { adopt(connect(namespace?, port).await?) };
    match timeout(PATIENCE, connected).await {
        Ok(Ok(connection)) => match message::write(&mut stream, &DialReport::Connected).await {
            Ok(()) => relay(connection, stream).await,
            Err(_) => connection.reset_when_closed(),
        },
        Ok(Err(error)) => refuse(stream, error.to_string()).await,
        Err(_) => refuse(stream, format!("no answer within {} s", PATIENCE.as_secs())).await,
    }
}

/// Says why there is no connection.
pub(crate) async fn refuse(mut stream: MuxStream, why: String) {
    // Whoever would hear of an error is the one who broke the stream.
    let _ = message::write(&mut stream, &DialReport::Refused(why)).await;
    let _ = stream.shutdown().await;
}

async fn connect(namespace: OwnedFd, port: u16) -> io::Result<TcpStream> {
    let (sender, sockets) = oneshot::channel();
    // A socket belongs to the namespace of the thread that makes it; init's own one stays in its.
    thread::Builder::new().spawn(move || {
        let _ = sender.send(sockets_inside(&namespace));
    })?;
    let sockets = sockets.await.map_err(io::Error::other)??;
    let mut refused = io::Error::from(io::ErrorKind::ConnectionRefused);
    for (socket, address) in sockets.into_iter().zip(LOOPBACKS) {
        let Some(socket) = socket else { continue };
        let socket = TcpSocket::from_std_stream(StdStream::from(socket));
        match socket.connect(SocketAddr::new(address, port)).await {
            Ok(connection) => return Ok(connection),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// A socket for each of [`LOOPBACKS`]; none where the kernel has no such family.
fn sockets_inside(namespace: &OwnedFd) -> io::Result<[Option<OwnedFd>; 2]> {
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let new = |family| socket(family, SockType::Stream, flags, None);
    Ok([
        Some(new(AddressFamily::Inet)?),
        new(AddressFamily::Inet6).ok(),
    ])
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{ErrorKind, Read, Write};
    use std::net::{Shutdown, TcpListener};

    use bottle_wire::guest::FromHost;
    use nix::sched::unshare;
    use tokio::io::AsyncReadExt;
    use tokio::task::spawn_blocking;

    use super::*;
    use crate::control::testing::{Host, is_root, with_init_in};
    use crate::net::netlink::{LO, Netlink};

    /// Runs `listen` in a new network namespace; returns the namespace and what it has made.
    fn inside<R: Send + 'static>(listen: fn() -> R) -> Option<(OwnedFd, R)> {
        let make = move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Netlink::new().unwrap().up(LO).unwrap();
            let namespace = File::open("/proc/thread-self/ns/net").unwrap().into();
            (namespace, listen())
        };
        is_root().then(|| thread::spawn(make).join().unwrap())
    }

    async fn dialed(host: &Host, port: u16) -> (DialReport, MuxStream) {
        let mut stream = host.opener.open(&FromHost::Dial { port }).await.unwrap();
        let report = message::read(&mut stream).await.unwrap();
        (report.expect("a report"), stream)
    }

    async fn connected(host: &Host, port: u16) -> MuxStream {
        let (report, stream) = dialed(host, port).await;
        assert_eq!(report, DialReport::Connected);
        stream
    }

    #[test]
    fn a_server_is_reached_whatever_address_it_listens_on_and_halves_close_apart() {
        let listen = || {
            ["127.0.0.1:7001", "0.0.0.0:7002", "[::1]:7003", "[::]:7004"]
                .map(|address| TcpListener::bind(address).unwrap())
        };
        let Some((namespace, listeners)) = inside(listen) else {
            return;
        };
        with_init_in(namespace, |host| async move {
            for listener in listeners {
                let port = listener.local_addr().unwrap().port();
                let server = spawn_blocking(move || {
                    let mut client = listener.accept().unwrap().0;
                    let mut question = String::new();
                    client.read_to_string(&mut question).unwrap();
                    client
                        .write_all(question.to_uppercase().as_bytes())
                        .unwrap();
                });
                let mut stream = connected(&host, port).await;
                stream.write_all(b"question").await.unwrap();
                stream.shutdown().await.unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.unwrap();
                assert_eq!(answer, "QUESTION", "port {port}");
                server.await.unwrap();
            }
        });
    }

    /// A server of init's own namespace has the port: it is not the one that is asked for.
    #[test]
    fn a_port_that_nobody_serves_inside_is_refused_with_a_reason() {
        let Some((namespace, ())) = inside(|| ()) else {
            return;
        };
        let outside = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = outside.local_addr().unwrap().port();
        with_init_in(namespace, |host| async move {
            let (report, mut stream) = dialed(&host, port).await;
            let fits = matches!(&report, DialReport::Refused(why) if why.contains("refused"));
            assert!(fits, "{report:?}");
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        });
    }

    #[test]
    fn resets_are_carried_in_both_directions() {
        let Some((namespace, listener)) = inside(|| TcpListener::bind("127.0.0.1:7001").unwrap())
        else {
            return;
        };
        with_init_in(namespace, |host| async move {
            let server = spawn_blocking(move || {
                let mut client = listener.accept().unwrap().0;
                client.write_all(b"hello").unwrap();
                let by_host = client.read(&mut [0]).unwrap_err().kind();
                // Unread bytes make closing a reset.
                let client = listener.accept().unwrap().0;
                client.peek(&mut [0]).unwrap();
                by_host
            });
            let mut stream = connected(&host, 7001).await;
            stream.read_exact(&mut [0; 5]).await.unwrap();
            drop(stream);
            let mut stream = connected(&host, 7001).await;
            stream.write_all(b"unread").await.unwrap();
            let by_server = stream.read(&mut [0]).await.unwrap_err().kind();
            assert_eq!(by_server, ErrorKind::ConnectionReset);
            assert_eq!(server.await.unwrap(), ErrorKind::ConnectionReset);
        });
    }

    #[test]
    fn a_server_that_does_not_read_holds_back_its_own_client_only() {
        let listen = || ["127.0.0.1:7001", "127.0.0.1:7002"].map(|a| TcpListener::bind(a).unwrap());
        let Some((namespace, [stalled, serving])) = inside(listen) else {
            return;
        };
        with_init_in(namespace, |host| async move {
            let server = spawn_blocking(move || {
                for _ in 0..20 {
                    let mut client = serving.accept().unwrap().0;
                    client.write_all(b"here").unwrap();
                    client.shutdown(Shutdown::Write).unwrap();
                    client.read_to_end(&mut Vec::new()).unwrap();
                }
            });
            let mut stream = connected(&host, 7001).await;
            let _held = stalled.accept().unwrap();
            let mut sent = 0;
            let flood = async {
                loop {
                    sent += stream.write(&[7; 65536]).await.unwrap();
                }
            };
            let others = async {
                for _ in 0..20 {
                    let mut other = connected(&host, 7002).await;
                    let mut answer = String::new();
                    other.read_to_string(&mut answer).await.unwrap();
                    assert_eq!(answer, "here");
                    other.shutdown().await.unwrap();
                }
            };
            tokio::select! { () = flood => {}, () = others => {} }
            server.await.unwrap();
            // The window, the kernel's buffers, no more.
            assert!(sent < 32 << 20, "{sent}");
        });
    }
}
