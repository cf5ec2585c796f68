//! The scanner as a whole: what is found, what is not, and what has left by then.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use proptest::prelude::{any, prop};
use proptest::sample::Index;
use proptest::{prop_assert, prop_assert_eq, proptest};

use super::testing::{github_pat, github_token, github_token_of};
use super::*;

mod families;
mod hold_back;
mod treatments;

/// Awkward in every encoding: a slash, quotes, a blank, more than ASCII.
const VALUE: &str = "sésame/\"ouvre toi\"+?>~0123456789";
const PLAIN: &str = "canary-7f3a9c51e2b84d06";

const ENCODINGS: [ContentEncoding; 5] = [
    ContentEncoding::Brotli,
    ContentEncoding::Deflate,
    ContentEncoding::Gzip,
    ContentEncoding::Identity,
    ContentEncoding::Zstd,
];

fn scanner() -> Scanner {
    let secrets = [("value", VALUE), ("plain", PLAIN)];
    Scanner::new(&secrets.map(|(name, value)| Secret::new(name, value).unwrap())).unwrap()
}

fn found(text: impl AsRef<[u8]>) -> Option<String> {
    scanner()
        .scan_text(text.as_ref())
        .map(|finding| finding.name)
}

#[track_caller]
fn assert_found(text: impl AsRef<[u8]>, name: &str) {
    let text = text.as_ref();
    assert_eq!(
        found(text).as_deref(),
        Some(name),
        "{}",
        text.escape_ascii()
    );
}

/// What came of pushing a body in pieces.
#[derive(Debug, Eq, PartialEq)]
struct Outcome {
    released: Vec<u8>,
    refusal: Option<ScanRefusal>,
}

fn push_all<'a>(
    scanner: &Scanner,
    encoding: ContentEncoding,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Outcome {
    let mut scan = scanner.stream(encoding, Treatment::Refuse);
    let mut released = Vec::new();
    for piece in pieces {
        match scan.push(Bytes::copy_from_slice(piece)) {
            Ok(out) => released.extend(out.concat()),
            Err(refusal) => {
                assert_eq!(scan.push(Bytes::from_static(b"x")), Err(refusal.clone()));
                assert_eq!(scan.finish(), Err(refusal.clone()));
                return Outcome {
                    released,
                    refusal: Some(refusal),
                };
            }
        }
    }
    let refusal = match scan.finish() {
        Ok(out) => {
            released.extend(out.concat());
            None
        }
        Err(refusal) => Some(refusal),
    };
    Outcome { released, refusal }
}

fn encode(encoding: ContentEncoding, body: &[u8]) -> Vec<u8> {
    match encoding {
        ContentEncoding::Brotli => stored_brotli(body),
        ContentEncoding::Deflate => {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(body).unwrap();
            encoder.finish().unwrap()
        }
        ContentEncoding::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(body).unwrap();
            encoder.finish().unwrap()
        }
        ContentEncoding::Identity => body.to_vec(),
        ContentEncoding::Zstd => zstd::encode_all(body, 3).unwrap(),
    }
}

/// A brotli stream of uncompressed meta-blocks: a window of 16 bits, the lengths, the bytes.
fn stored_brotli(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (index, block) in body.chunks(1 << 16).enumerate() {
        let length = u32::try_from(block.len() - 1).unwrap();
        // Not last, four nibbles, the length, uncompressed; the first has the window's bit before.
        let header = length << 3 | 1 << 19;
        let header = if index == 0 { header << 1 } else { header };
        out.extend(&header.to_le_bytes()[..3]);
        out.extend(block);
    }
    out.push(if body.is_empty() { 0b110 } else { 0b11 });
    out
}

fn base64(bytes: &[u8], alphabet: &str) -> String {
    let alphabet: Vec<char> = alphabet.chars().collect();
    let mut bits = String::new();
    bytes.iter().for_each(|b| bits += &format!("{b:08b}"));
    bits += &"0".repeat((6 - bits.len() % 6) % 6);
    let groups = (0..bits.len() / 6).map(|n| usize::from_str_radix(&bits[n * 6..n * 6 + 6], 2));
    groups.map(|index| alphabet[index.unwrap()]).collect()
}

const STANDARD: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL_SAFE: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

fn json_escaped(text: &str) -> String {
    text.encode_utf16()
        .map(|unit| format!("\\u{unit:04x}"))
        .collect()
}

#[test]
fn every_github_prefix_is_found_wherever_the_token_stands() {
    for prefix in ["ghp_", "gho_", "ghu_", "ghs_", "ghr_"] {
        let token = github_token_of(prefix, 7);
        for text in [
            token.clone(),
            format!("Bearer {token}"),
            format!("/a?b={token}&c"),
            format!("x{token}yz"),
            format!("\u{1b}[0m{token}"),
            format!("{{\"a\":\"\\n{token}\\n\"}}"),
            format!("ghp_ghp_{token}"),
            format!("github_pat_11AAAAAAAAAAAAAAAA{token}"),
        ] {
            assert_found(text, "GitHub Token");
        }
    }
    for text in [
        github_pat(),
        format!("({})", github_pat()),
        format!("_{}\n", github_pat()),
    ] {
        assert_found(text, "GitHub Fine-Grained PAT");
    }
}

#[test]
fn an_escaped_token_is_found() {
    let token = github_token();
    let percent: String = token.bytes().map(|b| format!("%{b:02X}")).collect();
    assert_found(&percent, "GitHub Token");
    assert_found(token.replace('_', "%5f"), "GitHub Token");
    assert_found(json_escaped(&token), "GitHub Token");
    assert_found(json_escaped(&json_escaped(&token)), "GitHub Token");
    assert_found(
        format!("\"{}\\n\"", json_escaped(&github_pat())),
        "GitHub Fine-Grained PAT",
    );
}

#[test]
fn what_only_looks_like_a_token_is_none() {
    let token = github_token();
    let mut wrong = token.clone().into_bytes();
    wrong[9] ^= 1;
    assert_eq!(found(&wrong), None, "wrong checksum");
    for text in [
        &token[..token.len() - 1],
        &token.to_uppercase(),
        &token.replace("ghp_", "ghp-"),
        &token.replace("ghp_", "GHP_"),
        &format!("{}x", github_pat()),
        &github_pat()[..github_pat().len() - 1],
        "ghp_",
        "github_pat_",
        "",
    ] {
        assert_eq!(found(text), None, "{text}");
    }
}

#[test]
fn a_known_value_is_found_in_every_encoding() {
    for value in [VALUE, PLAIN] {
        let name = if value == VALUE { "value" } else { "plain" };
        let name = format!("Known Secret Leak ({name})");
        let bytes = value.as_bytes();
        assert_found(format!("a{value}b"), &name);
        for alphabet in [STANDARD, URL_SAFE] {
            for before in ["", "u", "us", "user:"] {
                let encoded = base64(format!("{before}{value}!").as_bytes(), alphabet);
                assert_found(&encoded, &name);
                assert_found(encoded.replace('+', "%2B").replace('/', "%2f"), &name);
                assert_found(encoded.replace('/', "\\/"), &name);
                for width in [4, 19, 20] {
                    let lines: Vec<_> = encoded.as_bytes().chunks(width).collect();
                    assert_found(lines.join(&b'\n'), &name);
                    assert_found(lines.join(&b"\r\n"[..]), &name);
                    assert_found(lines.join(&b"\\n"[..]), &name);
                }
            }
        }
        let hex = |upper| -> String {
            let digits = bytes.iter().map(|b| {
                if upper {
                    format!("{b:02X}")
                } else {
                    format!("{b:02x}")
                }
            });
            digits.collect()
        };
        assert_found(hex(false), &name);
        assert_found(hex(true), &name);
        let percent: String = bytes.iter().map(|b| format!("%{b:02x}")).collect();
        assert_found(&percent, &name);
        let form: String = value
            .bytes()
            .map(|b| match b {
                b' ' => "+".to_owned(),
                b'a'..=b'z' | b'0'..=b'9' => char::from(b).to_string(),
                _ => format!("%{b:02X}"),
            })
            .collect();
        assert_found(form, &name);
        let json = serde_json::to_string(value).unwrap();
        assert_found(&json, &name);
        assert_found(serde_json::to_string(&json).unwrap(), &name);
        assert_found(json_escaped(value), &name);
    }
}

#[test]
fn white_space_around_a_known_value_does_not_hide_it() {
    let secrets = [Secret::new("file", "  0123456789\n").unwrap()];
    let pem = "-----BEGIN X-----\nAAAABBBB\nCCCC\n-----END X-----\n";
    let pem = [Secret::new("pem", pem).unwrap()];
    assert!(
        Scanner::new(&secrets)
            .unwrap()
            .scan_text(b"x0123456789x")
            .is_some()
    );
    let crlf = b"-----BEGIN X-----\r\nAAAABBBB\r\nCCCC\r\n-----END X-----";
    assert!(Scanner::new(&pem).unwrap().scan_text(crlf).is_some());
}

#[test]
fn many_long_values_are_taken_and_far_too_many_are_an_error() {
    let values = |count: usize| -> Vec<Secret> {
        let text = |n: usize| format!("{n:07}-{}", "x".repeat(5000));
        (0..count)
            .map(|n| Secret::new(format!("n{n}"), text(n)).unwrap())
            .collect()
    };
    let scanner = Scanner::new(&values(20)).unwrap();
    let begin = format!("0000019-{}", "x".repeat(400));
    let finding = scanner.scan_text(begin.as_bytes()).unwrap();
    assert_eq!(finding.name, "Known Secret Leak (n19)");
    assert_eq!(
        Scanner::new(&values(2000)).unwrap_err(),
        ScannerError::TooMuch
    );
}

#[test]
fn a_secret_in_an_encoded_body_is_found_and_its_end_has_not_left() {
    let scanner = scanner();
    let token = github_token();
    let body = [
        b"some text ".repeat(900),
        token.clone().into(),
        b"\nmore".repeat(9000),
    ]
    .concat();
    for encoding in ENCODINGS {
        let encoded = encode(encoding, &body);
        for size in [1, 7, 1000, encoded.len()] {
            let outcome = push_all(&scanner, encoding, encoded.chunks(size));
            let expected = ScanRefusal::Secret(Finding {
                name: "GitHub Token".into(),
            });
            assert_eq!(outcome.refusal, Some(expected), "{encoding:?} {size}");
            // Whoever has what left and knows the format does not have the token.
            let mut seen = Vec::new();
            if let Some(mut codec) = codec_of(encoding) {
                let mut rest = &outcome.released[..];
                while let Ok(taken @ 1..) = codec.decode(rest, &mut |piece| {
                    seen.extend(piece);
                    Ok(())
                }) {
                    rest = &rest[taken..];
                }
            } else {
                seen.clone_from(&outcome.released);
            }
            let text = String::from_utf8_lossy(&seen);
            assert!(!text.contains(&token[..8]), "{encoding:?} {size}");
            let raw = String::from_utf8_lossy(&outcome.released);
            assert!(!raw.contains(&token[..8]), "{encoding:?} {size}");
        }
    }
}

fn codec_of(encoding: ContentEncoding) -> Option<codec::Codec> {
    match encoding {
        ContentEncoding::Brotli => Some(codec::Codec::brotli()),
        ContentEncoding::Deflate => Some(codec::Codec::deflate()),
        ContentEncoding::Gzip => Some(codec::Codec::gzip()),
        ContentEncoding::Identity => None,
        ContentEncoding::Zstd => codec::Codec::zstd(),
    }
}

#[test]
fn an_encoded_body_without_a_secret_leaves_unchanged() {
    let scanner = scanner();
    let body: Vec<u8> = (0..300_000_u32)
        .flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 20).to_le_bytes())
        .collect();
    for encoding in ENCODINGS {
        let encoded = encode(encoding, &body);
        for size in [997, 16 << 10, encoded.len()] {
            let outcome = push_all(&scanner, encoding, encoded.chunks(size));
            assert_eq!(outcome.refusal, None, "{encoding:?} {size}");
            assert_eq!(outcome.released, encoded, "{encoding:?} {size}");
        }
    }
}

#[test]
fn a_body_that_ends_where_the_decoder_s_buffer_does_leaves_whole() {
    let scanner = scanner();
    for encoding in ENCODINGS {
        for length in [16 << 10, 64 << 10, 128 << 10, 256 << 10] {
            let encoded = encode(encoding, &b"line\n--".repeat(length / 7 + 1)[..length]);
            let outcome = push_all(&scanner, encoding, [&encoded[..]]);
            assert_eq!(outcome.refusal, None, "{encoding:?} {length}");
            assert_eq!(outcome.released, encoded, "{encoding:?} {length}");
        }
    }
}

#[test]
fn bare_deflate_members_frames_and_empty_bodies_are_understood() {
    let scanner = scanner();
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(github_token().as_bytes()).unwrap();
    let bare = encoder.finish().unwrap();
    let refusal = |encoding, body: &[u8]| push_all(&scanner, encoding, [body]).refusal;
    let is_secret = |refusal| matches!(refusal, Some(ScanRefusal::Secret(_)));
    assert!(is_secret(refusal(ContentEncoding::Deflate, &bare)));
    for encoding in [ContentEncoding::Gzip, ContentEncoding::Zstd] {
        let members = [
            encode(encoding, b"harmless"),
            encode(encoding, github_token().as_bytes()),
        ];
        assert!(
            is_secret(refusal(encoding, &members.concat())),
            "{encoding:?}"
        );
    }
    for encoding in ENCODINGS {
        assert_eq!(
            refusal(encoding, &encode(encoding, b"")),
            None,
            "{encoding:?}"
        );
        assert_eq!(refusal(encoding, b""), None, "{encoding:?}");
    }
}

#[test]
fn a_secret_beside_the_encoded_data_is_found() {
    let scanner = scanner();
    let token = github_token();
    let mut comment = flate2::GzBuilder::new()
        .comment(token.as_bytes())
        .write(Vec::new(), Compression::fast());
    comment.write_all(b"harmless").unwrap();
    let mut skippable = 0x184d_2a50_u32.to_le_bytes().to_vec();
    skippable.extend(u32::try_from(token.len()).unwrap().to_le_bytes());
    skippable.extend(token.as_bytes());
    for (encoding, body) in [
        (ContentEncoding::Gzip, comment.finish().unwrap()),
        (ContentEncoding::Zstd, skippable),
    ] {
        let outcome = push_all(&scanner, encoding, body.chunks(5));
        assert!(
            matches!(outcome.refusal, Some(ScanRefusal::Secret(_))),
            "{encoding:?}"
        );
        assert!(!String::from_utf8_lossy(&outcome.released).contains(&token[..8]));
    }
}

#[test]
fn a_body_that_is_not_what_it_says_is_refused() {
    let scanner = scanner();
    let body = encode(ContentEncoding::Identity, &b"some body ".repeat(100));
    for encoding in ENCODINGS {
        if encoding == ContentEncoding::Identity {
            continue;
        }
        let whole = encode(encoding, &body);
        let cut = &whole[..whole.len() - 1];
        let trailing = [&whole[..], b"trailing bytes"].concat();
        for wrong in [cut, &trailing, &body] {
            let outcome = push_all(&scanner, encoding, wrong.chunks(11));
            assert_eq!(
                outcome.refusal,
                Some(ScanRefusal::Undecodable),
                "{encoding:?}"
            );
        }
    }
}

#[test]
fn a_bomb_is_refused_before_it_has_gone_off() {
    let scanner = scanner();
    let zeros = vec![0; 32 << 20];
    for encoding in [
        ContentEncoding::Deflate,
        ContentEncoding::Gzip,
        ContentEncoding::Zstd,
    ] {
        let outcome = push_all(&scanner, encoding, encode(encoding, &zeros).chunks(4096));
        assert_eq!(outcome.refusal, Some(ScanRefusal::Bomb), "{encoding:?}");
    }
}

#[test]
fn what_waits_is_bounded_whatever_is_sent() {
    let scanner = scanner();
    let value = base64(VALUE.as_bytes(), STANDARD);
    let half = &value[..value.len() - 1];
    let twice = json_escaped(&json_escaped(half));
    let mut scan = scanner.stream(ContentEncoding::Identity, Treatment::Refuse);
    let mut waiting = 0;
    for text in [
        half.as_bytes(),
        twice.as_bytes(),
        &b"\n".repeat(100_000),
        &b"\\n".repeat(100_000),
    ] {
        for byte in text {
            waiting += 1;
            let out = scan.push(Bytes::copy_from_slice(&[*byte])).unwrap();
            waiting -= out.concat().len();
            assert!(waiting <= 64 << 10, "{waiting}");
        }
    }
    assert!(waiting < 8, "{waiting}");
    // Blocks that decode to nothing while a match is live.
    let mut gzip = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    gzip.extend([0, 4, 0, 0xfb, 0xff]);
    gzip.extend(b"ghp_");
    gzip.extend([0, 0, 0, 0xff, 0xff].repeat(100_000));
    let outcome = push_all(&scanner, ContentEncoding::Gzip, gzip.chunks(4096));
    assert_eq!(outcome.refusal, Some(ScanRefusal::Undecodable));
}

#[test]
fn encodings_are_parsed_as_http_writes_them() {
    for (value, expected) in [
        ("", Some(ContentEncoding::Identity)),
        (" Identity ", Some(ContentEncoding::Identity)),
        ("GZIP", Some(ContentEncoding::Gzip)),
        ("x-gzip", Some(ContentEncoding::Gzip)),
        ("deflate", Some(ContentEncoding::Deflate)),
        ("br", Some(ContentEncoding::Brotli)),
        ("zstd", Some(ContentEncoding::Zstd)),
        ("gzip, gzip", None),
        ("compress", None),
        ("aws-chunked", None),
    ] {
        assert_eq!(
            ContentEncoding::parse(value.as_bytes()),
            expected,
            "{value}"
        );
    }
}

/// Splits at the given places.
fn pieces<'a>(body: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<_> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
    places.extend([0, body.len()]);
    places.sort_unstable();
    places
        .windows(2)
        .map(|pair| &body[pair[0]..pair[1]])
        .collect()
}

/// A fragment that starts, continues, escapes or breaks a match.
fn fragment(kind: u8) -> Vec<u8> {
    let token = github_token();
    match kind % 12 {
        0 => token.into(),
        1 => token[..20].into(),
        2 => token[20..].into(),
        3 => b"%67%68".to_vec(),
        4 => json_escaped(&token[..9]).into(),
        5 => PLAIN.as_bytes()[..12].to_vec(),
        6 => PLAIN.as_bytes()[12..].to_vec(),
        7 => base64(PLAIN.as_bytes(), URL_SAFE).into_bytes(),
        8 => b"\\\\".to_vec(),
        9 => b"\r\n".to_vec(),
        10 => b"g%5cu0".to_vec(),
        _ => vec![kind],
    }
}

proptest! {
    #[test]
    fn where_a_body_is_split_changes_nothing(
        kinds in prop::collection::vec(any::<u8>(), 0..8),
        cuts in prop::collection::vec(any::<Index>(), 0..12),
        which in 0..ENCODINGS.len(),
    ) {
        let scanner = scanner();
        let body: Vec<u8> = kinds.iter().flat_map(|kind| fragment(*kind)).collect();
        let encoding = ENCODINGS[which];
        let encoded = encode(encoding, &body);
        let whole = push_all(&scanner, encoding, [&encoded[..]]);
        let split = push_all(&scanner, encoding, pieces(&encoded, &cuts));
        let each = push_all(&scanner, encoding, encoded.chunks(1));
        prop_assert_eq!(&whole.refusal, &split.refusal);
        prop_assert_eq!(&whole.refusal, &each.refusal);
        prop_assert_eq!(whole.refusal.is_some(), scanner.scan_text(&body).is_some());
        for outcome in [&split, &each] {
            if outcome.refusal.is_none() {
                prop_assert_eq!(&outcome.released, &encoded);
            } else {
                prop_assert!(encoded.starts_with(&outcome.released));
                // What left has no secret in it, and has none when read to its end either.
                let left = push_all(&scanner, ContentEncoding::Identity, [&outcome.released[..]]);
                prop_assert_eq!(left.refusal, None);
            }
        }
    }

    #[test]
    fn any_bytes_in_any_encoding_end_in_a_verdict(
        noise in prop::collection::vec(any::<u8>(), 0..300),
        damage in any::<(Index, u8)>(),
        which in 0..ENCODINGS.len(),
        is_noise in any::<bool>(),
    ) {
        let encoding = ENCODINGS[which];
        let mut body = if is_noise { noise } else { encode(encoding, &noise.repeat(20)) };
        if !body.is_empty() {
            let at = damage.0.index(body.len());
            body[at] = damage.1;
        }
        let outcome = push_all(&scanner(), encoding, body.chunks(13));
        prop_assert!(outcome.refusal.is_some() || outcome.released == body);
    }
}
