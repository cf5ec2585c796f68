//! Bottles that live on their own, from the command line: over a backend in memory.

use bottle_core::event::Happening;
use bottle_core::testing::FakeBackend;
use insta::assert_snapshot;

use crate::bench::{Bench, Output};

/// A backend with a bottle that runs `sleep`, started by the command line.
async fn with_a_bottle(name: &str) -> (FakeBackend, Output) {
    let bench = Bench::new();
    let fake = bench.fake.clone();
    let words = [
        "start",
        "--detach",
        "oci:/fake",
        "--name",
        name,
        "--label",
        "team=a",
        "--",
        "sleep",
        "600",
    ];
    let output = bench.on(&words).await;
    (fake, output)
}

async fn on(fake: &FakeBackend, words: &[&str]) -> Output {
    Bench::with(fake.clone()).on(words).await
}

#[tokio::test]
async fn a_detached_start_prints_the_id_alone() {
    let (fake, output) = with_a_bottle("web").await;
    assert_snapshot!(output, @r"
    status: 0
    ----- stdout
    web
    ----- stderr
    ");
    assert_snapshot!(on(&fake, &["list"]).await, @r"
    status: 0
    ----- stdout
    ID   IMAGE      COMMAND    CREATED   STATE    PORTS
    web  oci:/fake  sleep 600  just now  running
    ----- stderr
    ");
    assert_snapshot!(on(&fake, &["list", "--ids"]).await, @r"
    status: 0
    ----- stdout
    web
    ----- stderr
    ");
}

#[tokio::test]
async fn a_stopped_bottle_is_listed_with_all_and_can_be_removed_once() {
    let (fake, _) = with_a_bottle("web").await;
    assert_snapshot!(on(&fake, &["rm", "web"]).await, @r"
    status: 1
    ----- stdout
    ----- stderr
    error: bottle `web` runs
    hint: `--force` stops it first
    ");
    assert_snapshot!(on(&fake, &["stop", "web"]).await, @r"
    status: 0
    ----- stdout
    web
    ----- stderr
    ");
    assert_snapshot!(on(&fake, &["list"]).await, @r"
    status: 0
    ----- stdout
    ID  IMAGE  COMMAND  CREATED  STATE  PORTS
    ----- stderr
    ");
    assert_snapshot!(on(&fake, &["list", "--all"]).await, @r"
    status: 0
    ----- stdout
    ID   IMAGE      COMMAND    CREATED   STATE                PORTS
    web  oci:/fake  sleep 600  just now  killed by signal 15
    ----- stderr
    ");
    assert_snapshot!(on(&fake, &["wait", "web"]).await, @r"
    status: 0
    ----- stdout
    143
    ----- stderr
    ");
    assert_snapshot!(on(&fake, &["exec", "web", "true"]).await, @r"
    status: 125
    ----- stdout
    ----- stderr
    error: bottle `web` does not run
    hint: `bottle restart web` starts it again
    ");
    assert_snapshot!(on(&fake, &["rm", "web"]).await, @r"
    status: 0
    ----- stdout
    web
    ----- stderr
    ");
    assert_snapshot!(on(&fake, &["rm", "web"]).await, @r"
    status: 1
    ----- stdout
    ----- stderr
    error: there is no bottle `web`
    hint: `bottle list --all` shows those there are
    ");
}

#[tokio::test]
async fn exec_ends_with_the_status_of_its_process_and_passes_input_on_only_if_asked() {
    let (fake, _) = with_a_bottle("web").await;
    let status = on(&fake, &["exec", "web", "sh", "-c", "exit 7"]).await;
    assert_eq!(status.status.0, 7, "{status}");
    let missing = on(&fake, &["exec", "web", "no-such-program"]).await;
    assert_eq!(missing.status.0, 127, "{missing}");
    let bench = Bench::with(fake.clone()).stdin("hello\n");
    let heard = bench.on(&["exec", "-i", "web", "cat"]).await;
    assert_eq!(heard.stdout, b"hello\n", "{heard}");
    let bench = Bench::with(fake.clone()).stdin("hello\n");
    let deaf = bench.on(&["exec", "web", "cat"]).await;
    assert_eq!(deaf.stdout, b"", "{deaf}");
    let bench = Bench::with(fake.clone());
    let words = [
        "exec", "-e", "A=b", "-u", "agent", "-w", "/tmp", "web", "env",
    ];
    let env = bench.on(&words).await;
    assert!(
        String::from_utf8_lossy(&env.stdout).contains("A=b"),
        "{env}"
    );
    assert_snapshot!(on(&fake, &["exec", "--tty", "web", "true"]).await, @r"
    status: 125
    ----- stdout
    ----- stderr
    error: standard input and output are no terminal to put in front of the command
    hint: leave `--tty` away
    ");
}

#[tokio::test]
async fn a_name_that_runs_is_not_taken_again_and_one_that_nobody_has_is_told() {
    let (fake, _) = with_a_bottle("web").await;
    let again = ["start", "oci:/fake", "--name", "web", "--", "true"];
    assert_snapshot!(on(&fake, &again).await, @r"
    status: 125
    ----- stdout
    ----- stderr
    error: a bottle named `web` runs already
    hint: `bottle attach web` connects to it, `bottle exec web CMD` runs a command in it; or choose another name
    ");
    assert_snapshot!(on(&fake, &["attach", "webb"]).await, @r"
    status: 125
    ----- stdout
    ----- stderr
    error: there is no bottle `webb`
    hint: `bottle list --all` shows those there are
    ");
}

#[tokio::test]
async fn what_the_main_process_said_is_printed_on_the_streams_it_came_on() {
    let bench = Bench::new();
    let fake = bench.fake.clone();
    let words = [
        "start",
        "-d",
        "oci:/fake",
        "--name",
        "web",
        "--",
        "echo",
        "said",
    ];
    bench.on(&words).await;
    on(&fake, &["wait", "web"]).await;
    assert_snapshot!(on(&fake, &["logs", "web"]).await, @r"
    status: 0
    ----- stdout
    said
    ----- stderr
    ");
    let later = on(&fake, &["logs", "--since", "2999-01-01T00:00:00Z", "web"]).await;
    assert_eq!(later.stdout, b"", "{later}");
    let stamped = on(&fake, &["logs", "-t", "web"]).await;
    let stamped = String::from_utf8_lossy(&stamped.stdout).into_owned();
    assert!(stamped.ends_with("Z said\n"), "{stamped}");
}

#[tokio::test]
async fn events_are_told_in_words_or_as_json_and_the_guests_words_are_escaped() {
    let hostile = Happening::Violation {
        what: "a door \u{1b}[2J".to_owned(),
    };
    let bench = Bench::with(FakeBackend::new().recording(hostile));
    let fake = bench.fake.clone();
    let words = [
        "start",
        "-d",
        "oci:/fake",
        "--name",
        "web",
        "--",
        "echo",
        "said",
    ];
    bench.on(&words).await;
    on(&fake, &["wait", "web"]).await;
    let told = on(&fake, &["events", "web"]).await;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("warning  a door \\u{1b}[2J"), "{told}");
    assert!(told.trim_end().ends_with("end      exited 0"), "{told}");
    on(&fake, &["rm", "web"]).await;
    let json = on(&fake, &["events", "--json", "web"]).await;
    let json = String::from_utf8_lossy(&json.stdout).into_owned();
    assert!(
        json.contains(r#""event":"end""#),
        "a removed bottle: {json}"
    );
}

#[tokio::test]
async fn a_bottle_that_is_not_kept_cannot_be_restarted_and_one_that_is_can() {
    let bench = Bench::new();
    let fake = bench.fake.clone();
    let words = [
        "start",
        "-d",
        "--rm",
        "oci:/fake",
        "--name",
        "gone",
        "--",
        "sleep",
        "600",
    ];
    bench.on(&words).await;
    assert_snapshot!(on(&fake, &["restart", "gone"]).await, @r"
    status: 125
    ----- stdout
    ----- stderr
    error: bottle `gone` is not kept when it ends, and can't be started again
    hint: start one with `--detach` or `--keep`
    ");
    let bench = Bench::with(fake.clone());
    bench
        .on(&[
            "start",
            "--keep",
            "oci:/fake",
            "--name",
            "kept",
            "--",
            "echo",
            "again",
        ])
        .await;
    assert_snapshot!(on(&fake, &["restart", "kept"]).await, @r"
    status: 0
    ----- stdout
    again
    ----- stderr
    ");
}
