//! Pulling from a registry that behaves: names, platforms, logins, TLS, mirrors, proxies.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bottle_core::reporter::Silent;
use serde_json::json;

use crate::bench::{Bench, serve};
use crate::calls::chain;
use crate::corpus::{INDEX, Item, Pack, blob, host_architecture, image, layout, named, tar};
use crate::reader::read;
use crate::registry::{Fault, Reply, Seen, Server, tls};

#[test]
fn an_image_is_pulled_by_tag_and_by_digest() {
    for pack in [Pack::Gzip, Pack::Zstd, Pack::Plain] {
        let mut bench = Bench::packed(pack);
        let server = serve(&bench);
        bench.plain(&server);
        bench.succeeds(&server);
        let seen = server.seen().len();
        // All of it is there: only the documents are asked for again.
        let again = bench.pull(&server, "team/app:v1").unwrap();
        assert!(!again.converted);
        assert_eq!(server.seen().len(), seen + 2);
        let digest = bench.manifest();
        for name in [
            format!("team/app@{digest}"),
            format!("team/app:other@{digest}"),
        ] {
            bench.check(&bench.pull(&server, &name).unwrap());
        }
        assert!(
            server
                .seen()
                .iter()
                .all(|seen| seen.header("authorization").is_none())
        );
    }
}

#[test]
fn chunked_answers_are_read_too() {
    let mut bench = Bench::new();
    let repo = bench.repo();
    let server = Server::start(move |seen| repo.answer(seen).fault(Fault::Chunked));
    bench.plain(&server);
    bench.succeeds(&server);
}

#[test]
fn an_index_leads_to_the_hosts_platform_or_says_what_there_is() {
    let mut bench = Bench::new();
    let dir = bench.layout();
    let on = |name: &str, platform: &str| {
        let layers = [(tar(&[Item::file(name, "x")]), Pack::Gzip)];
        let mut descriptor = image(&dir, &layers, &json!({}));
        descriptor["platform"] = json!({"os": "linux", "architecture": platform});
        descriptor
    };
    let tag = |name: &str, manifests: serde_json::Value| {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        named(blob(&dir, INDEX, index.to_string().as_bytes()), name)
    };
    let (mine, other) = (on("mine", host_architecture()), on("other", "s390x"));
    let both = tag("both", json!([other, mine]));
    let foreign = tag("foreign", json!([other]));
    layout(&dir, &[both, foreign]);
    let server = serve(&bench);
    bench.plain(&server);
    let disk = bench.pull(&server, "multi:both").unwrap();
    assert_eq!(disk.image.manifest, mine["digest"]);
    assert!(read(&disk).contains_key(&b"mine"[..]));
    let error = bench.pull(&server, "multi:foreign").unwrap_err();
    let expected = format!(
        "the image has nothing for linux/{}; it exists for linux/s390x",
        host_architecture()
    );
    assert_eq!(error.to_string(), expected);
}

/// A registry that wants a token, and the token server beside it under `/token`.
fn with_tokens(
    bench: &Bench,
    realm: impl Fn(&Seen) -> String + Send + Sync + 'static,
    token: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
) -> Server {
    let repo = bench.repo();
    Server::start(move |seen| {
        if seen.target.starts_with("/token") {
            return token(seen);
        }
        if seen.header("authorization") == Some("Bearer good.token_-") {
            return repo.answer(seen);
        }
        let challenge = format!(
            "Bearer realm=\"{}\",service=\"the service\",scope=\"repository:team/app:pull,push\"",
            realm(seen)
        );
        Reply::error(401, "authentication required").header("WWW-Authenticate", challenge)
    })
}

fn own_realm(seen: &Seen) -> String {
    format!("http://{}/token", seen.header("host").unwrap())
}

fn good_token() -> Reply {
    Reply::new(200, r#"{"token": "good.token_-", "expires_in": 60}"#)
}

#[test]
fn an_anonymous_token_is_fetched_once_and_only_for_pulling() {
    let mut bench = Bench::new();
    let server = with_tokens(&bench, own_realm, |_| good_token());
    bench.plain(&server);
    bench.succeeds(&server);
    let asked: Vec<Seen> = server.seen();
    let tokens: Vec<&Seen> = asked
        .iter()
        .filter(|s| s.target.starts_with("/token"))
        .collect();
    assert_eq!(tokens.len(), 1);
    // Whatever scope the registry names.
    let query = "/token?service=the%20service&scope=repository%3Ateam%2Fapp%3Apull";
    assert_eq!(tokens[0].target, query);
    assert_eq!(tokens[0].header("authorization"), None);
}

#[test]
fn a_login_buys_a_token() {
    let mut bench = Bench::new();
    let server = with_tokens(&bench, own_realm, |seen| {
        let expected = format!("Basic {}", STANDARD.encode("user:hunter2"));
        if seen.header("authorization") == Some(&expected) {
            Reply::new(200, r#"{"access_token": "good.token_-"}"#)
        } else {
            Reply::new(401, "")
        }
    });
    bench.plain(&server);
    bench.login(&server, "user", "wrong-hunter2");
    let message = bench.fails(&server);
    assert!(
        message.contains("does not accept the stored credentials"),
        "{message}"
    );
    assert!(
        message.contains(&format!("`docker login {}` again", server.host())),
        "{message}"
    );
    bench.login(&server, "user", "hunter2");
    bench.succeeds(&server);
}

#[test]
fn an_identity_token_is_exchanged_and_shown_to_nobody_else() {
    let mut bench = Bench::new();
    let server = with_tokens(&bench, own_realm, |seen| {
        assert_eq!(
            (seen.method.as_str(), seen.target.as_str()),
            ("POST", "/token")
        );
        assert_eq!(seen.header("authorization"), None);
        assert_eq!(
            seen.body,
            "grant_type=refresh_token&client_id=bottle&service=the%20service&\
             scope=repository%3Ateam%2Fapp%3Apull&refresh_token=hunter2%2B%26"
        );
        good_token()
    });
    bench.plain(&server);
    let config = json!({"auths": {server.host(): {"identitytoken": "hunter2+&"}}});
    bench.docker_config(&config);
    bench.succeeds(&server);
}

/// A registry that wants a user and password.
fn with_basic(bench: &Bench) -> Server {
    let repo = bench.repo();
    Server::start(move |seen| {
        let expected = format!("Basic {}", STANDARD.encode("user:hunter2"));
        if seen.header("authorization") == Some(&expected) {
            return repo.answer(seen);
        }
        Reply::error(401, "who are you?").header("WWW-Authenticate", "Basic realm=x")
    })
}

#[test]
fn a_password_is_sent_where_it_is_asked_for() {
    let mut bench = Bench::new();
    let server = with_basic(&bench);
    bench.plain(&server);
    let message = bench.fails(&server);
    let expected = format!(
        "registry `{0}` wants a login for `team/app`: run `docker login {0}`, or check the name \
         (it says: who are you?)",
        server.host()
    );
    assert_eq!(message, expected);
    bench.login(&server, "user", "hunter2");
    bench.succeeds(&server);
    // Nothing is sent unasked.
    assert_eq!(
        server.seen_of("/manifests/v1")[1].header("authorization"),
        None
    );
}

#[test]
fn a_credential_helper_is_asked() {
    let mut bench = Bench::new();
    let server = with_basic(&bench);
    bench.plain(&server);
    bench.docker_config(&json!({"credHelpers": {server.host(): "fake"}}));
    let home = bench.options.docker_config.clone().unwrap();
    let helper = |script: &str| {
        let draft = home.join("draft");
        fs::write(&draft, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&draft, Permissions::from_mode(0o755)).unwrap();
        fs::rename(draft, home.join("docker-credential-fake")).unwrap();
    };
    helper("echo '{\"ServerURL\":\"x\",\"Username\":\"user\",\"Secret\":\"hunter2\"}'");
    bench.succeeds(&server);
    fs::remove_dir_all(bench.store()).unwrap();
    bench.options.timeouts.helper = Duration::from_millis(200);
    helper("sleep 600");
    let message = bench.fails(&server);
    let expected = format!(
        "cannot find the credentials for registry `{}`: the credential helper \
         `docker-credential-fake` did not answer within 200 ms, and was killed",
        server.host()
    );
    assert_eq!(message, expected);
}

#[test]
fn an_expired_token_is_fetched_again() {
    let mut bench = Bench::new();
    let (large, _) = bench.large();
    let repo = bench.repo();
    let server = Server::start(move |seen| {
        if seen.target.starts_with("/token") {
            let token = format!(r#"{{"token": "t{}"}}"#, seen.before);
            return Reply::new(200, token);
        }
        let wanted = if seen.is_blob(&large) {
            "Bearer t1"
        } else {
            "Bearer t0"
        };
        let shown = seen.header("authorization");
        if shown == Some(wanted) || shown == Some("Bearer t1") {
            return repo.answer(seen);
        }
        let realm = own_realm(seen);
        Reply::error(401, "").header("WWW-Authenticate", format!("Bearer realm=\"{realm}\""))
    });
    bench.plain(&server);
    bench.succeeds(&server);
}

#[test]
fn plain_http_is_spoken_only_where_it_was_named() {
    let bench = Bench::new();
    let server = serve(&bench);
    let message = bench.fails(&server);
    assert!(
        message.starts_with(&format!("cannot speak TLS with `{}`", server.host())),
        "{message}"
    );
    assert!(
        message.contains("if it speaks plain HTTP only, name it as such"),
        "{message}"
    );
    assert_eq!(server.seen().len(), 0);
}

#[test]
fn a_ca_is_trusted_for_the_registry_that_it_was_named_for() {
    let mut bench = Bench::new();
    let (ca, config) = tls(&["localhost", "127.0.0.1"]);
    let ca_file = bench.dir.path().join("ca.pem");
    fs::write(&ca_file, ca).unwrap();
    let repo = bench.repo();
    let server = Server::start_with(Some(config), move |seen| repo.answer(seen));
    bench.rule("other.test").ca = Some(ca_file.clone());
    let message = bench.fails(&server);
    assert!(message.contains("name that CA's file for it"), "{message}");
    assert!(message.to_lowercase().contains("issuer"), "{message}");
    let host = server.host();
    bench.rule(&host).ca = Some(ca_file);
    bench.succeeds(&server);
    // The certificate's name counts, too.
    fs::remove_dir_all(bench.store()).unwrap();
    let (ca, config) = tls(&["elsewhere.test"]);
    let repo = bench.repo();
    let server = Server::start_with(Some(config), move |seen| repo.answer(seen));
    let ca_file = bench.dir.path().join("other.pem");
    fs::write(&ca_file, ca).unwrap();
    bench.rule(&server.host()).ca = Some(ca_file);
    let message = bench.fails(&server);
    assert!(message.contains("not valid for name"), "{message}");
    assert_eq!(server.seen().len(), 0);
}

#[test]
fn a_ca_file_that_holds_none_is_an_error() {
    let mut bench = Bench::new();
    let server = serve(&bench);
    let file = bench.dir.path().join("ca.pem");
    bench.rule(&server.host()).ca = Some(file.clone());
    assert!(
        bench
            .fails(&server)
            .contains("cannot use the CA certificates in")
    );
    fs::write(&file, "nothing").unwrap();
    assert!(
        bench
            .fails(&server)
            .ends_with("it holds no certificate in PEM form")
    );
}

#[test]
fn a_redirect_is_followed_without_the_credentials() {
    let mut bench = Bench::new();
    let (large, bytes) = bench.large();
    let storage = Server::start(move |_| Reply::new(200, bytes.clone()));
    let there = format!("localhost:{}", storage.address.port());
    let elsewhere = format!("http://{there}/storage?signature=x");
    let repo = bench.repo();
    let server = Server::start(move |seen| {
        let expected = format!("Basic {}", STANDARD.encode("user:hunter2"));
        if seen.header("authorization") != Some(&expected) {
            return Reply::error(401, "").header("WWW-Authenticate", "Basic realm=x");
        }
        if seen.is_blob(&large) {
            return Reply::new(307, "").header("Location", elsewhere.clone());
        }
        repo.answer(seen)
    });
    bench.plain(&server);
    bench.login(&server, "user", "hunter2");
    let message = bench.fails_leaving(&server);
    assert!(message.contains("which is plain HTTP"), "{message}");
    assert!(!message.contains("signature"), "{message}");
    assert_eq!(storage.seen().len(), 0);
    bench.rule(&there).plain_http = true;
    bench.succeeds(&server);
    let [seen] = storage.seen().try_into().unwrap();
    let seen: Seen = seen;
    assert_eq!(seen.header("authorization"), None);
    assert_eq!(seen.target, "/storage?signature=x");
}

#[test]
fn whoever_is_sent_on_to_cannot_ask_for_the_credentials() {
    let mut bench = Bench::new();
    let spy = Server::start(|seen| {
        let realm = format!("http://{}/token", seen.header("host").unwrap());
        Reply::error(401, "").header("WWW-Authenticate", format!("Bearer realm=\"{realm}\""))
    });
    let there = format!("localhost:{}", spy.address.port());
    let location = format!("http://{there}/");
    let server = Server::start(move |_| Reply::new(302, "").header("Location", location.clone()));
    bench.plain(&server);
    bench.rule(&there).plain_http = true;
    bench.login(&server, "user", "hunter2");
    let message = bench.fails(&server);
    assert!(message.contains("answered with status 401"), "{message}");
    assert_eq!(spy.seen().len(), 1);
    assert_eq!(spy.seen()[0].header("authorization"), None);
}

#[test]
fn a_redirect_that_leads_nowhere_is_an_error() {
    let mut bench = Bench::new();
    let server = Server::start(|seen| Reply::new(302, "").header("Location", seen.target.clone()));
    bench.plain(&server);
    assert!(bench.fails(&server).ends_with("it sends on and on"));
    for location in [
        "",
        "x",
        "//x.test/",
        "file:///etc/passwd",
        "https://u:p@x.test/",
    ] {
        let server = Server::start(move |_| Reply::new(301, "").header("Location", location));
        bench.plain(&server);
        let message = bench.fails(&server);
        assert!(
            message.ends_with("it sends on to what is no URL of a server"),
            "{message}"
        );
    }
}

#[test]
fn mirrors_are_asked_in_order_and_the_registry_last() {
    let mut bench = Bench::new();
    let (large, _) = bench.large();
    let broken = Server::start(|_| Reply::error(503, "down"));
    let (repo, missing) = (bench.repo(), large.clone());
    let partial = Server::start(move |seen| {
        if seen.is_blob(&missing) {
            return Reply::error(404, "not mirrored yet");
        }
        repo.answer(seen)
    });
    let server = serve(&bench);
    let mirrors = vec![broken.host(), partial.host()];
    bench.rule(&server.host()).mirrors = mirrors;
    for one in [&broken, &partial, &server] {
        bench.plain(one);
    }
    bench.succeeds(&server);
    assert!(!broken.seen().is_empty());
    // Only what the mirrors lack.
    let asked: Vec<String> = server.seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(asked, [format!("/v2/team/app/blobs/{large}")]);
}

#[test]
fn a_mirror_that_lies_is_passed_over_and_gets_no_credentials_of_the_registry() {
    let mut bench = Bench::new();
    let lying = Server::start(|seen| {
        assert_eq!(seen.header("authorization"), None);
        if seen.target.contains("/manifests/") {
            return Reply::new(200, "{}");
        }
        Reply::error(401, "").header("WWW-Authenticate", "Basic realm=x")
    });
    let server = with_basic(&bench);
    bench.rule(&server.host()).mirrors = vec![lying.host()];
    bench.plain(&lying);
    bench.plain(&server);
    bench.login(&server, "user", "hunter2");
    let digest = bench.manifest();
    let disk = bench.pull(&server, &format!("team/app@{digest}")).unwrap();
    bench.check(&disk);
}

#[test]
fn a_proxy_is_asked_for_a_tunnel_and_not_for_exempt_hosts() {
    let mut bench = Bench::new();
    let proxy = Server::start(|seen| {
        assert_eq!(seen.method, "CONNECT");
        let expected = format!("Basic {}", STANDARD.encode("user:hunter2"));
        let status = if seen.header("proxy-authorization") == Some(&expected) {
            502
        } else {
            407
        };
        Reply::new(status, "")
    });
    let source = "registry.test/team/app:v1".parse().unwrap();
    let ask = |bench: &Bench| {
        let message = chain(&bottle_image::find(&source, &bench.options).unwrap_err());
        assert!(!message.contains("hunter2"), "{message}");
        message
    };
    bench.options.proxies.https = Some(format!("http://{}", proxy.host()));
    assert!(ask(&bench).contains("it wants a login"), "{}", ask(&bench));
    bench.options.proxies.https = Some(format!("http://user:hunter2@{}", proxy.host()));
    assert!(
        ask(&bench).contains("it answered with status 502"),
        "{}",
        ask(&bench)
    );
    assert_eq!(proxy.seen()[0].target, "registry.test:443");
    // This machine is never asked for through a proxy.
    let server = serve(&bench);
    bench.plain(&server);
    bench.options.proxies.http = Some(format!("http://{}", proxy.host()));
    let seen = proxy.seen().len();
    bench.succeeds(&server);
    assert_eq!(proxy.seen().len(), seen);
    bench.options.proxies.https = Some("socks5://x".to_owned());
    assert!(ask(&bench).contains("its URL is not"), "{}", ask(&bench));
}

#[test]
fn an_image_is_pulled_through_a_proxy() {
    let name = "registry.test";
    let pull = |bench: &Bench| {
        let source = format!("{name}/team/app:v1").parse().unwrap();
        let pulled = bottle_image::to_disk(&source, &bench.options, &bench.store(), &Silent);
        bench.check(&pulled.unwrap_or_else(|error| panic!("{}", chain(&error))));
        fs::remove_dir_all(bench.store()).unwrap();
    };
    // Plain HTTP: the proxy is told all of the URL.
    let mut bench = Bench::new();
    let repo = bench.repo();
    let proxy = Server::start(move |seen| {
        let target = seen.target.strip_prefix("http://registry.test").unwrap();
        repo.answer(&Seen {
            target: target.to_owned(),
            ..seen.clone()
        })
    });
    bench.rule(name).plain_http = true;
    bench.options.proxies.http = Some(format!("http://{}", proxy.host()));
    pull(&bench);
    // TLS: it is asked for a tunnel, and sees nothing but the name.
    let mut bench = Bench::new();
    let (ca, config) = tls(&[name]);
    let ca_file = bench.dir.path().join("ca.pem");
    fs::write(&ca_file, ca).unwrap();
    bench.rule(name).ca = Some(ca_file);
    let repo = bench.repo();
    let server = Server::start_with(Some(config), move |seen| repo.answer(seen));
    let proxy = tunnel(server.address);
    bench.options.proxies.https = Some(format!("http://{proxy}"));
    pull(&bench);
    assert_eq!(server.seen()[0].header("host"), Some(name));
}

/// A proxy that leads everywhere to one address; it lives as long as the test's process.
fn tunnel(target: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut head = BufReader::with_capacity(1, client.try_clone().unwrap());
                let mut lines = String::new();
                while !lines.ends_with("\r\n\r\n") {
                    head.read_line(&mut lines).unwrap();
                }
                assert!(
                    lines.starts_with("CONNECT registry.test:443 HTTP/1.1\r\n"),
                    "{lines}"
                );
                (&client)
                    .write_all(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n")
                    .unwrap();
                let server = TcpStream::connect(target).unwrap();
                let (mut up, mut down) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || io::copy(&mut up, &mut down));
                let _ = io::copy(&mut &server, &mut &client);
                let _ = client.shutdown(Shutdown::Both);
            });
        }
    });
    address
}

#[test]
fn several_layers_are_read_at_the_same_time() {
    // What the converter does with them is its matter: the source has to bear it.
    let mut bench = Bench::new();
    let server = Arc::new(serve(&bench));
    bench.plain(&server);
    let bench = &bench;
    thread::scope(|scope| {
        for name in ["team/app:v1", "team/other:v1", "third:v1"] {
            let server = Arc::clone(&server);
            scope.spawn(move || bench.pull(&server, name).unwrap());
        }
    });
    let blobs: BTreeMap<String, usize> = server
        .seen()
        .iter()
        .filter_map(|seen| {
            seen.target
                .split_once("/blobs/")
                .map(|(_, digest)| digest.to_owned())
        })
        .fold(BTreeMap::new(), |mut count, digest| {
            *count.entry(digest).or_default() += 1;
            count
        });
    // One manifest, so one conversion: each layer comes once, the config for everyone.
    let (large, _) = bench.large();
    assert_eq!(blobs[&large], 1, "{blobs:?}");
}
