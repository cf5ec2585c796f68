//! The frames of a mux as bytes: a pure, total codec.
//!
//! ```text
//! kind u8 │ stream u32 le │ value u32 le │ payload
//! 1 Open    its number      payload length  the first message, at most MAX_OPEN
//! 2 Data    "               payload length  1..=MAX_DATA bytes
//! 3 End     "               0               none: the sender's direction is over
//! 4 Reset   "               0               none: both directions are over
//! 5 Credit  "               bytes           none: the sender's reader has consumed so many
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::Violation;

/// The longest payload of a `Data` frame: what one stream may hold up the others for.
pub(crate) const MAX_DATA: usize = 32 << 10;

/// The longest payload of an `Open` frame.
pub(crate) const MAX_OPEN: usize = 1 << 20;

/// Bytes of a header.
pub(crate) const HEADER: usize = 9;

/// One frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Frame {
    Open { stream: u32, message: Bytes },
    Data { stream: u32, bytes: Bytes },
    End { stream: u32 },
    Reset { stream: u32 },
    Credit { stream: u32, bytes: u32 },
}

pub(crate) const OPEN: u8 = 1;
pub(crate) const DATA: u8 = 2;
pub(crate) const END: u8 = 3;
pub(crate) const RESET: u8 = 4;
pub(crate) const CREDIT: u8 = 5;

/// Takes one whole frame from the front of `buffer`; `None` if there is not one yet.
///
/// A wrong header is refused before its payload is waited for, so `buffer` never has to hold more
/// than `HEADER + MAX_OPEN` bytes.
pub(crate) fn decode(buffer: &mut BytesMut) -> Result<Option<Frame>, Violation> {
    let Some(header) = buffer.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let [kind, s0, s1, s2, s3, v0, v1, v2, v3] = *header;
    let stream = u32::from_le_bytes([s0, s1, s2, s3]);
    let value = u32::from_le_bytes([v0, v1, v2, v3]);
    let payload = match kind {
        OPEN if value as usize > MAX_OPEN => return Err(Violation::LongFrame { kind, value }),
        DATA if value as usize > MAX_DATA => return Err(Violation::LongFrame { kind, value }),
        DATA | CREDIT if value == 0 => return Err(Violation::EmptyFrame { kind }),
        END | RESET if value != 0 => return Err(Violation::LongFrame { kind, value }),
        OPEN | DATA => value as usize,
        END | RESET | CREDIT => 0,
        _ => return Err(Violation::UnknownKind { kind }),
    };
    if buffer.len() < HEADER + payload {
        return Ok(None);
    }
    buffer.advance(HEADER);
    let mut take = || buffer.split_to(payload).freeze();
    Ok(Some(match kind {
        OPEN => Frame::Open {
            stream,
            message: take(),
        },
        DATA => Frame::Data {
            stream,
            bytes: take(),
        },
        END => Frame::End { stream },
        RESET => Frame::Reset { stream },
        _ => Frame::Credit {
            stream,
            bytes: value,
        },
    }))
}

/// Appends an `Open` frame; the caller keeps to [`MAX_OPEN`].
pub(crate) fn put_open(out: &mut BytesMut, stream: u32, message: &[u8]) {
    put_payload(out, OPEN, stream, message);
}

/// Appends a `Data` frame; the caller keeps to [`MAX_DATA`].
pub(crate) fn put_data(out: &mut BytesMut, stream: u32, bytes: &[u8]) {
    put_payload(out, DATA, stream, bytes);
}

/// Appends an `End` frame.
pub(crate) fn put_end(out: &mut BytesMut, stream: u32) {
    put_header(out, END, stream, 0);
}

/// Appends a `Reset` frame.
pub(crate) fn put_reset(out: &mut BytesMut, stream: u32) {
    put_header(out, RESET, stream, 0);
}

/// Appends a `Credit` frame.
pub(crate) fn put_credit(out: &mut BytesMut, stream: u32, bytes: u32) {
    put_header(out, CREDIT, stream, bytes);
}

fn put_payload(out: &mut BytesMut, kind: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("payloads are bounded by their constants");
    put_header(out, kind, stream, length);
    out.put_slice(payload);
}

fn put_header(out: &mut BytesMut, kind: u8, stream: u32, value: u32) {
    out.put_u8(kind);
    out.put_u32_le(stream);
    out.put_u32_le(value);
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn encode(frame: &Frame) -> BytesMut {
        let mut out = BytesMut::new();
        match frame {
            Frame::Open { stream, message } => put_open(&mut out, *stream, message),
            Frame::Data { stream, bytes } => put_data(&mut out, *stream, bytes),
            Frame::End { stream } => put_end(&mut out, *stream),
            Frame::Reset { stream } => put_reset(&mut out, *stream),
            Frame::Credit { stream, bytes } => put_credit(&mut out, *stream, *bytes),
        }
        out
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let payload = |min| vec(any::<u8>(), min..300).prop_map(Bytes::from);
        prop_oneof![
            (any::<u32>(), payload(0))
                .prop_map(|(stream, message)| Frame::Open { stream, message }),
            (any::<u32>(), payload(1)).prop_map(|(stream, bytes)| Frame::Data { stream, bytes }),
            any::<u32>().prop_map(|stream| Frame::End { stream }),
            any::<u32>().prop_map(|stream| Frame::Reset { stream }),
            (any::<u32>(), 1..=u32::MAX)
                .prop_map(|(stream, bytes)| Frame::Credit { stream, bytes }),
        ]
    }

    #[test]
    fn wrong_headers_are_refused_before_their_payload_comes() {
        let refused = |bytes: &[u8]| decode(&mut BytesMut::from(bytes)).unwrap_err();
        assert_eq!(refused(&[0; 9]), Violation::UnknownKind { kind: 0 });
        assert_eq!(refused(&[6; 9]), Violation::UnknownKind { kind: 6 });
        let long = |kind| Violation::LongFrame {
            kind,
            value: 0x0100_0000,
        };
        for kind in [OPEN, DATA, END, RESET] {
            assert_eq!(refused(&[kind, 0, 0, 0, 0, 0, 0, 0, 1]), long(kind));
        }
        for kind in [DATA, CREDIT] {
            assert_eq!(
                refused(&[kind, 0, 0, 0, 0, 0, 0, 0, 0]),
                Violation::EmptyFrame { kind }
            );
        }
    }

    proptest! {
        #[test]
        fn frames_survive_any_split(
            frames in vec(frame(), 0..6),
            cuts in vec(1_usize..50, 0..60),
        ) {
            let mut wire: BytesMut = frames.iter().flat_map(encode).collect();
            let mut cuts = cuts.into_iter();
            let mut buffer = BytesMut::new();
            let mut decoded = Vec::new();
            while !wire.is_empty() {
                let take = cuts.next().unwrap_or(wire.len()).min(wire.len());
                buffer.extend_from_slice(&wire.split_to(take));
                while let Some(frame) = decode(&mut buffer).unwrap() {
                    decoded.push(frame);
                }
            }
            prop_assert!(buffer.is_empty());
            prop_assert_eq!(decoded, frames);
        }

        #[test]
        fn hostile_bytes_never_panic_and_always_make_progress(
            bytes in vec(any::<u8>(), 0..400),
        ) {
            let mut buffer = BytesMut::from(bytes.as_slice());
            let mut left = buffer.len();
            while let Ok(Some(_)) = decode(&mut buffer) {
                prop_assert!(buffer.len() < left);
                left = buffer.len();
            }
        }
    }
}
