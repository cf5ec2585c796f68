//! One TCP connection of the workload's and one stream of the mux, joined.
//!
//! End and reset are carried over in both directions; nothing is read from the workload that the
//! host has not given credit for, but for one buffer.

use std::io;
use std::time::Duration;

use bottle_wire::mux::MuxStream;
use bottle_wire::pump::{Pumped, pump};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncReadExt, split};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::descriptor::Descriptor;

/// Bytes thrown away at once.
const BUFFER: usize = 64 << 10;

/// How long a workload may go on sending what nobody reads after it has its whole answer.
const LINGER: Duration = Duration::from_secs(5);

/// Takes a connection over from tokio, ready for [`relay`].
pub(super) fn adopt(connection: TcpStream) -> io::Result<Descriptor> {
    let connection = Descriptor::new(connection.into_std()?.into())?;
    setsockopt(&connection, sockopt::TcpNoDelay, &true)?;
    Ok(connection)
}

/// Copies in both directions until both are over, or one side was reset: then both are.
pub(super) async fn relay(connection: Descriptor, stream: MuxStream) {
    if both_ways(&connection, stream).await.is_err() {
        connection.reset_when_closed();
    }
}

async fn both_ways(connection: &Descriptor, stream: MuxStream) -> io::Result<()> {
    let (from_host, to_host) = split(stream);
    let (answered, over) = oneshot::channel();
    let up = async {
        let mut workload = connection.clone();
        if pump(&mut workload, to_host).await? == Pumped::Refused {
            discard(workload, over).await;
        }
        io::Result::Ok(())
    };
    let down = async {
        let pumped = pump(from_host, connection.clone()).await?;
        let _ = answered.send(());
        match pumped {
            Pumped::Whole => Ok(()),
            // The kernel says so only of a connection that the workload has left.
            Pumped::Refused => Err(io::ErrorKind::ConnectionReset.into()),
        }
    };
    tokio::select! {
        ended = async { tokio::try_join!(up, down) } => ended.map(|_| ()),
        error = connection.broken() => Err(error),
    }
}

/// Reads on from a workload whose host side listens no longer, as after a refusal in the middle of
/// an upload: closing now would reset the connection, and could take the answer along. Ends with
/// the workload's end, or soon after the answer's.
async fn discard(mut workload: Descriptor, over: oneshot::Receiver<()>) {
    let mut buffer = vec![0; BUFFER];
    let ended = async { while matches!(workload.read(&mut buffer).await, Ok(1..)) {} };
    let lingered = async {
        let _ = over.await;
        sleep(LINGER).await;
    };
    tokio::select! { () = ended => {}, () = lingered => {} }
}
