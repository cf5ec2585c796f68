//! Moves bytes one way, and tells an end from a refusal.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What is moved at once, in bytes.
const CHUNK: usize = 64 << 10;

/// How a direction ended.
#[expect(
    clippy::exhaustive_enums,
    reason = "there is no third way, and a caller must think of both"
)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pumped {
    /// The source ended, and the sink was told.
    Whole,
    /// The sink took no more. Whatever flows the other way may still be whole: who has ended a
    /// stream and dropped it takes no more, and what it said before has still to arrive.
    Refused,
}

/// Moves bytes until the source ends, and passes the end on, or until the sink takes no more.
///
/// # Errors
///
/// What the source says; nothing of it is passed on then.
///
/// # Cancellation
///
/// What was read and not written is lost; both are of no further use.
pub async fn pump<R, W>(mut source: R, mut sink: W) -> io::Result<Pumped>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; CHUNK];
    loop {
        let bytes = source.read(&mut buffer).await?;
        let taken = match bytes {
            0 => sink.shutdown().await,
            _ => sink.write_all(&buffer[..bytes]).await,
        };
        match taken {
            Ok(()) if bytes == 0 => return Ok(Pumped::Whole),
            Ok(()) => {}
            Err(_) => return Ok(Pumped::Refused),
        }
    }
}
