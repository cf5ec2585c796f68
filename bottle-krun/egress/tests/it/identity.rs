//! The rest of the table in `docs/egress.md`, and that its rows name tests that exist.

use std::fs;
use std::path::Path;

use bottle_core::policy::{Reason, WrittenMode, WrittenRule};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::origin::Origin;
use crate::raw::hello_with;
use crate::support::{Gateway, TestCa, empty, http1_on, request, rule, send1, soon, until};

const NAME: &str = "allowed.test";
const AUTHORITY: &str = "allowed.test:443";

async fn gateway(mode: WrittenMode) -> (Gateway, Origin) {
    let ca = TestCa::new();
    let origin = Origin::tls(&ca, NAME, &["http/1.1"]).await;
    let rule = WrittenRule {
        mode: Some(mode),
        ..rule(NAME)
    };
    let gateway = Gateway::with_rules(&ca, [rule], &[(NAME, 443, origin.address)]);
    (gateway, origin)
}

#[tokio::test]
async fn an_address_in_the_handshake_is_no_name() {
    for mode in [WrittenMode::Inspect, WrittenMode::Splice] {
        for name in ["127.0.0.1", "2130706433", "[::1]"] {
            let (gateway, origin) = gateway(mode).await;
            let mut stream = gateway.tunnel(AUTHORITY).await.unwrap();
            stream.write_all(&hello_with(name, &[])).await.unwrap();
            let mut answer = Vec::new();
            let _ = soon("the end", stream.read_to_end(&mut answer)).await;
            until("the refusal", || !gateway.events.refusals().is_empty()).await;
            let reason = gateway.events.refusals()[0].0;
            assert!(
                matches!(reason, Reason::AuthorityMismatch | Reason::BadProtocol),
                "{reason:?}"
            );
            assert_eq!(origin.log.connections(), 0, "{mode:?} {name}");
        }
    }
}

#[tokio::test]
async fn an_encrypted_name_means_nothing_where_tls_ends() {
    let (gateway, origin) = gateway(WrittenMode::Inspect).await;
    let mut stream = gateway.tunnel(AUTHORITY).await.unwrap();
    let veiled = hello_with(NAME, &[(0xfe0d, b"veil")]);
    stream.write_all(&veiled).await.unwrap();
    let mut answer = Vec::new();
    let _ = soon("the end", stream.read_to_end(&mut answer)).await;
    until("the end of the handshake", || {
        !gateway.events.refusals().is_empty()
    })
    .await;
    // The hello is a stub that no server can go on with; its name was not the trouble, and no
    // handshake of the guest's ever reaches an upstream.
    let (reason, _, detail) = gateway.events.refusals().pop().unwrap();
    assert_eq!(reason, Reason::BadProtocol, "{detail}");
    assert_eq!(origin.log.connections(), 0);
}

#[tokio::test]
async fn an_international_name_is_its_ascii_form() {
    let ca = TestCa::new();
    let name = "xn--bcher-kva.test";
    let origin = Origin::tls(&ca, name, &["http/1.1"]).await;
    let gateway = Gateway::new(&ca, &[name], &[(name, 443, origin.address)]);
    let stream = gateway.tunnel("XN--BCHER-KVA.test:443").await.unwrap();
    let stream = gateway.tls(stream, name, &["http/1.1"]).await.unwrap();
    let mut sender = http1_on(stream).await;
    let answer = send1(&mut sender, request("GET", name, "/", empty())).await;
    assert_eq!(answer.status, 200);
    let mut request = request("GET", name, "/", empty());
    let written = http::HeaderValue::from_bytes("bücher.test".as_bytes()).unwrap();
    request.headers_mut().insert("host", written);
    let answer = send1(&mut sender, request).await;
    assert_eq!(answer.problem("reason"), "authority-mismatch");
    gateway.tunnel("bücher.test:443").await.unwrap_err();
    assert_eq!(origin.log.requests().len(), 1);
}

#[tokio::test]
async fn a_literal_in_any_notation_is_no_target() {
    let (gateway, origin) = gateway(WrittenMode::Inspect).await;
    for literal in [
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "0x7f.1",
        "127.0.0.1.",
    ] {
        let head = gateway.tunnel(&format!("{literal}:443")).await.unwrap_err();
        assert!(!head.starts_with("HTTP/1.1 2"), "{literal}: {head}");
    }
    assert_eq!(origin.log.connections(), 0);
}

/// Reads all test names below a directory.
fn names_below(dir: &Path, names: &mut String) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            names_below(&path, names);
        } else if path.extension().is_some_and(|end| end == "rs") {
            names.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_row_of_the_table_names_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let table = fs::read_to_string(root.join("docs/egress.md")).unwrap();
    let mut sources = String::new();
    for dir in [
        "bottle-krun/egress/src",
        "bottle-krun/egress/tests",
        "bottle-core/src",
    ] {
        names_below(&root.join(dir), &mut sources);
    }
    let table = table.split("## Who a request is to").nth(1).unwrap();
    let table = table.split("\n## ").next().unwrap();
    let rows: Vec<_> = table
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| what"))
        .collect();
    assert!(rows.len() > 20, "{}", rows.len());
    for row in rows {
        let test = row.trim_end_matches(" |").rsplit("| ").next().unwrap();
        let test = test.trim_matches('`');
        assert!(sources.contains(&format!("fn {test}(")), "{row}");
    }
}
