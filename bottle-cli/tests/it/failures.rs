//! Starts that fail: what is said, and with which status.

use std::fs;

use bottle_core::reporter::Stage;
use bottle_core::testing::FakeBackend;
use insta::assert_snapshot;
use tempfile::TempDir;

use crate::bench::Bench;

#[tokio::test]
async fn a_start_without_an_image_says_how_to_get_one() {
    assert_snapshot!(Bench::new().run(&["--backend", "fake", "start"]).await, @r"
    status: 125
    ----- stdout
    ----- stderr
    error: no image was given
    hint: name one: `bottle start IMAGE`; `cargo xtask images build base` makes one and prints its directory, which is the image `oci:DIR`
    ");
}

#[tokio::test]
async fn an_image_that_is_not_there_is_named() {
    let words = ["--backend", "fake", "start", "oci:/nowhere:v1"];
    assert_snapshot!(Bench::new().run(&words).await, @r"
    status: 125
    ----- stdout
    ----- stderr
    error: cannot read image `oci:/nowhere:v1`
      caused by: No such file or directory (os error 2)
    hint: the only image here is `oci:/fake`
    ");
}

#[tokio::test]
async fn a_backend_nobody_knows_is_answered_with_the_known_ones() {
    let words = ["--backend", "docker", "start", "oci:/fake"];
    assert_snapshot!(Bench::new().run(&words).await, @r"
    status: 125
    ----- stdout
    ----- stderr
    error: there is no backend `docker` (known: `fake`)
    ");
}

#[tokio::test]
async fn a_machine_that_cannot_be_built_is_refused_before_the_start() {
    assert_snapshot!(Bench::new().start(&["--cpus", "5", "--", "true"]).await, @r"
    status: 125
    ----- stdout
    ----- stderr
    error: backend `fake` cannot give a bottle 5 virtual CPUs (at most 4)
    ");
}

#[tokio::test]
async fn a_stage_that_fails_is_named_with_cause_console_and_hint() {
    let bench = Bench::with(FakeBackend::new().failing_at(Stage::Jail));
    assert_snapshot!(bench.start(&["--", "true"]).await, @r"
    status: 125
    ----- stdout
    ----- stderr
    error: cannot start bottle `web`: stage `jail` failed
      caused by: this failure was asked for
      console: guest says \u{1b}[2Jhello
    hint: stop asking the fake to fail
    ");
}

#[tokio::test]
async fn a_program_that_is_not_there_is_127() {
    assert_snapshot!(Bench::new().start(&["--", "no-such-program"]).await, @r#"
    status: 127
    ----- stdout
    ----- stderr
    error: "no-such-program" was not found in the bottle
    hint: programs are looked up in the `PATH` of the image, not of this host
    "#);
}

#[tokio::test]
async fn a_program_that_cannot_be_run_is_126() {
    assert_snapshot!(Bench::new().start(&["--", "/etc/passwd"]).await, @r#"
    status: 126
    ----- stdout
    ----- stderr
    error: "/etc/passwd" cannot be run in the bottle: Permission denied
    "#);
}

#[tokio::test]
async fn a_user_that_the_image_lacks_is_125() {
    assert_snapshot!(Bench::new().start(&["--user", "nobody-here", "--", "true"]).await, @r#"
    status: 125
    ----- stdout
    ----- stderr
    error: cannot start "true" in the bottle: there is no user "nobody-here"
    "#);
}

#[tokio::test]
async fn a_bottle_that_crashes_is_told_with_its_console() {
    assert_snapshot!(Bench::new().start(&["--", "crash"]).await, @r"
    status: 125
    ----- stdout
    ----- stderr
    error: bottle `web` crashed
      console: kernel panic \u{1b}[2J
    ");
}

#[tokio::test]
async fn a_secret_that_cannot_be_had_is_named_and_never_shown() {
    assert_snapshot!(Bench::new().start(&["--secret", "env:TOKEN", "--", "true"]).await, @r"
    status: 125
    ----- stdout
    ----- stderr
    error: cannot take secret `env:TOKEN`
      caused by: the variable `TOKEN` is not set
    ");
    let bench = Bench::new().variable("TOKEN", "hunter2");
    let output = bench.start(&["--secret", "env:TOKEN", "--", "true"]).await;
    assert!(!output.to_string().contains("hunter2"), "{output}");
    assert_snapshot!(output, @r"
    status: 125
    ----- stdout
    ----- stderr
    error: cannot take secret `env:TOKEN`
      caused by: it has fewer than 8 bytes and would be found by accident
    ");
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named() {
    let words = ["--secret", "file:/nowhere/token", "--", "true"];
    assert_snapshot!(Bench::new().start(&words).await, @r"
    status: 125
    ----- stdout
    ----- stderr
    error: cannot take secret `file:/nowhere/token`
      caused by: No such file or directory (os error 2)
    ");
    let words = ["--upstream-ca", "/nowhere/ca.pem", "--", "true"];
    assert_snapshot!(Bench::new().start(&words).await, @r"
    status: 125
    ----- stdout
    ----- stderr
    error: cannot read CA certificates from `/nowhere/ca.pem`
      caused by: No such file or directory (os error 2)
    ");
}

#[tokio::test]
async fn a_ca_file_without_a_certificate_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("ca.der");
    fs::write(&path, [0x30, 0x82, 0xff]).unwrap();
    let output = Bench::new()
        .start(&["--upstream-ca", path.to_str().unwrap(), "--", "true"])
        .await;
    assert_eq!(output.status.0, 125, "{output}");
    assert!(
        output
            .stderr
            .contains("there is no `-----BEGIN CERTIFICATE-----` in it"),
        "{output}"
    );
    assert!(
        output.stderr.contains("hint: `openssl x509 -inform der"),
        "{output}"
    );
}
