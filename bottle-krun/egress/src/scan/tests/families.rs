//! Every row of the table finds its tokens; what only looks like one passes.

use std::fs;
use std::path::Path;

use super::super::family::testing::Chance;
use super::super::family::{FAMILIES, Family};
use super::*;

/// A scanner without known values.
fn tokens() -> Scanner {
    Scanner::new(&[]).unwrap()
}

#[track_caller]
fn assert_token(family: &Family, text: &str) {
    let found = tokens().scan_text(text.as_bytes());
    let found = found.map(|finding| finding.name);
    assert_eq!(
        found.as_deref(),
        Some(family.name),
        "{} in {text}",
        family.prefix
    );
}

#[test]
fn a_token_of_every_family_is_found_where_tokens_stand() {
    for family in FAMILIES {
        for seed in 0..4 {
            let token = family.example(seed);
            let json = serde_json::to_string(&format!("a\n{token}\n")).unwrap();
            let percent: String = token.bytes().map(|b| format!("%{b:02x}")).collect();
            for text in [
                token.clone(),
                format!("Bearer {token}"),
                format!("key={token}&x=y"),
                format!("\"{token}\","),
                format!("\u{1b}[0m{token}\u{1b}[0m"),
                json,
                percent,
                json_escaped(&token),
            ] {
                assert_token(family, &text);
            }
        }
    }
}

#[test]
fn a_token_of_every_family_is_found_in_every_cut() {
    for family in FAMILIES {
        let body = format!("before {} after", family.example(9));
        for size in [1, 3, 16] {
            let outcome = push_all(
                &tokens(),
                ContentEncoding::Identity,
                body.as_bytes().chunks(size),
            );
            assert!(
                matches!(outcome.refusal, Some(ScanRefusal::Secret(_))),
                "{}",
                family.prefix
            );
            let left = String::from_utf8(outcome.released).unwrap();
            let most = "before ".len() + 3;
            assert!(
                body.starts_with(&left) && left.len() <= most,
                "{left} {size}"
            );
        }
    }
}

#[test]
fn what_a_hand_has_filled_in_is_no_token() {
    for family in FAMILIES {
        if family.has_checksum() {
            continue;
        }
        let text = format!("key = \"{}\"", family.placeholder());
        assert_eq!(found(&text), None, "{text}");
    }
}

#[test]
fn a_part_of_a_token_or_one_of_another_case_is_none() {
    for family in FAMILIES {
        let token = family.example(3);
        let cut = &token[..token.len() - 1];
        assert_eq!(found(cut), None, "{cut}");
        for text in [token.to_uppercase(), token.to_lowercase()] {
            if !FAMILIES.iter().any(|other| text.contains(other.prefix)) {
                assert_eq!(found(&text), None, "{text}");
            }
        }
    }
}

#[test]
fn what_manuals_and_signed_addresses_hold_is_no_token() {
    let id = FAMILIES
        .iter()
        .find(|family| family.prefix == "AKIA")
        .unwrap()
        .example(5);
    let jwt = FAMILIES
        .iter()
        .find(|family| family.prefix == "eyJ")
        .unwrap()
        .example(5);
    let manual = ["eyJ", "zdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIn0"].concat();
    let parts: Vec<_> = jwt.split('.').collect();
    for text in [
        format!("AKIA{}", "IOSFODNN7EXAMPLE"),
        format!(
            "aws_secret_access_key = {}{}",
            "wJalrXUtnFEMI/K7MDENG/", "bPxRfiCYEXAMPLEKEY"
        ),
        format!("https://x.test/y?X-Amz-Credential={id}%2F20260101%2Fus-east-1"),
        format!("https://x.test/y?AWSAccessKeyId={id}&Signature=x"),
        format!("{}.{manual}.{}", parts[0], parts[2]),
        "-----BEGIN PRIVATE KEY----- is how the file begins, and then comes the key".to_owned(),
        "npm_config_registry npm_package_dependencies_something_long hf_transfer sk-learn"
            .to_owned(),
    ] {
        assert_eq!(found(&text), None, "{text}");
    }
    assert_eq!(
        found(format!("&Credential={id}/2026")).as_deref(),
        Some("AWS Access ID")
    );
}

/// Looks for tokens in what has none; says where the first one is.
fn first_find(bytes: &[u8]) -> Option<String> {
    let scanner = tokens();
    let mut readings = Readings::new(Arc::clone(&scanner.engine));
    let find = readings.feed(bytes).1.or_else(|| readings.end())?;
    let from = usize::try_from(find.from).unwrap();
    let context = &bytes[from..bytes.len().min(from + 60)];
    Some(format!(
        "{:?} at {from}: {}",
        find.what,
        context.escape_ascii()
    ))
}

/// Bytes of each of these lookalikes.
const LOOKALIKE: usize = 4 << 20;

#[test]
fn random_base64_and_hex_hold_no_token() {
    let alphabets = [
        STANDARD,
        URL_SAFE,
        "0123456789abcdef",
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567",
    ];
    for (seed, alphabet) in (1..).zip(alphabets) {
        let mut chance = Chance(seed);
        let mut text = Vec::with_capacity(LOOKALIKE);
        while text.len() < LOOKALIKE {
            let bits = chance.next();
            for shift in (0..60).step_by(6) {
                let index = usize::try_from(bits >> shift & 63).unwrap() % alphabet.len();
                text.push(alphabet.as_bytes()[index]);
            }
        }
        assert_eq!(first_find(&text), None, "{alphabet}");
        let lines: Vec<_> = text.chunks(76).collect();
        assert_eq!(first_find(&lines.join(&b'\n')), None, "{alphabet} in lines");
    }
}

#[test]
fn the_source_code_and_text_of_this_tree_hold_no_token() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut rest = vec![root];
    let (mut files, mut total) = (0, 0);
    while let Some(dir) = rest.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                rest.push(path);
            } else if path.is_file()
                && [".rs", ".md", ".toml", ".lock"]
                    .iter()
                    .any(|end| name.ends_with(end))
            {
                let text = fs::read(&path).unwrap();
                assert_eq!(first_find(&text), None, "{}", path.display());
                (files, total) = (files + 1, total + text.len());
            }
        }
    }
    assert!(
        files > 50 && total > 1 << 19,
        "{files} files, {total} bytes"
    );
}
