//! Ports of the host that lead to servers in the bottle, through the control channel.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bottle_wire::client::LaunchPort;
use bottle_wire::guest::{DialReport, FromHost};
use bottle_wire::message;
use bottle_wire::mux::Opener;
use bottle_wire::pump::pump;
use thiserror::Error;
use tokio::io::split;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Connections of all ports together: each is a stream of the one mux, and others need some, too.
const MAX_CONNECTIONS: usize = 128;
/// How long nothing is accepted when the system has no descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

/// Listeners that wait for a bottle; closed when dropped.
#[derive(Debug)]
pub(super) struct Ports(Vec<(TcpListener, LaunchPort)>);

/// A port that cannot be had.
#[derive(Debug, Error)]
#[error("cannot listen on {address} for port {guest} of the bottle")]
pub(super) struct PortError {
    address: SocketAddr,
    guest: u16,
    source: io::Error,
}

/// What to do about the errors that a person can do something about.
const HINTS: [(io::ErrorKind, &str); 3] = [
    (
        io::ErrorKind::AddrInUse,
        "another program listens there; publish another port",
    ),
    (
        io::ErrorKind::AddrNotAvailable,
        "name an address of this host",
    ),
    (
        io::ErrorKind::PermissionDenied,
        "ports below 1024 are root's; publish a higher one",
    ),
];

impl PortError {
    /// Returns what a person can do about it.
    pub(super) fn hint(&self) -> Option<&'static str> {
        let kind = self.source.kind();
        HINTS
            .iter()
            .find(|(known, _)| *known == kind)
            .map(|(_, hint)| *hint)
    }
}

impl Ports {
    /// Listens on all of them.
    ///
    /// # Errors
    ///
    /// [`PortError`] names the first that cannot be had.
    pub(super) async fn bind(wanted: &[LaunchPort]) -> Result<Self, PortError> {
        let mut bound = Vec::new();
        for LaunchPort { host, guest } in wanted {
            let failed = |source| PortError {
                address: *host,
                guest: *guest,
                source,
            };
            let listener = TcpListener::bind(host).await.map_err(failed)?;
            let host = listener.local_addr().map_err(failed)?;
            let guest = *guest;
            bound.push((listener, LaunchPort { host, guest }));
        }
        Ok(Self(bound))
    }

    /// Returns what leads where; ports that the system chose are known now.
    pub(super) fn bound(&self) -> Vec<LaunchPort> {
        self.0.iter().map(|(_, port)| *port).collect()
    }

    /// Carries connections into the bottle, for ever.
    pub(super) async fn serve(self, guest: Opener<FromHost>) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut all = JoinSet::new();
        for (listener, port) in self.0 {
            all.spawn(serve_port(
                listener,
                port.guest,
                guest.clone(),
                Arc::clone(&room),
            ));
        }
        while all.join_next().await.is_some() {}
    }
}

async fn serve_port(
    listener: TcpListener,
    port: u16,
    guest: Opener<FromHost>,
    room: Arc<Semaphore>,
) {
    let mut connections = JoinSet::new();
    loop {
        // Who comes when there is no room waits in the listener's queue.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let Ok((socket, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        let guest = guest.clone();
        connections.spawn(async move {
            if let Err(error) = carry(socket, port, &guest).await {
                tracing::debug!(%error, port, "a connection into the bottle ended");
            }
            drop(permit);
        });
    }
}

/// Carries one connection. Without a server in the bottle the connection is reset.
async fn carry(socket: TcpStream, port: u16, guest: &Opener<FromHost>) -> io::Result<()> {
    let open = guest.open(&FromHost::Dial { port }).await;
    let mut stream = open.map_err(io::Error::other)?;
    match message::read(&mut stream).await? {
        Some(DialReport::Connected) => {}
        Some(DialReport::Refused(why)) => {
            reset(&socket);
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, why));
        }
        None => {
            reset(&socket);
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let (from_host, to_host) = socket.into_split();
    let (from_guest, to_guest) = split(stream);
    let both = async { tokio::try_join!(pump(from_host, to_guest), pump(from_guest, to_host)) };
    both.await.map(|_| ())
}

/// Lets the peer see a reset and no orderly end when the socket is dropped.
fn reset(socket: &TcpStream) {
    // Without it the peer sees an end before the first byte: as good.
    let _ = socket.set_zero_linger();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_is_taken_is_named_and_the_system_may_choose_one() {
        let any = LaunchPort {
            host: ([127, 0, 0, 1], 0).into(),
            guest: 80,
        };
        let first = Ports::bind(&[any]).await.unwrap();
        let taken = first.bound()[0];
        assert_ne!(taken.host.port(), 0);
        let error = Ports::bind(&[any, taken]).await.unwrap_err();
        assert_eq!(error.address, taken.host);
        assert!(error.hint().unwrap().contains("another port"));
    }
}
