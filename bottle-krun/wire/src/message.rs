//! Single values on a stream: `u32` little-endian length, then postcard, bounded.
//!
//! A peer's length is believed only as far as bytes follow it: nothing is reserved ahead of them.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 4 << 20;

/// Writes one value and flushes the stream.
///
/// # Errors
///
/// What the stream says; [`io::ErrorKind::InvalidInput`] if it is longer than [`MAX_MESSAGE`].
///
/// # Cancellation
///
/// A part of the message may have been written; the stream is of no further use.
pub async fn write<W: AsyncWrite + Unpin, M: Serialize>(
    stream: &mut W,
    message: &M,
) -> io::Result<()> {
    let bytes = encode(message)?;
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Reads one value; `None` at end of file before its first byte.
///
/// # Errors
///
/// What the stream says; [`io::ErrorKind::UnexpectedEof`] if it ends within the value;
/// [`io::ErrorKind::InvalidData`] for a length over [`MAX_MESSAGE`], for bytes that are no such
/// value, and for bytes left over behind it.
///
/// # Cancellation
///
/// A part of the message may have been read; the stream is of no further use.
pub async fn read<R: AsyncRead + Unpin, M: DeserializeOwned>(
    stream: &mut R,
) -> io::Result<Option<M>> {
    let mut header = [0; 4];
    if stream.read(&mut header[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut header[1..]).await?;
    let length = u32::from_le_bytes(header);
    if length as usize > MAX_MESSAGE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("message of {length} bytes, at most {MAX_MESSAGE} are taken"),
        ));
    }
    let mut body = Vec::new();
    stream
        .take(u64::from(length))
        .read_to_end(&mut body)
        .await?;
    if body.len() < length as usize {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("message of {length} bytes ends after {}", body.len()),
        ));
    }
    decode(&body).map(Some)
}

/// The whole of a message, length included.
fn encode<M: Serialize>(message: &M) -> io::Result<Vec<u8>> {
    let mut bytes = postcard::to_extend(message, vec![0; 4])
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    let length = bytes.len() - 4;
    let (true, Ok(header)) = (length <= MAX_MESSAGE, u32::try_from(length)) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("message of {length} bytes, at most {MAX_MESSAGE} are sent"),
        ));
    };
    bytes[..4].copy_from_slice(&header.to_le_bytes());
    Ok(bytes)
}

/// One value out of exactly these bytes.
pub(crate) fn decode<M: DeserializeOwned>(bytes: &[u8]) -> io::Result<M> {
    let (message, rest) = postcard::take_from_bytes(bytes)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    if rest.is_empty() {
        Ok(message)
    } else {
        let left = rest.len();
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{left} bytes are left over behind a message"),
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use tokio::runtime::Builder;

    use super::*;
    use crate::guest::{Exec, FromHost, Window};

    fn block_on<F: Future>(future: F) -> F::Output {
        Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }

    fn read_all<M: DeserializeOwned>(bytes: &[u8]) -> Vec<io::Result<Option<M>>> {
        block_on(async {
            let mut stream = Cursor::new(bytes);
            let mut results = Vec::new();
            loop {
                let result = read(&mut stream).await;
                let go_on = matches!(result, Ok(Some(_)));
                results.push(result);
                if !go_on {
                    return results;
                }
            }
        })
    }

    #[test]
    fn what_is_written_is_read_and_the_end_is_none() {
        let exec = FromHost::Exec(Exec {
            exec: 7,
            argv: vec!["true".into()],
            env: vec![("A".into(), "b".into())],
            cwd: None,
            user: Some("agent".into()),
            stdin: false,
            tty: Some(Window {
                rows: 24,
                cols: 80,
                ..Window::default()
            }),
        });
        let mut bytes = Vec::new();
        block_on(write(&mut bytes, &exec)).unwrap();
        block_on(write(&mut bytes, &FromHost::Control)).unwrap();
        let read = read_all::<FromHost>(&bytes);
        assert_eq!(read[0].as_ref().unwrap(), &Some(exec));
        assert_eq!(read[1].as_ref().unwrap(), &Some(FromHost::Control));
        assert_eq!(read[2].as_ref().unwrap(), &None);
    }

    #[test]
    fn a_message_cut_anywhere_is_an_unexpected_end() {
        let mut bytes = Vec::new();
        block_on(write(&mut bytes, &"hello".to_owned())).unwrap();
        for cut in 1..bytes.len() {
            let kind = read_all::<String>(&bytes[..cut])[0]
                .as_ref()
                .unwrap_err()
                .kind();
            assert_eq!(kind, io::ErrorKind::UnexpectedEof, "cut at {cut}");
        }
    }

    #[test]
    fn too_long_and_left_over_are_invalid() {
        let kind = |bytes: &[u8]| read_all::<u8>(bytes)[0].as_ref().unwrap_err().kind();
        assert_eq!(kind(&u32::MAX.to_le_bytes()), io::ErrorKind::InvalidData);
        assert_eq!(kind(&[2, 0, 0, 0, 1, 1]), io::ErrorKind::InvalidData);
        let long = vec![0_u8; MAX_MESSAGE];
        let error = block_on(write(&mut Vec::new(), &long)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in vec(any::<u8>(), 0..200)) {
            let _ = read_all::<FromHost>(&bytes);
        }
    }
}
