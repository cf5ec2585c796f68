//! Captured TCP connections: each becomes a flow of the mux.
//!
//! What the workload dialled is the accepted socket's own address, since every address is local
//! here. End and reset are carried over in both directions; nothing is read from the workload that
//! the host has not given credit for, but for one buffer.

use std::io;
use std::net::TcpListener as StdListener;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bottle_wire::guest::FromGuest;
use bottle_wire::mux::{MuxStream, Opener};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;
use tokio::time::sleep;

use crate::error::{InitError, failed};

/// Bytes copied at once.
const BUFFER: usize = 32 << 10;

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
async fn carry(mut client: TcpStream, opener: &Opener<FromGuest>) {
    let opened = match client.local_addr() {
        Ok(destination) => opener.open(&FromGuest::Flow { destination }).await.ok(),
        Err(_) => None,
    };
    let carried = match opened {
        Some(stream) => {
            let _ = client.set_nodelay(true);
            relay(&mut client, stream).await
        }
        None => Err(io::ErrorKind::ConnectionReset.into()),
    };
    if carried.is_err() {
        let _ = client.set_zero_linger();
    }
}

/// Copies in both directions until both have ended, or one has broken: then both are over.
async fn relay(client: &mut TcpStream, stream: MuxStream) -> io::Result<()> {
    let (from_client, to_client) = client.split();
    let (from_host, to_host) = split(stream);
    tokio::try_join!(copy(from_client, to_host), copy(from_host, to_client))?;
    Ok(())
}

/// Copies until the end, and passes that on.
pub(crate) async fn copy<R, W>(mut reader: R, mut writer: W) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = reader.read(&mut buffer).await?;
        if length == 0 {
            return writer.shutdown().await;
        }
        writer.write_all(&buffer[..length]).await?;
    }
}
