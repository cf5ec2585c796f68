//! What is allowed reaches its upstream, through the gateway and nothing else; secrets stay.

use anyhow::{Context, Result, ensure};
use bottle_core::backend::Command;
use bottle_core::event::Happening;
use bottle_core::policy::Reason;
use bottle_tests::bench::{Bench, KNOWN_VALUE, Output};
use bottle_tests::frame::in_shared_bottle;
use bottle_tests::given::vm;
use bottle_tests::token;
use bottle_tests::upstream::CA_NAME;
use serde_json::Value;

/// Where the guest finds the gateway as a proxy.
const PROXY: &str = "http://198.18.0.1:3128";

/// Prints the issuer of the certificate that a TLS server shows, and its verification's verdict.
const ISSUER: &str = "
import socket, ssl, sys
host, port = sys.argv[1], int(sys.argv[2])
with socket.create_connection((host, port), 30) as tcp:
    with ssl.create_default_context().wrap_socket(tcp, server_hostname=host) as tls:
        print(tls.getpeercert()['issuer'])
";

#[test]
fn an_allowed_host_answers_without_any_proxy_variable() {
    in_shared_bottle(async |bench| {
        for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
            let mark = bench.mark().await?;
            let path = format!("/plain-{version}");
            let url = format!("https://allowed.test{path}");
            let args = [
                "--noproxy",
                "*",
                flag,
                "-w",
                "%{http_version} %{http_code}",
                &url,
            ];
            let told = bench.curl(&args).await?.success()?;
            assert_eq!(told, format!("hello from the upstream\n{version} 200"));
            assert_eq!(bench.upstream.seen(&path).len(), 1);
            assert_eq!(bench.upstream.seen(&path)[0].authority, "allowed.test");
            let allowed = bench.event(mark, "an event that the request was allowed", |what| {
                matches!(what, Happening::Allowed { host, path: Some(seen), rule, .. }
                    if host == "allowed.test" && *seen == path && rule.contains("allowed.test"))
            });
            allowed.await?;
        }
        Ok(())
    });
}

#[test]
fn an_allowed_host_answers_through_the_proxy_variable() {
    in_shared_bottle(async |bench| {
        let mut command = Command::new(["curl", "-sS", "https://allowed.test/proxied"]);
        command
            .env
            .push(("HTTPS_PROXY".to_owned(), PROXY.to_owned()));
        let told = bench.run_command(command, b"").await?.success()?;
        assert_eq!(told, "hello from the upstream");
        assert_eq!(bench.upstream.seen("/proxied").len(), 1);
        Ok(())
    });
}

#[test]
fn an_allowed_host_on_another_port_answers() {
    in_shared_bottle(async |bench| {
        let told = bench
            .curl(&["https://other.test:8443/elsewhere"])
            .await?
            .success()?;
        assert_eq!(told, "hello from the upstream");
        assert_eq!(bench.upstream.seen("/elsewhere").len(), 1);
        Ok(())
    });
}

#[test]
fn python_and_git_trust_the_bottles_authority_too() {
    in_shared_bottle(async |bench| {
        let program =
            "import urllib.request as u; print(u.urlopen('https://allowed.test/py').read())";
        let told = bench.python(program, &[]).await?.success()?;
        ensure!(told.contains("hello from the upstream"), "{told}");
        // No repository is there; that this is what git complains of shows that TLS was fine.
        let told = bench
            .run(["git", "ls-remote", "https://allowed.test/x.git"])
            .await?
            .failure()?;
        ensure!(!told.contains("certificate"), "{told}");
        ensure!(
            !bench.upstream.seen("/x.git/info/refs").is_empty(),
            "{told}"
        );
        Ok(())
    });
}

/// Fails if TLS passes through (the upstream's own authority shows) or if bottles share one.
#[test]
fn the_issuer_seen_in_a_guest_is_its_bottles_own_authority() {
    vm(async |given| {
        let other = Bench::start(given, "issuer-2", |_| {}).await?;
        let second = other
            .python(ISSUER, &["allowed.test", "443"])
            .await?
            .success()?;
        let other_root = other.run(["cat", BUNDLE]).await?.success()?;
        other.bottle.remove().await?;
        let first = Bench::start(given, "issuer-1", |_| {}).await?;
        let issuer = first
            .python(ISSUER, &["allowed.test", "443"])
            .await?
            .success()?;
        ensure!(
            !issuer.contains(CA_NAME) && !second.contains(CA_NAME),
            "{issuer} {second}"
        );
        ensure!(
            issuer.contains("issuer-1") && second.contains("issuer-2"),
            "{issuer} {second}"
        );
        // A name can be chosen freely; a key cannot: the other bottle's roots do not verify.
        let mut trust_other = Command::new(["sh", "-c", "cat >/tmp/other.pem"]);
        trust_other.stdin = true;
        first
            .run_command(trust_other, other_root.as_bytes())
            .await?
            .success()?;
        let told = first
            .curl(&["--cacert", "/tmp/other.pem", "https://allowed.test/"])
            .await?;
        ensure!(told.failure()?.contains("certificate"), "{told}");
        first.bottle.remove().await?;
        Ok(())
    });
}

/// The bundle of Debian's trusted roots.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

#[test]
fn an_upload_and_a_download_pass_the_gateway_unchanged() {
    in_shared_bottle(async |bench| {
        let script = "head -c 3000000 /dev/urandom >/tmp/up; sha256sum </tmp/up | cut -d' ' -f1
            curl -sS --max-time 60 -T /tmp/up https://allowed.test/echo/up";
        let told = bench.run(["sh", "-c", script]).await?.success()?;
        let (hash, echoed) = told.split_once('\n').context("two lines")?;
        let echoed: Value = serde_json::from_str(echoed)?;
        assert_eq!(
            (&echoed["sha256"], &echoed["bytes"]),
            (&hash.into(), &3_000_000.into())
        );
        let url = "https://allowed.test/big?bytes=5000000";
        let script = format!("curl -sS --max-time 60 '{url}' | wc -c");
        assert_eq!(
            bench.run(["sh", "-c", &script]).await?.success()?,
            "5000000"
        );
        Ok(())
    });
}

/// Runs curl with this body on its standard input and returns the answer, headers included.
async fn post(bench: &Bench, args: &[&str], body: &str) -> Result<Output> {
    let common = [
        "curl",
        "-sS",
        "-i",
        "--max-time",
        "60",
        "--data-binary",
        "@-",
    ];
    bench
        .run_command(
            Command::new(common.iter().chain(args).copied()),
            body.as_bytes(),
        )
        .await
}

/// The proof that this project started from. Fails if bodies are not scanned: the upstream then
/// sees the request, as it does with the token's last digit changed.
#[test]
fn a_github_token_in_a_body_is_refused_and_never_reaches_the_upstream() {
    in_shared_bottle(async |bench| {
        let token = token::github("body");
        let body = format!("{{\"note\": \"{token}\"}}");
        for flag in ["--http1.1", "--http2"] {
            let mark = bench.mark().await?;
            let told = post(
                bench,
                &[flag, "https://allowed.test/echo/body-secret"],
                &body,
            )
            .await?;
            let told = told.success()?;
            ensure!(
                told.lines()
                    .next()
                    .is_some_and(|line| line.contains(" 403")),
                "{told}"
            );
            ensure!(
                told.contains("request body contains secret: GitHub Token"),
                "{told}"
            );
            ensure!(
                !told.contains(&token),
                "the answer repeats the token: {told}"
            );
            let event = bench
                .refused(mark, "allowed.test", Reason::SecretFound)
                .await?;
            let event = serde_json::to_string(&event)?;
            ensure!(
                event.contains("request body contains secret: GitHub Token"),
                "{event}"
            );
            ensure!(
                !event.contains(&token),
                "the record repeats the token: {event}"
            );
        }
        assert_eq!(bench.upstream.seen("/body-secret").len(), 0);

        let last = if token.ends_with('0') { '1' } else { '0' };
        let harmless = body.replace(&token, &format!("{}{last}", &token[..39]));
        let told = post(
            bench,
            &["https://allowed.test/echo/body-harmless"],
            &harmless,
        )
        .await?;
        ensure!(told.success()?.contains(" 200"), "{told}");
        assert_eq!(bench.upstream.seen("/body-harmless").len(), 1);
        Ok(())
    });
}

/// The verdict does not depend on how the pieces of a request happen to arrive.
#[test]
fn a_github_token_in_a_body_is_refused_every_time() {
    in_shared_bottle(async |bench| {
        let program = "
import subprocess, sys
codes = []
for flag in ['--http1.1', '--http2'] * 6:
    done = subprocess.run(['curl', '-sS', '--max-time', '60', '-o', '/dev/null', flag,
        '-w', '%{http_code}', '--data-binary', '@-', 'https://allowed.test/every-time'],
        input=sys.argv[1].encode(), stdout=subprocess.PIPE)
    codes.append(done.stdout.decode())
print(*sorted(set(codes)))
";
        let token = token::github("every time");
        let told = bench.python(program, &[&token]).await?.success()?;
        assert_eq!(told, "403");
        assert_eq!(bench.upstream.seen("/every-time").len(), 0);
        Ok(())
    });
}

#[test]
fn a_github_token_in_a_body_is_refused_through_the_proxy_too() {
    in_shared_bottle(async |bench| {
        let body = format!("token={}", token::github("proxied body"));
        let args = ["-x", PROXY, "https://allowed.test/proxy-secret"];
        let told = post(bench, &args, &body).await?.success()?;
        ensure!(
            told.contains("request body contains secret: GitHub Token"),
            "{told}"
        );
        assert_eq!(bench.upstream.seen("/proxy-secret").len(), 0);
        Ok(())
    });
}

/// Fails wherever a part of the head is not scanned. The same request without a token passes.
#[test]
fn a_github_token_in_header_path_or_query_is_refused() {
    in_shared_bottle(async |bench| {
        let token = token::github("head");
        let with = |text: &str| {
            let header = format!("X-Note: {text}");
            [
                vec![
                    "-H".to_owned(),
                    header,
                    "https://allowed.test/in-header".to_owned(),
                ],
                vec![format!("https://allowed.test/in-path/{text}/x")],
                vec![format!("https://allowed.test/in-query?note={text}&b=1")],
            ]
        };
        for args in with(&token) {
            let mark = bench.mark().await?;
            let mut all = vec!["-i"];
            all.extend(args.iter().map(String::as_str));
            let told = bench.curl(&all).await?.success()?;
            ensure!(
                told.lines()
                    .next()
                    .is_some_and(|line| line.contains(" 403")),
                "{told}"
            );
            ensure!(
                told.contains("GitHub Token") && !told.contains(&token),
                "{told}"
            );
            let event = bench
                .refused(mark, "allowed.test", Reason::SecretFound)
                .await?;
            ensure!(
                !serde_json::to_string(&event)?.contains(&token),
                "{event:?}"
            );
        }
        for part in ["/in-header", "/in-path", "/in-query"] {
            assert_eq!(bench.upstream.seen(part).len(), 0, "{part}");
        }
        for args in with("nothing") {
            let args: Vec<_> = args.iter().map(String::as_str).collect();
            bench.curl(&args).await?.success()?;
        }
        for part in ["/in-header", "/in-path", "/in-query"] {
            assert_eq!(bench.upstream.seen(part).len(), 1, "{part}");
        }
        Ok(())
    });
}

/// Fails if known values are searched for in plain text only, or at one alignment only.
#[test]
fn a_known_value_is_refused_in_plain_text_and_in_base64_at_every_alignment() {
    in_shared_bottle(async |bench| {
        let program = "
import base64, subprocess, sys
for before in (b'', b'1', b'12'):
    body = base64.b64encode(before + sys.argv[1].encode() + b'!tail')
    done = subprocess.run(['curl', '-sS', '--max-time', '60', '-o', '/dev/null',
        '-w', '%{http_code} ', '--data-binary', '@-', 'https://allowed.test/known-value'], input=body)
";
        let told = bench.python(program, &[KNOWN_VALUE]).await?.success()?;
        assert_eq!(told, "403 403 403");
        let plain = post(bench, &["https://allowed.test/known-value"], KNOWN_VALUE).await?;
        ensure!(plain.success()?.contains(" 403"), "{plain}");
        assert_eq!(bench.upstream.seen("/known-value").len(), 0);
        let told = bench
            .python(program, &["an-equally-long-value-of-no-interest"])
            .await?;
        assert_eq!(told.success()?, "200 200 200");
        Ok(())
    });
}
