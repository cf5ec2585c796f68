//! Captured TCP connections: each becomes a flow of the mux. What the workload dialled is the
//! accepted socket's own address, since every address is local here.

use std::io;
use std::net::TcpListener as StdListener;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bottle_wire::guest::FromGuest;
use bottle_wire::mux::Opener;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::relay::{adopt, relay};
use crate::error::{InitError, failed};

/// Before accepting is tried again when the system has no room for another connection.
const BREATH: Duration = Duration::from_millis(50);

/// Takes a listening socket into the current runtime.
pub(crate) fn listener(fd: OwnedFd) -> Result<TcpListener, InitError> {
    TcpListener::from_std(StdListener::from(fd)).map_err(failed("use", "a listening socket"))
}

/// Accepts for ever.
pub(crate) fn start(listener: TcpListener, opener: Opener<FromGuest>) {
    spawn_local(async move {
        loop {
            match listener.accept().await {
                Ok((client, _)) => {
                    let opener = opener.clone();
                    spawn_local(async move { carry(client, &opener).await });
                }
                Err(_) => sleep(BREATH).await,
            }
        }
    });
}

/// Carries one connection to the host. Whatever breaks on one side is a reset on the other.
async fn carry(client: TcpStream, opener: &Opener<FromGuest>) -> io::Result<()> {
    let destination = client.local_addr()?;
    let client = adopt(client)?;
    match opener.open(&FromGuest::Flow { destination }).await {
        Ok(stream) => relay(client, stream).await,
        Err(_) => client.reset_when_closed(),
    }
    Ok(())
}
