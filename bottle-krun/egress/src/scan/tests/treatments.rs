//! What becomes of a secret under each treatment.

use super::*;

/// Pushes a body in pieces; returns what came out, or why not, and what was told.
fn treated(
    treatment: Treatment,
    encoding: ContentEncoding,
    pieces: &[&[u8]],
) -> (Result<Vec<u8>, ScanRefusal>, Vec<String>) {
    let mut scan = scanner().stream(encoding, treatment);
    let mut out = Vec::new();
    let mut told = Vec::new();
    let mut refusal = None;
    for piece in pieces {
        match scan.push(Bytes::copy_from_slice(piece)) {
            Ok(ready) => out.extend(ready.concat()),
            Err(error) => refusal = Some(error),
        }
        told.extend(scan.findings().iter().map(|finding| finding.name.clone()));
    }
    match scan.finish() {
        Ok(ready) => out.extend(ready.concat()),
        Err(error) => refusal = Some(error),
    }
    told.extend(scan.findings().iter().map(|finding| finding.name.clone()));
    (refusal.map_or(Ok(out), Err), told)
}

fn stars(text: &str) -> String {
    "*".repeat(text.len())
}

#[test]
fn a_secret_is_overwritten_and_nothing_else_is() {
    let (token, pat) = (github_token(), github_pat());
    let json = json_escaped(PLAIN);
    let percent: String = token.bytes().map(|b| format!("%{b:02x}")).collect();
    let body = |texts: [&str; 4]| {
        let [a, b, c, d] = texts;
        format!("{{\"a\": \"{a}\", \"b\": \"{b} {a}\"}}\n{c}&x={d};")
    };
    let given = body([&token, &pat, &percent, &json]);
    let wanted = body([
        &stars(&token),
        &stars(&pat),
        &stars(&percent),
        &stars(&json),
    ]);
    for size in [1, 5, 64, given.len()] {
        let pieces: Vec<_> = given.as_bytes().chunks(size).collect();
        let (out, told) = treated(Treatment::Overwrite, ContentEncoding::Identity, &pieces);
        assert_eq!(String::from_utf8(out.unwrap()).unwrap(), wanted, "{size}");
        let names = [
            "GitHub Token",
            "GitHub Fine-Grained PAT",
            "Known Secret Leak (plain)",
        ];
        assert_eq!(told, names, "{size}");
    }
    // At the very end, where nothing follows.
    let (out, _) = treated(
        Treatment::Overwrite,
        ContentEncoding::Identity,
        &[pat.as_bytes()],
    );
    assert_eq!(out.unwrap(), stars(&pat).as_bytes());
}

#[test]
fn a_whole_key_is_overwritten_and_not_its_first_line_alone() {
    let line = |seed: u8| github_token_of("", seed);
    let key: Vec<_> = (0..12)
        .map(|n| format!("{}{}", line(n), &line(n + 50)[..28]))
        .collect();
    let header = ["-----BEGIN ", "PRIVATE KEY-----"].concat();
    let body = format!(
        "x\n{header}\n{}\n-----END PRIVATE KEY-----\n",
        key.join("\n")
    );
    let (out, told) = treated(
        Treatment::Overwrite,
        ContentEncoding::Identity,
        &[body.as_bytes()],
    );
    let out = String::from_utf8(out.unwrap()).unwrap();
    assert_eq!(told, ["Private Key Header"]);
    assert!(key.iter().all(|line| !out.contains(&line[..8])), "{out}");
    assert!(
        out.starts_with("x\n*") && out.ends_with("*-----END PRIVATE KEY-----\n"),
        "{out}"
    );
}

#[test]
fn a_secret_in_an_encoded_body_is_refused_where_it_would_have_to_be_overwritten() {
    for encoding in ENCODINGS {
        let body = encode(encoding, format!("a {} b", github_token()).as_bytes());
        let (out, _) = treated(Treatment::Overwrite, encoding, &[&body]);
        assert_eq!(
            out.is_err(),
            encoding != ContentEncoding::Identity,
            "{encoding:?}"
        );
    }
}

#[test]
fn what_is_reported_passes_unchanged() {
    for encoding in ENCODINGS {
        let text = format!("a {} b {PLAIN} {}", github_token(), github_token());
        let body = encode(encoding, text.as_bytes());
        let pieces: Vec<_> = body.chunks(7).collect();
        let (out, told) = treated(Treatment::Report, encoding, &pieces);
        assert_eq!(out.unwrap(), body, "{encoding:?}");
        assert_eq!(
            told,
            ["GitHub Token", "Known Secret Leak (plain)"],
            "{encoding:?}"
        );
    }
    let (out, told) = treated(Treatment::Report, ContentEncoding::Gzip, &[b"no gzip"]);
    assert_eq!(out.unwrap(), b"no gzip");
    assert_eq!(told.len(), 1, "{told:?}");
}

#[test]
fn nobody_looks_where_nobody_is_to_look() {
    for encoding in ENCODINGS {
        let (out, told) = treated(Treatment::Ignore, encoding, &[github_token().as_bytes()]);
        assert_eq!((out.unwrap(), told), (github_token().into_bytes(), vec![]));
    }
}

#[test]
fn a_text_is_overwritten_where_its_secrets_stand() {
    let token = github_token();
    let mut text = format!("Bearer {token}; {PLAIN}, {token}").into_bytes();
    let names: Vec<_> = scanner()
        .overwrite(&mut text)
        .into_iter()
        .map(|f| f.name)
        .collect();
    assert_eq!(
        names,
        ["GitHub Token", "Known Secret Leak (plain)", "GitHub Token"]
    );
    let wanted = format!(
        "Bearer {}; {}, {}",
        stars(&token),
        stars(PLAIN),
        stars(&token)
    );
    assert_eq!(String::from_utf8(text).unwrap(), wanted);
}

#[test]
fn a_value_that_ends_or_begins_as_another_is_overwritten_whole() {
    let values = [
        "secret-part-123",
        "my-secret-part-123",
        "secret-part-123-and-more",
    ];
    let secrets = values.map(|value| Secret::new(value, value).unwrap());
    let scanner = Scanner::new(&secrets).unwrap();
    for value in values {
        for encoded in [value.to_owned(), base64(value.as_bytes(), STANDARD)] {
            for size in [1, 4, 64] {
                let body = format!("[{encoded}]");
                let mut scan = scanner.stream(ContentEncoding::Identity, Treatment::Overwrite);
                let mut out = Vec::new();
                for piece in body.as_bytes().chunks(size) {
                    out.extend(scan.push(Bytes::copy_from_slice(piece)).unwrap().concat());
                }
                out.extend(scan.finish().unwrap().concat());
                let out = String::from_utf8(out).unwrap();
                // The last character of base64 may belong to what follows.
                assert!(
                    out.trim_matches(['[', ']']).matches('*').count() + 1 >= encoded.len(),
                    "{out}"
                );
            }
        }
    }
}

proptest! {
    /// Whatever is overwritten, what comes out holds no secret and has the length of what went in.
    #[test]
    fn nothing_is_left_of_what_is_overwritten(
        kinds in prop::collection::vec(any::<u8>(), 0..8),
        cuts in prop::collection::vec(any::<Index>(), 0..12),
    ) {
        let body: Vec<u8> = kinds.iter().flat_map(|kind| fragment(*kind)).collect();
        let (out, told) = treated(Treatment::Overwrite, ContentEncoding::Identity, &pieces(&body, &cuts));
        let out = out.unwrap();
        prop_assert_eq!(out.len(), body.len());
        prop_assert_eq!(told.is_empty(), scanner().scan_text(&body).is_none());
        prop_assert_eq!(scanner().scan_text(&out), None);
    }
}
