//! Starts that come to a session: plan, streams, signals, statuses, summary.

use std::fs;
use std::future::Future;

use bottle_cli::host::Signal;
use bottle_core::event::Happening;
use bottle_core::policy::Reason;
use bottle_core::reporter::Stage;
use bottle_core::testing::FakeBackend;
use insta::assert_snapshot;
use tempfile::TempDir;
use tokio::sync::mpsc::Sender;

use crate::bench::{Bench, Output, Pipe, until};

/// The script that outlives SIGINT and SIGTERM.
const STUBBORN: [&str; 4] = [
    "--",
    "sh",
    "-c",
    "trap '' INT TERM; echo ready; while :; do sleep 1; done",
];

fn refusal() -> Happening {
    Happening::Refused {
        id: "abcd2345".to_owned(),
        host: "evil.test".to_owned(),
        port: 443,
        method: None,
        path: None,
        reason: Reason::HostNotAllowed,
        detail: "no rule names it".to_owned(),
    }
}

#[tokio::test]
async fn a_dry_run_says_what_would_be_done_and_does_nothing() {
    let dir = TempDir::new().unwrap();
    let token = dir.path().join("token");
    fs::write(&token, "hunter2-hunter2\n").unwrap();
    let bench = Bench::new()
        .variable("LANG", "C.UTF-8")
        .variable("TOKEN", "hunter2-hunter2");
    let fake = bench.fake.clone();
    let words = [
        "--dry-run",
        "--allow",
        "*.api.test",
        "--allow",
        "git.test:22",
        "--env",
        "A=secret",
        "-e",
        "LANG",
        "-e",
        "ABSENT",
        "--user",
        "agent",
        "--cpus",
        "2",
        "--memory",
        "2g",
        "--resolve",
        "git.test:22:127.0.0.1:2222",
        "--secret",
        "env:TOKEN",
        "--",
        "echo",
        "a b",
    ];
    let output = bench.start(&words).await;
    assert!(!output.to_string().contains("hunter2"), "{output}");
    assert_snapshot!(output, @r"
    status: 0
    ----- stdout
    name     web
    image    oci:/fake
    command  echo a b
    user     agent
    env      A
    env      LANG
    rule     allow git.test:22
    rule     allow *.api.test
    resolve  git.test:22:127.0.0.1:2222
    secret   env:TOKEN
    vcpus    2
    memory   2048 MiB
    record   /fake/web/record.jsonl
    ----- stderr
    ");
    assert!(fake.cleaned().is_empty());
}

#[tokio::test]
async fn a_plan_can_be_had_as_json() {
    assert_snapshot!(Bench::new().start(&["--dry-run", "--json"]).await, @r#"
    status: 0
    ----- stdout
    {"backend":"fake","id":"web","plan":[{"value":"oci:/fake","what":"image"},{"value":"echo from the image","what":"command"},{"value":"root","what":"user"},{"value":"1","what":"vcpus"},{"value":"1024 MiB","what":"memory"},{"value":"/fake/web/record.jsonl","what":"record"}]}
    ----- stderr
    "#);
}

#[tokio::test]
async fn what_an_image_says_in_a_plan_cannot_steer_the_terminal() {
    let output = Bench::new()
        .start(&["--dry-run", "--", "echo", "\u{1b}[2J"])
        .await;
    assert!(!output.stdout.contains(&0x1b), "{output}");
}

#[tokio::test]
async fn statuses_come_through() {
    for (words, status) in [
        (vec!["true"], 0),
        (vec!["false"], 1),
        (vec!["sh", "-c", "exit 7"], 7),
        (vec!["sh", "-c", "kill -9 $$"], 137),
    ] {
        let words: Vec<_> = ["--"].into_iter().chain(words).collect();
        let output = Bench::new().start(&words).await;
        assert_eq!(output.status.0, status, "{words:?}\n{output}");
        assert_eq!(output.stderr, "", "{words:?}");
    }
}

#[tokio::test]
async fn without_a_command_the_image_says_what_runs() {
    assert_snapshot!(Bench::new().start(&[]).await, @r"
    status: 0
    ----- stdout
    from the image
    ----- stderr
    ");
}

#[tokio::test]
async fn a_bottle_that_nobody_named_gets_a_name() {
    let words = [
        "--backend",
        "fake",
        "start",
        "oci:/fake",
        "-v",
        "--",
        "true",
    ];
    let output = Bench::new().run(&words).await;
    assert_eq!(output.status.0, 0, "{output}");
    assert!(output.stderr.contains("started `"), "{output}");
}

#[tokio::test]
async fn input_comes_back_byte_for_byte() {
    let sent: Vec<u8> = (0..3_000_000_u32)
        .map(|n| (n.wrapping_mul(n) >> 7).to_le_bytes()[0])
        .collect();
    let output = Bench::new().stdin(sent.clone()).start(&["--", "cat"]).await;
    assert_eq!(output.status.0, 0);
    assert!(
        output.stdout == sent,
        "{} bytes came back",
        output.stdout.len()
    );
    assert_eq!(output.stderr, "");
}

#[tokio::test]
async fn the_errors_of_the_command_go_to_standard_error() {
    let output = Bench::new()
        .start(&["--", "sh", "-c", "echo err >&2"])
        .await;
    assert_snapshot!(output, @r"
    status: 0
    ----- stdout
    ----- stderr
    err
    ");
}

#[tokio::test]
async fn a_command_that_does_not_read_its_input_ends_all_the_same() {
    let output = Bench::new().silent_stdin().start(&["--", "true"]).await;
    assert_eq!(output.status.0, 0, "{output}");
}

#[tokio::test]
async fn variables_reach_the_command_and_an_absent_one_is_not_set() {
    let here = || Bench::new().variable("HERE", "from the host");
    let words = [
        "-e", "A=1", "-e", "A=2=3", "-e", "HERE", "-e", "ABSENT", "--", "env",
    ];
    assert_snapshot!(here().start(&words).await, @r"
    status: 0
    ----- stdout
    A=2=3
    HERE=from the host
    ----- stderr
    ");
}

#[tokio::test]
async fn a_reader_that_has_gone_is_no_error() {
    let output = Bench::new()
        .stdout(Pipe::closed())
        .start(&["--", "yes"])
        .await;
    assert_eq!(output.status.0, 128 + 13, "{output}");
    assert_eq!(output.stderr, "");
    let output = Bench::new()
        .stdout(Pipe::closed())
        .start(&["--dry-run"])
        .await;
    assert_eq!(output.status.0, 0, "{output}");
    assert_eq!(output.stderr, "");
}

#[tokio::test]
async fn refusals_are_counted_at_the_end() {
    let once = || FakeBackend::new().recording(refusal());
    assert_snapshot!(Bench::with(once()).start(&["--", "true"]).await, @r"
    status: 0
    ----- stdout
    ----- stderr
    1 request was refused; see /fake/web/record.jsonl
    ");
    let twice = once().recording(refusal());
    assert_snapshot!(Bench::with(twice).start(&["--", "false"]).await, @r"
    status: 1
    ----- stdout
    ----- stderr
    2 requests were refused; see /fake/web/record.jsonl
    ");
    let output = Bench::with(once()).start(&["-q", "--", "true"]).await;
    assert_eq!(output.stderr, "");
}

#[tokio::test]
async fn every_stage_is_told_on_request() {
    let output = Bench::new().start(&["-v", "--", "true"]).await;
    let stderr = output.stderr.replace("0.1s", "0.0s");
    assert_snapshot!(stderr, @r"
    web: resolve 0.0s (nothing to do)
    web: image 0.0s (nothing to do)
    web: disks 0.0s (nothing to do)
    web: shim 0.0s (nothing to do)
    web: jail 0.0s (nothing to do)
    web: boot 0.0s (nothing to do)
    web: hello 0.0s (nothing to do)
    web: provision 0.0s (nothing to do)
    web: run 0.0s (nothing to do)
    started `web` in 0.0s
    removed `web`; nothing was refused; see /fake/web/record.jsonl
    ");
}

#[tokio::test]
async fn a_live_line_vanishes_from_the_terminal_and_one_line_stays() {
    let output = Bench::new().terminal().start(&["--", "true"]).await;
    let shown = output.stderr.replace("0.1s", "0.0s");
    let (live, rest) = shown.rsplit_once("\r\u{1b}[2K").unwrap();
    assert!(live.contains("\r\u{1b}[2Kweb: booting…"), "{shown:?}");
    assert!(!live.contains('\n'), "{shown:?}");
    assert_eq!(rest, "started `web` in 0.0s\n");
}

#[tokio::test]
async fn a_live_line_vanishes_before_an_error_is_told() {
    let bench = Bench::with(FakeBackend::new().failing_at(Stage::Boot)).terminal();
    let output = bench.start(&["--", "true"]).await;
    let (_, rest) = output.stderr.rsplit_once("\r\u{1b}[2K").unwrap();
    assert!(
        rest.starts_with("error: cannot start bottle `web`"),
        "{output}"
    );
}

/// Starts a command, does something when it says `ready` or runs, and returns what came of it.
async fn meanwhile<F: Future<Output = ()>>(
    bench: Bench,
    words: &[&str],
    act: impl FnOnce(Sender<Signal>) -> F,
) -> Output {
    let signals = bench.signals();
    let fake = bench.fake.clone();
    let stdout = bench.stdout.clone();
    let stubborn = words.contains(&STUBBORN[3]);
    let acting = async {
        until("the bottle runs", || {
            fake.traces().contains(&"web/run".to_owned())
        })
        .await;
        if stubborn {
            until("it is ready", || stdout.text() == "ready\n").await;
        }
        act(signals).await;
    };
    let (output, ()) = tokio::join!(bench.start(words), acting);
    output
}

#[tokio::test]
async fn signals_reach_the_command() {
    for (signal, status) in [
        (Signal::Interrupt, 130),
        (Signal::Hangup, 129),
        (Signal::Terminate, 143),
    ] {
        let bench = Bench::new().silent_stdin();
        let output = meanwhile(bench, &["--", "cat"], |signals| async move {
            signals.send(signal).await.unwrap();
        });
        assert_eq!(output.await.status.0, status, "{signal:?}");
    }
}

#[tokio::test]
async fn a_command_that_ignores_signals_is_killed_by_the_third_interrupt() {
    let bench = Bench::new().silent_stdin();
    let output = meanwhile(bench, &STUBBORN, |signals| async move {
        for _ in 0..3 {
            signals.send(Signal::Interrupt).await.unwrap();
        }
    });
    let output = output.await;
    assert_eq!(output.status.0, 137, "{output}");
    assert_eq!(output.stderr, "");
}

#[tokio::test]
async fn an_interrupt_during_the_start_gives_it_up_and_leaves_nothing() {
    let fake = FakeBackend::new().hanging_at(Stage::Boot);
    let bench = Bench::with(fake.clone());
    let signals = bench.signals();
    let interrupt = async {
        until("it boots", || {
            fake.traces().contains(&"web/boot".to_owned())
        })
        .await;
        signals.send(Signal::Interrupt).await.unwrap();
    };
    let (output, ()) = tokio::join!(bench.start(&["--", "true"]), interrupt);
    assert_eq!(output.status.0, 130, "{output}");
    assert_eq!(fake.cleaned().first().unwrap(), "web/boot");
}
