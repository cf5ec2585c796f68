//! The forms in which a known value may travel.
//!
//! Percent-encoding and JSON escapes are no forms here: every byte can be written in several ways
//! in them, so the [`lane`](super::lane)s undo them instead.

use std::collections::BTreeSet;

/// So many bytes of a value are looked for in requests. A longer one has leaked when its beginning
/// has.
pub(super) const BEGINNING: usize = 384;

/// So many bytes of a value are looked for in answers, from which all of it has to be taken.
pub(super) const WHOLE: usize = 4 << 10;

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Returns every byte string that gives the value away, each once.
///
/// White space around a value is not looked for: a file's last newline is not part of its secret.
pub(super) fn forms(value: &[u8], min: usize, most: usize) -> BTreeSet<Vec<u8>> {
    let trimmed = value.trim_ascii();
    let value = if trimmed.len() < min { value } else { trimmed };
    let value = &value[..value.len().min(most)];
    let mut forms = BTreeSet::from([value.to_vec()]);
    for alphabet in [STANDARD, URL_SAFE] {
        forms.extend((0..3).map(|offset| base64_core(value, offset, alphabet)));
    }
    forms.insert(hex(value, b"0123456789abcdef"));
    forms.insert(hex(value, b"0123456789ABCDEF"));
    // A form field writes a blank as `+`.
    forms.insert(
        value
            .iter()
            .map(|b| if *b == b' ' { b'+' } else { *b })
            .collect(),
    );
    // The unwrapping lane drops line ends, the value's own too.
    let flat: Vec<u8> = value
        .iter()
        .copied()
        .filter(|b| !matches!(b, b'\r' | b'\n'))
        .collect();
    if flat.len() >= min {
        forms.insert(flat);
    }
    forms
}

/// Returns the base64 characters that the value alone decides when `offset` bytes precede it in
/// its group of three.
fn base64_core(value: &[u8], offset: usize, alphabet: &[u8; 64]) -> Vec<u8> {
    let mut padded = vec![0; offset];
    padded.extend_from_slice(value);
    let first = (offset * 8).div_ceil(6);
    let end = padded.len() * 8 / 6;
    base64(&padded, alphabet)[first..end].to_vec()
}

/// Encodes without padding.
fn base64(bytes: &[u8], alphabet: &[u8; 64]) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |index| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for index in 0..=group.len() {
            text.push(alphabet[(bits >> (18 - 6 * index) & 63) as usize]);
        }
    }
    text
}

fn hex(bytes: &[u8], digits: &[u8; 16]) -> Vec<u8> {
    bytes
        .iter()
        .flat_map(|b| [digits[usize::from(b >> 4)], digits[usize::from(b & 15)]])
        .collect()
}
