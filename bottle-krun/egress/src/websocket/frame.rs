//! Heads of WebSocket frames (RFC 6455 §5.2), read and written. Pure; no extension is understood.

/// What stands before a frame's payload.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Head {
    pub(super) is_final: bool,
    pub(super) kind: Kind,
    pub(super) mask: Option<[u8; 4]>,
    pub(super) length: u64,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Continuation,
    /// The beginning of a message: text or binary, by its number.
    Data(u8),
    /// Close, ping or pong, by its number.
    Control(u8),
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Data(number) | Self::Control(number) => number,
        }
    }
}

/// The bytes are no frame that this side may send.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Broken;

/// Reads a head; `None` if more bytes are needed, else with the number of its bytes.
///
/// A guest masks its frames and an upstream does not.
pub(super) fn read(bytes: &[u8], is_masked: bool) -> Result<Option<(Head, usize)>, Broken> {
    let [first, second, rest @ ..] = bytes else {
        return Ok(None);
    };
    let kind = match first & 0x0f {
        0 => Kind::Continuation,
        number @ (1 | 2) => Kind::Data(number),
        number @ 8..=10 => Kind::Control(number),
        _ => return Err(Broken),
    };
    let is_final = first & 0x80 != 0;
    if first & 0x70 != 0 || (second & 0x80 != 0) != is_masked {
        return Err(Broken);
    }
    let (length, width) = match second & 0x7f {
        126 => (number(rest, 2), 2),
        127 => (number(rest, 8), 8),
        short => (Some(u64::from(short)), 0),
    };
    let Some(length) = length else {
        return Ok(None);
    };
    // The shortest form, and none with a sign.
    let least = match width {
        0 => 0,
        2 => 126,
        _ => 1 << 16,
    };
    let is_odd_control = matches!(kind, Kind::Control(_)) && (!is_final || length > 125);
    if length < least || length >> 63 != 0 || is_odd_control {
        return Err(Broken);
    }
    let mut size = 2 + width;
    let mask = if is_masked {
        let Some(mask) = bytes.get(size..).and_then(<[u8]>::first_chunk::<4>) else {
            return Ok(None);
        };
        size += 4;
        Some(*mask)
    } else {
        None
    };
    let head = Head {
        is_final,
        kind,
        mask,
        length,
    };
    Ok(Some((head, size)))
}

/// Appends a frame.
pub(super) fn write(out: &mut Vec<u8>, head: Head, payload: &[u8]) {
    let Head {
        is_final,
        kind,
        mask,
        length,
    } = head;
    let masked = if mask.is_some() { 0x80 } else { 0 };
    out.push(if is_final { 0x80 } else { 0 } | kind.number());
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..126), _) => out.push(masked | short),
        (_, Ok(middle)) => {
            out.push(masked | 126);
            out.extend(middle.to_be_bytes());
        }
        (_, Err(_)) => {
            out.push(masked | 127);
            out.extend(length.to_be_bytes());
        }
    }
    let start = match mask {
        Some(mask) => {
            out.extend(mask);
            out.len()
        }
        None => out.len(),
    };
    out.extend_from_slice(payload);
    if let Some(mask) = mask {
        apply(mask, 0, &mut out[start..]);
    }
}

/// Masks or unmasks a part of a payload that begins at `offset`.
pub(super) fn apply(mask: [u8; 4], offset: u64, bytes: &mut [u8]) {
    for (byte, at) in bytes.iter_mut().zip(offset..) {
        *byte ^= mask[(at & 3) as usize];
    }
}

fn number(bytes: &[u8], width: usize) -> Option<u64> {
    let digits = bytes.get(..width)?;
    Some(
        digits
            .iter()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop};
    use proptest::{prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn what_no_peer_may_send_is_broken() {
        for (bytes, is_masked) in [
            (&[0x81, 0x05][..], true),
            (&[0x81, 0x85, 1, 2, 3, 4], false),
            (&[0xc1, 0x00], false),
            (&[0x83, 0x00], false),
            (&[0x8b, 0x00], false),
            (&[0x09, 0x00], false),
            (&[0x89, 126, 0, 126], false),
            (&[0x82, 126, 0, 125], false),
            (&[0x82, 127, 0, 0, 0, 0, 0, 0, 255, 255], false),
            (&[0x82, 127, 128, 0, 0, 0, 0, 0, 0, 0], false),
        ] {
            assert_eq!(read(bytes, is_masked), Err(Broken), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(
            is_final in any::<bool>(), which in 0..4_u8, mask in any::<Option<[u8; 4]>>(),
            payload in prop::collection::vec(any::<u8>(), 0..300), huge in any::<bool>(),
        ) {
            let kind = match which {
                0 => Kind::Continuation,
                3 => Kind::Control(9),
                number => Kind::Data(number),
            };
            let payload = if huge { payload.repeat(400) } else { payload };
            let is_control = which == 3;
            let payload = if is_control { &payload[..payload.len().min(125)] } else { &payload };
            let head = Head { is_final: is_final || is_control, kind, mask, length: payload.len() as u64 };
            let mut bytes = Vec::new();
            write(&mut bytes, head, payload);
            let (read_head, size) = read(&bytes, mask.is_some()).unwrap().unwrap();
            prop_assert_eq!(read_head, head);
            if let Some(mask) = mask {
                apply(mask, 0, &mut bytes[size..]);
            }
            prop_assert_eq!(&bytes[size..], payload);
            for end in 0..size {
                prop_assert_eq!(read(&bytes[..end], mask.is_some()), Ok(None));
            }
        }

        #[test]
        fn any_bytes_are_read_to_a_verdict(bytes in prop::collection::vec(any::<u8>(), 0..20), is_masked in any::<bool>()) {
            let _ = read(&bytes, is_masked);
        }
    }
}
