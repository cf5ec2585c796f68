//! What `image` says and returns.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use bottle_cli::exit::Status;
use bottle_cli::host::Signal;
use bottle_core::testing::FakeBackend;
use insta::assert_snapshot;

use crate::bench::{Bench, Output, Pipe};

/// Runs one command line against images that earlier ones left.
async fn run(fake: &FakeBackend, args: &[&str]) -> Output {
    let args = [&["--backend", "fake", "image"], args].concat();
    Bench::with(fake.clone()).run(&args).await
}

/// A pull takes however long it takes.
fn timeless(output: &Output) -> String {
    let text = output.to_string();
    let Some((before, _)) = text.rsplit_once(", in ") else {
        return text;
    };
    format!("{before}, in …")
}

#[tokio::test]
async fn a_pull_says_what_came_in_and_a_second_one_that_it_is_here() {
    let fake = FakeBackend::new();
    assert_snapshot!(timeless(&run(&fake, &["pull", "oci:/fake"]).await), @r"
    status: 0
    ----- stdout
    ----- stderr
    1 of 1 layers are not here yet: 47.0 MB
    layer 1 of 1 is whole: sha256:000000000000, 47.0 MB
    `oci:/fake` is here now: 1 layer, 47.0 MB, in …
    ");
    assert_snapshot!(run(&fake, &["pull", "oci:/fake"]).await, @r"
    status: 0
    ----- stdout
    ----- stderr
    `oci:/fake` is here already
    ");
    let quiet = run(&fake, &["pull", "oci:/fake", "--quiet"]).await;
    assert_snapshot!(quiet, @r"
    status: 0
    ----- stdout
    ----- stderr
    ");
}

#[tokio::test]
async fn an_image_that_is_nowhere_is_an_error() {
    assert_snapshot!(run(&FakeBackend::new(), &["pull", "oci:/none"]).await, @r"
    status: 1
    ----- stdout
    ----- stderr
    error: cannot pull image `oci:/none`
      caused by: No such file or directory (os error 2)
    hint: the only image here is `oci:/fake`
    ");
}

#[tokio::test]
async fn images_are_listed_inspected_and_removed() {
    let fake = FakeBackend::new();
    assert_snapshot!(run(&fake, &["ls"]).await, @r"
    status: 0
    ----- stdout
    NAME  DIGEST  ADDED  OWN  SHARED
    ----- stderr
    ");
    run(&fake, &["pull", "oci:/fake", "-q"]).await;
    let listed = run(&fake, &["ls"]).await.to_string();
    // Its age grows.
    let listed = listed.replace(|c: char| c.is_ascii_digit(), "0");
    assert_snapshot!(listed, @r"
    status: 0
    ----- stdout
    NAME       DIGEST        ADDED        OWN       SHARED
    oci:/fake  000000000000  00000 d ago  000.0 MB  0 B
    ----- stderr
    ");
    assert_snapshot!(run(&fake, &["inspect", "oci:/fake"]).await, @r#"
    status: 0
    ----- stdout
    {
      "name": "oci:/fake",
      "manifest": "sha256:0000000000000000000000000000000000000000000000000000000000000002",
      "added": 0,
      "layers": [
        {
          "digest": "sha256:0000000000000000000000000000000000000000000000000000000000000001",
          "size": 47000000,
          "diff_id": "sha256:0000000000000000000000000000000000000000000000000000000000000003"
        }
      ],
      "config": {
        "architecture": "amd64",
        "os": "linux"
      }
    }
    ----- stderr
    "#);
    assert_snapshot!(run(&fake, &["rm", "oci:/fake"]).await, @r"
    status: 0
    ----- stdout
    ----- stderr
    removed `oci:/fake`
    120.0 MB freed
    ");
    assert_snapshot!(run(&fake, &["rm", "oci:/fake"]).await, @r"
    status: 1
    ----- stdout
    ----- stderr
    error: cannot remove image `oci:/fake`
      caused by: there is no such image here
    ");
}

#[tokio::test]
async fn pruning_says_what_was_freed() {
    let fake = FakeBackend::new();
    run(&fake, &["pull", "oci:/fake", "-q"]).await;
    assert_snapshot!(run(&fake, &["prune"]).await, @r"
    status: 0
    ----- stdout
    ----- stderr
    0 B freed
    ");
    assert_snapshot!(run(&fake, &["prune", "--all", "--json"]).await, @r#"
    status: 0
    ----- stdout
    {
      "names": [
        "oci:/fake"
      ],
      "bytes": 120000000
    }
    ----- stderr
    "#);
}

/// The files of a directory.
fn names(dir: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).collect()
}

#[tokio::test]
async fn an_export_goes_to_standard_output_or_to_a_file() {
    let fake = FakeBackend::new();
    run(&fake, &["pull", "oci:/fake", "-q"]).await;
    assert_snapshot!(timeless(&run(&fake, &["export", "oci:/fake"]).await), @r"
    status: 0
    ----- stdout
    an archive
    ----- stderr
    `oci:/fake` is written to standard output: 1 layer, 11 B, in …
    ");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("image.tar");
    let link = dir.path().join("link");
    symlink("image.tar", &link).unwrap();
    for place in [&file, &link] {
        let place = place.to_str().unwrap();
        let output = run(&fake, &["export", "oci:/fake", "-o", place]).await;
        assert_eq!(output.status, Status::DONE, "{output}");
        assert!(output.stdout.is_empty(), "{output}");
        assert!(
            output.stderr.contains("image.tar`: 1 layer, 11 B"),
            "{output}"
        );
        assert_eq!(fs::read_to_string(&file).unwrap(), "an archive\n");
        fs::write(&file, "older").unwrap();
    }
    assert!(link.is_symlink());
    assert_eq!(names(dir.path()).len(), 2);
}

#[tokio::test]
async fn a_terminal_gets_no_archive() {
    let fake = FakeBackend::new();
    run(&fake, &["pull", "oci:/fake", "-q"]).await;
    let args = ["--backend", "fake", "image", "export", "oci:/fake"];
    assert_snapshot!(Bench::with(fake).terminal().run(&args).await, @r"
    status: 1
    ----- stdout
    ----- stderr
    error: an archive is nothing for a terminal
    hint: name a file with `--output FILE`, or send standard output to one or a program
    ");
}

#[tokio::test]
async fn an_export_that_fails_or_is_stopped_leaves_what_was_there() {
    let fake = FakeBackend::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("image.tar");
    fs::write(&file, "older").unwrap();
    let place = file.to_str().unwrap();
    assert_snapshot!(run(&fake, &["export", "oci:/fake", "-o", place]).await, @r"
    status: 1
    ----- stdout
    ----- stderr
    error: cannot export image `oci:/fake`
      caused by: there is no such image here
    ");
    run(&fake, &["pull", "oci:/fake", "-q"]).await;
    let bench = Bench::with(fake.hanging_exports());
    bench.signals().send(Signal::Interrupt).await.unwrap();
    let args = [
        "--backend",
        "fake",
        "image",
        "export",
        "oci:/fake",
        "-o",
        place,
    ];
    assert_snapshot!(bench.run(&args).await, @r"
    status: 130
    ----- stdout
    ----- stderr
    ");
    assert_eq!(names(dir.path()), ["image.tar"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "older");
}

#[tokio::test]
async fn an_export_replaces_files_and_nothing_else() {
    let fake = FakeBackend::new();
    run(&fake, &["pull", "oci:/fake", "-q"]).await;
    for place in ["/", "/dev/null"] {
        let output = run(&fake, &["export", "oci:/fake", "-o", place]).await;
        assert_eq!(output.status, Status::FAILED, "{output}");
        assert!(
            output
                .stderr
                .contains("it is a directory, a device or a pipe"),
            "{output}"
        );
    }
    let output = run(&fake, &["export", "oci:/fake", "-o", "/no/where/image.tar"]).await;
    assert!(
        output.stderr.contains("cannot write `/no/where/image.tar`"),
        "{output}"
    );
}

#[tokio::test]
async fn a_reader_who_has_seen_enough_is_no_failure() {
    let fake = FakeBackend::new();
    run(&fake, &["pull", "oci:/fake", "-q"]).await;
    let args = ["--backend", "fake", "image", "export", "oci:/fake"];
    assert_snapshot!(Bench::with(fake).stdout(Pipe::closed()).run(&args).await, @r"
    status: 0
    ----- stdout
    ----- stderr
    ");
}
