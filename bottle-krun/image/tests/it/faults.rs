//! Registries and token servers that refuse, stall and lie: one clear error each, and a store as
//! it was before.

use std::fs;
use std::time::Instant;

use bottle_core::reporter::Silent;
use serde_json::json;

use crate::bench::{Bench, patient, serve};
use crate::corpus::{CONFIG, INDEX, MANIFEST, Pack, blob, digest, layout, named, tar};
use crate::registry::{Fault, Reply, Server};

/// Answers every request with this.
fn answering(bench: &mut Bench, reply: Reply) -> Server {
    let server = Server::start(move |_| reply.clone());
    bench.plain(&server);
    server
}

#[test]
fn a_refusal_says_what_to_do_and_what_the_registry_says() {
    let mut bench = Bench::new();
    let evil = "no\u{1b}[2J\u{202e}way";
    for (status, expected) in [
        (
            401,
            "wants a login for `team/app`: run `docker login HOST`, or check the name",
        ),
        (
            403,
            "forbids access to `team/app`; log in as a user who may pull it: `docker login HOST`",
        ),
        (
            404,
            "has no `v1` of `team/app`; check the name, or log in if it is private: `docker login HOST`",
        ),
        (418, "answered with status 418 for the manifest of `v1`"),
    ] {
        let server = answering(&mut bench, Reply::error(status, evil));
        let message = bench.fails(&server);
        let expected = expected.replace("HOST", &server.host());
        assert!(message.contains(&expected), "{message}");
        let said = r"(it says: no\u{1b}[2J\u{202e}way)";
        assert!(message.ends_with(said), "{message}");
        assert_eq!(server.seen().len(), 1, "{status} was tried again");
    }
    let server = answering(&mut bench, Reply::error(404, &"long ".repeat(1000)));
    assert!(bench.fails(&server).len() < 500);
}

#[test]
fn what_a_refusal_says_at_length_is_not_waited_for() {
    let mut bench = Bench::new();
    let server = answering(&mut bench, Reply::error(404, "x").fault(Fault::Endless));
    assert!(
        bench
            .fails(&server)
            .ends_with("`docker login {0}`".replace("{0}", &server.host()).as_str())
    );
    bench.hasty();
    let server = answering(&mut bench, Reply::error(404, "x").fault(Fault::Stall(3)));
    assert!(bench.fails(&server).contains("has no `v1`"));
}

#[test]
fn a_busy_registry_gets_the_wait_that_it_asks_for_within_a_bound() {
    let mut bench = Bench::new();
    let repo = bench.repo();
    let server = Server::start(move |seen| match seen.before {
        0 | 1 if seen.target.ends_with("/v1") => Reply::new(429, "").header("Retry-After", "0"),
        _ => repo.answer(seen),
    });
    bench.plain(&server);
    bench.succeeds(&server);
    assert_eq!(server.seen_of("/v1").len(), 3);
    fs::remove_dir_all(bench.store()).unwrap();

    let server = answering(&mut bench, Reply::new(429, "").header("Retry-After", "0"));
    let message = bench.fails(&server);
    let expected = format!(
        "registry `{0}` wants fewer requests; try again in 0 s, or log in for a higher limit: \
         `docker login {0}`",
        server.host()
    );
    assert_eq!(message, expected);
    assert_eq!(server.seen().len(), 3);

    let server = answering(
        &mut bench,
        Reply::new(429, "").header("Retry-After", "3600"),
    );
    assert!(bench.fails(&server).contains("try again in 3600 s"));
    assert_eq!(server.seen().len(), 1);
    let server = answering(
        &mut bench,
        Reply::new(429, "").header("Retry-After", "soon"),
    );
    assert!(bench.fails(&server).contains("try again later"));
}

#[test]
fn a_failing_registry_is_asked_three_times() {
    let mut bench = Bench::new();
    let (large, _) = bench.large();
    let (repo, of) = (bench.repo(), large.clone());
    let server = Server::start(move |seen| match seen.before {
        0 | 1 if seen.is_blob(&of) => Reply::error(500, "oops"),
        _ => repo.answer(seen),
    });
    bench.plain(&server);
    bench.succeeds(&server);
    fs::remove_dir_all(bench.store()).unwrap();

    let (repo, of) = (bench.repo(), large.clone());
    let server = Server::start(move |seen| {
        if seen.is_blob(&of) {
            Reply::error(500, "oops")
        } else {
            repo.answer(seen)
        }
    });
    bench.plain(&server);
    let expected = format!(
        "`{}` failed with status 500 for layer {large} (3 tries); try again later \
         (it says: oops)",
        server.host()
    );
    assert_eq!(bench.fails(&server), expected);
    assert_eq!(server.seen_of(&large).len(), 3);
}

#[test]
fn a_registry_that_is_not_there_is_named() {
    let mut bench = Bench::new();
    let server = serve(&bench);
    bench.plain(&server);
    let host = server.host();
    drop(server);
    let source = format!("{host}/team/app:v1").parse().unwrap();
    let error =
        bottle_image::to_disk(&source, &bench.options, &bench.store(), &Silent).unwrap_err();
    let expected =
        format!("cannot connect to `{host}`; check the name, the network and the proxy variables");
    assert_eq!(error.to_string(), expected);
    assert!(!error.is_bad_image());
}

#[test]
fn a_registry_that_stalls_is_given_up() {
    let mut bench = Bench::new();
    bench.hasty();
    for fault in [Fault::Silence, Fault::Stall(0), Fault::Stall(20)] {
        let repo = bench.repo();
        let server = Server::start(move |seen| repo.answer(seen).fault(fault));
        bench.plain(&server);
        let started = Instant::now();
        let message = bench.fails(&server);
        let expected = format!(
            "`{}` sent nothing more of the manifest of `v1` for 500 ms; try again: a layer \
             continues where it stopped",
            server.host()
        );
        assert_eq!(message, expected, "{fault:?}");
        assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
    }
}

#[test]
fn a_blob_that_is_missing_is_named() {
    let mut bench = Bench::new();
    let (large, _) = bench.large();
    fs::remove_file(bench.repo().path(&large)).unwrap();
    let server = serve(&bench);
    bench.plain(&server);
    let expected = format!(
        "registry `{}` lacks layer {large}, which the image refers to; push the image again \
         (it says: blob unknown)",
        server.host()
    );
    assert_eq!(bench.fails(&server), expected);
}

#[test]
fn a_manifest_with_another_digest_than_was_asked_for_or_claimed_is_refused() {
    let mut bench = Bench::new();
    let other = json!({"schemaVersion": 2, "mediaType": MANIFEST}).to_string();
    let found = digest(other.as_bytes());
    let server = answering(&mut bench, Reply::new(200, other.clone()));
    let wanted = bench.manifest();
    let error = bench
        .pull(&server, &format!("team/app@{wanted}"))
        .unwrap_err();
    let expected =
        format!("manifest has digest {found}, expected {wanted}; copy or build the image again");
    assert_eq!(error.to_string(), expected);
    let reply = Reply::new(200, other).header("Docker-Content-Digest", wanted);
    let server = answering(&mut bench, reply);
    assert_eq!(bench.fails(&server), expected);
}

#[test]
fn a_layer_with_another_digest_is_refused() {
    let mut bench = Bench::new();
    let (large, mut bytes) = bench.large();
    let last = bytes.len() - 20;
    bytes[last] ^= 1;
    let found = digest(&bytes);
    let (repo, of) = (bench.repo(), large.clone());
    let server = Server::start(move |seen| {
        if seen.is_blob(&of) {
            Reply::new(200, bytes.clone())
        } else {
            repo.answer(seen)
        }
    });
    bench.plain(&server);
    let expected =
        format!("a layer has digest {found}, expected {large}; copy or build the image again");
    assert_eq!(bench.fails(&server), expected);
}

#[test]
fn a_layer_of_another_size_is_refused() {
    let mut bench = Bench::new();
    let (large, bytes) = bench.large();
    let size = bytes.len();
    for (length, fault) in [
        (size - 1, Fault::None),
        (size + 1, Fault::None),
        (size - 1, Fault::Chunked),
        (size + 1, Fault::Chunked),
        (size, Fault::Endless),
    ] {
        let mut body = bytes.clone();
        body.resize(length, 0);
        let (repo, of) = (bench.repo(), large.clone());
        let server = Server::start(move |seen| {
            if seen.is_blob(&of) {
                Reply::new(200, body.clone()).fault(fault)
            } else {
                repo.answer(seen)
            }
        });
        bench.plain(&server);
        let message = bench.fails(&server);
        assert!(
            message.contains(&format!("layer {large} has ")),
            "{message}"
        );
        assert!(
            message.contains(&format!("bytes, expected {size}")),
            "{message}"
        );
    }
}

#[test]
fn a_layer_with_another_content_than_the_config_says_is_refused() {
    let mut bench = Bench::new();
    let dir = bench.layout();
    let layer = blob(&dir, Pack::Gzip.oci(), &Pack::Gzip.bytes(&tar(&[])));
    let config = json!({"rootfs": {"diff_ids": [digest(b"something else")]}});
    let config = blob(&dir, CONFIG, config.to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let manifest = blob(&dir, MANIFEST, manifest.to_string().as_bytes());
    layout(&dir, &[named(manifest, "v1")]);
    let server = serve(&bench);
    bench.plain(&server);
    let message = bench.fails(&server);
    assert!(
        message.starts_with("a layer's content (diff id) has digest"),
        "{message}"
    );
}

#[test]
fn a_gzip_layer_that_ends_too_early_is_refused() {
    let mut bench = Bench::new();
    let dir = bench.layout();
    let plain = tar(&[]);
    let mut packed = Pack::Gzip.bytes(&plain);
    packed.truncate(packed.len() - 6);
    let layer = blob(&dir, Pack::Gzip.oci(), &packed);
    let config = json!({"rootfs": {"diff_ids": [digest(&plain)]}});
    let config = blob(&dir, CONFIG, config.to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let manifest = blob(&dir, MANIFEST, manifest.to_string().as_bytes());
    layout(&dir, &[named(manifest, "v1")]);
    let server = serve(&bench);
    bench.plain(&server);
    let error = bench.pull(&server, "team/app:v1").unwrap_err();
    assert!(error.is_bad_image());
    let message = bench.fails(&server);
    let expected = format!("cannot read layer {}", digest(&packed));
    assert!(message.starts_with(&expected), "{message}");
}

#[test]
fn documents_are_bounded_and_must_be_what_they_seem() {
    let mut bench = Bench::new();
    let huge = vec![b' '; 5 << 20];
    for reply in [
        Reply::new(200, huge),
        Reply::new(200, "x".repeat(10_000)).fault(Fault::Endless),
    ] {
        let server = answering(&mut bench, reply);
        let message = bench.fails(&server);
        assert!(
            message.contains("exceeds a limit: bytes of a manifest"),
            "{message}"
        );
    }
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": []}).to_string();
    for (reply, expected) in [
        (Reply::new(200, "<html>"), "is malformed"),
        (
            Reply::new(200, manifest.clone()).header("Content-Type", INDEX),
            "contradicts itself",
        ),
        (
            Reply::new(200, "{}").header("Content-Type", "text/html"),
            "unsupported media type `text/html`",
        ),
        (Reply::new(204, ""), "status 204"),
        (Reply::new(206, manifest.clone()), "missing field `config`"),
    ] {
        let server = answering(&mut bench, reply);
        let message = bench.fails(&server);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn what_is_not_http_is_refused() {
    let mut bench = Bench::new();
    for (name, value) in [
        ("Content-Length", "5\r\nContent-Length: 6"),
        ("Content-Length", "5\r\nTransfer-Encoding: chunked"),
        ("Content-Length", "-1"),
        ("Content-Length", "1\r\nTransfer-Encoding: gzip"),
    ] {
        let server = answering(&mut bench, Reply::new(200, "{}").header(name, value));
        let message = bench.fails(&server);
        assert!(
            message.contains("gave an answer that cannot be used"),
            "{message}"
        );
    }
    let long = "x".repeat(70_000);
    let server = answering(&mut bench, Reply::new(200, "").header("X", long));
    assert!(bench.fails(&server).ends_with("its head is too long"));
}

/// A registry that sends to a token server, and what that one answers.
fn token_from(bench: &mut Bench, realm: &str, reply: Reply) -> Server {
    let realm = realm.to_owned();
    let server = Server::start(move |seen| {
        if seen.target.starts_with("/token") {
            return reply.clone();
        }
        let realm = realm.replace("HOST", seen.header("host").unwrap());
        Reply::error(401, "").header("WWW-Authenticate", format!("Bearer realm=\"{realm}\""))
    });
    bench.plain(&server);
    bench.login(&server, "user", "hunter2");
    server
}

#[test]
fn a_token_server_that_lies_is_found_out() {
    let mut bench = Bench::new();
    let ok = |body: &str| Reply::new(200, body);
    for (reply, expected) in [
        (ok("<html>hunter2"), "its answer is malformed"),
        (ok("{\"token\": [\"hunter2\"]}"), "its answer is malformed"),
        (ok("{}"), "its answer has no token"),
        (ok("{\"token\": \"\"}"), "its answer has no token"),
        (
            ok("{\"token\": \"a\\r\\nHost: b\"}"),
            "its answer has no token",
        ),
        (ok("{\"token\": \"a b\"}"), "its answer has no token"),
        (ok("{\"token\": \"\u{e9}\"}"), "its answer has no token"),
        (ok("x").fault(Fault::Endless), "its answer is too long"),
        (ok(&"x".repeat(100_000)), "its answer is too long"),
        (Reply::new(500, ""), "it answered with status 500"),
        (
            Reply::new(307, "").header("Location", "https://elsewhere.test/"),
            "status 307",
        ),
    ] {
        let server = token_from(&mut bench, "http://HOST/token", reply);
        let message = bench.fails(&server);
        let start = format!(
            "registry `{0}` sends for a token to `http://{0}/token`",
            server.host()
        );
        assert!(message.starts_with(&start), "{message}");
        assert!(message.contains(expected), "{message}");
    }
    bench.hasty();
    let server = token_from(
        &mut bench,
        "http://HOST/token",
        ok("{}").fault(Fault::Stall(1)),
    );
    assert!(
        bench
            .fails(&server)
            .contains("sent nothing more of a token")
    );
    bench.options = patient();
    // A token that is good for nothing.
    let server = token_from(&mut bench, "http://HOST/token", ok("{\"token\": \"x\"}"));
    assert!(
        bench
            .fails(&server)
            .contains("does not accept the stored credentials")
    );
    assert_eq!(server.seen_of("/manifests/v1").len(), 2);
}

#[test]
fn a_token_server_is_called_by_tls_or_at_a_host_that_was_named() {
    let mut bench = Bench::new();
    let spy = Server::start(|_| Reply::new(200, r#"{"token": "x"}"#));
    let port = spy.address.port();
    let there = format!("http://localhost:{port}/token");
    let server = token_from(&mut bench, &there, Reply::new(200, ""));
    let message = bench.fails(&server);
    assert!(
        message.contains("it is plain HTTP; name that host"),
        "{message}"
    );
    // Over TLS it would be called; what speaks plain HTTP there gets to see no request.
    let there = format!("https://localhost:{port}/token");
    let server = token_from(&mut bench, &there, Reply::new(200, ""));
    let message = bench.fails(&server);
    assert!(
        message.starts_with(&format!("cannot speak TLS with `localhost:{port}`")),
        "{message}"
    );
    assert_eq!(spy.seen().len(), 0);
    for realm in [
        "",
        "file:///etc/passwd",
        "https://user:x@HOST/",
        "/token",
        "https://a b/",
    ] {
        let server = token_from(&mut bench, realm, Reply::new(200, ""));
        let message = bench.fails(&server);
        assert!(message.ends_with("it is no URL of a server"), "{message}");
    }
    bench.rule(&format!("localhost:{port}")).plain_http = true;
    let there = format!("http://localhost:{port}/token");
    let server = token_from(&mut bench, &there, Reply::new(200, ""));
    bench.fails(&server);
    assert_eq!(spy.seen().len(), 1);
}
