//! Single values on a stream: `u32` little-endian length, then the value, bounded.
//!
//! How a value is coded is a matter of its type: what is said to a guest is postcard (both ends are
//! of one build), what is said to a client is JSON (a peer of another release reads what it knows).
//! A peer's length is believed only as far as bytes follow it: nothing is reserved ahead of them.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 4 << 20;

/// A value that one end says and the other understands.
pub trait Message: Sized {
    /// Codes it.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] if it cannot be coded.
    fn to_bytes(&self) -> io::Result<Vec<u8>>;

    /// Decodes what exactly these bytes say.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidData`] for bytes that are no such value, and for bytes left over
    /// behind it.
    fn from_bytes(bytes: &[u8]) -> io::Result<Self>;
}

/// Codes types as postcard: compact, and understood by the same build only.
macro_rules! as_postcard {
    ($($name:ty),* $(,)?) => { $(
        impl $crate::message::Message for $name {
            fn to_bytes(&self) -> std::io::Result<Vec<u8>> {
                postcard::to_stdvec(self)
                    .map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidInput, e))
            }

            fn from_bytes(bytes: &[u8]) -> std::io::Result<Self> {
                let invalid = std::io::ErrorKind::InvalidData;
                match postcard::take_from_bytes(bytes) {
                    Ok((message, [])) => Ok(message),
                    Ok((_, rest)) => {
                        let left = rest.len();
                        let text = format!("{left} bytes are left over behind a message");
                        Err(std::io::Error::new(invalid, text))
                    }
                    Err(error) => Err(std::io::Error::new(invalid, error)),
                }
            }
        }
    )* };
}
pub(crate) use as_postcard;

// An end that opens no streams, and the tests.
as_postcard!((), u8, u32, String, Vec<u8>);

/// Codes types as JSON: fields and kinds that a peer does not know are no error.
#[cfg(feature = "client")]
macro_rules! as_json {
    ($($name:ty),* $(,)?) => { $(
        impl $crate::message::Message for $name {
            fn to_bytes(&self) -> std::io::Result<Vec<u8>> {
                serde_json::to_vec(self)
                    .map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidInput, e))
            }

            fn from_bytes(bytes: &[u8]) -> std::io::Result<Self> {
                serde_json::from_slice(bytes)
                    .map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e))
            }
        }
    )* };
}
#[cfg(feature = "client")]
pub(crate) use as_json;

/// Writes one value and flushes the stream.
///
/// # Errors
///
/// What the stream says; [`io::ErrorKind::InvalidInput`] if it is longer than [`MAX_MESSAGE`].
///
/// # Cancellation
///
/// A part of the message may have been written; the stream is of no further use.
pub async fn write<W: AsyncWrite + Unpin, M: Message>(
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
pub async fn read<R: AsyncRead + Unpin, M: Message>(stream: &mut R) -> io::Result<Option<M>> {
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
    M::from_bytes(&body).map(Some)
}

/// The whole of a message, length included.
fn encode<M: Message>(message: &M) -> io::Result<Vec<u8>> {
    let body = message.to_bytes()?;
    let length = body.len();
    let (true, Ok(header)) = (length <= MAX_MESSAGE, u32::try_from(length)) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("message of {length} bytes, at most {MAX_MESSAGE} are sent"),
        ));
    };
    Ok([&header.to_le_bytes(), &body[..]].concat())
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

    fn read_all<M: Message>(bytes: &[u8]) -> Vec<io::Result<Option<M>>> {
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
