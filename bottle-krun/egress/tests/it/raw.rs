//! Bytes as a test writes them by hand: frames of a WebSocket, the beginning of a handshake.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Writes a WebSocket frame; `first` is its first byte.
pub(crate) fn frame(first: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    let mut out = vec![first];
    match u16::try_from(payload.len()).unwrap() {
        short @ ..126 => out.push(masked | u8::try_from(short).unwrap()),
        middle => {
            out.push(masked | 126);
            out.extend(middle.to_be_bytes());
        }
    }
    out.extend(mask.into_iter().flatten());
    let mask = mask.unwrap_or_default();
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
    out
}

/// Reads a WebSocket frame: its first byte and its payload, unmasked.
pub(crate) async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(u8, Vec<u8>)> {
    let first = stream.read_u8().await?;
    let second = stream.read_u8().await?;
    let length = match second & 0x7f {
        126 => usize::from(stream.read_u16().await?),
        127 => usize::try_from(stream.read_u64().await?).unwrap(),
        short => usize::from(short),
    };
    let mut mask = [0; 4];
    if second & 0x80 != 0 {
        stream.read_exact(&mut mask).await?;
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    let masked = payload.iter_mut().zip(mask.iter().cycle());
    masked.for_each(|(byte, mask)| *byte ^= mask);
    Ok((first, payload))
}

/// The beginning of a TLS handshake for a name, with further extensions; no server can end it.
pub(crate) fn hello_with(name: &str, more: &[(u16, &[u8])]) -> Vec<u8> {
    let sized = |bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
        [&length[..], bytes].concat()
    };
    let entry = [&[0][..], &sized(name.as_bytes())].concat();
    let mut extensions = [&[0, 0][..], &sized(&sized(&entry))].concat();
    for (kind, content) in more {
        extensions.extend(kind.to_be_bytes());
        extensions.extend(sized(content));
    }
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0, 0, 2, 0x13, 1, 1, 0],
        &sized(&extensions),
    ];
    let message = [&[1, 0][..], &sized(&body.concat())].concat();
    [&[22, 3, 1][..], &sized(&message)].concat()
}
