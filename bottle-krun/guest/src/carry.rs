//! One direction between a stream of the host's and whatever is inside.

use std::future::pending;
use std::io;

use bottle_wire::mux::MuxStream;
use bottle_wire::pump::{Pumped, pump};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};

/// Carries what is said inside to the host, until nobody can say anything any more or the host
/// does not listen any more, even while nothing is said.
pub(crate) async fn drain(output: impl AsyncRead + Unpin, stream: MuxStream) -> io::Result<Pumped> {
    let (mut other, writer) = split(stream);
    let given_up = async {
        loop {
            match other.read(&mut [0; 64]).await {
                Ok(0) => pending().await,
                Ok(_) => {}
                Err(_) => return,
            }
        }
    };
    tokio::select! {
        pumped = pump(output, writer) => pumped,
        () = given_up => Ok(Pumped::Refused),
    }
}

/// Carries what the host says inside. If nobody there wants to hear more, the stream is reset.
pub(crate) async fn feed(
    mut stream: MuxStream,
    input: impl AsyncWrite + Unpin,
) -> io::Result<Pumped> {
    stream.shutdown().await?;
    pump(&mut stream, input).await
}
