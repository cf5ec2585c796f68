//! Processes with a terminal, on the machine of the test.

use bottle_wire::guest::{Exec, ExecReport, ProcessRequest, Window};
use bottle_wire::message;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;

use crate::control::testing::{Process, shell, with_init};

const WINDOW: Window = Window {
    rows: 24,
    cols: 80,
    x_pixels: 0,
    y_pixels: 0,
};

fn on_terminal(script: &str) -> Exec {
    Exec {
        tty: Some(WINDOW),
        ..shell(script)
    }
}

async fn type_in(process: &mut Process, keys: &str) {
    let stdin = process.stdio[0].as_mut().unwrap();
    stdin.write_all(keys.as_bytes()).await.unwrap();
    stdin.flush().await.unwrap();
}

#[test]
fn a_terminal_has_its_size_at_once_and_tells_of_another() {
    let script = "stty size; trap 'kill $!; stty size; exit 3' WINCH; sleep 600 & echo ready; wait";
    with_init(|host| async move {
        let mut process = host.start(on_terminal(script), &[0, 1]).await;
        assert_eq!(
            process.output_until("ready\r\n").await,
            "24 80\r\nready\r\n"
        );
        let request = ProcessRequest::Resize(Window {
            rows: 50,
            cols: 132,
            ..WINDOW
        });
        message::write(&mut process.control, &request)
            .await
            .unwrap();
        assert_eq!(process.output().await, "50 132\r\n");
        assert_eq!(process.report().await, ExecReport::Exited { code: 3 });
    });
}

/// Keys reach the foreground job alone: the shell is the session's leader, with jobs in groups of
/// their own. What is waited for is quoted where it is typed, so that its echo does not count.
#[test]
fn a_shell_controls_its_jobs_by_keys() {
    let shell = Exec {
        argv: vec!["sh".to_owned(), "-i".to_owned()],
        ..on_terminal("")
    };
    let job = "sh -c 'echo u\"\"p; exec sleep 600'\n";
    with_init(|host| async move {
        let mut process = host.start(shell, &[0, 1]).await;
        type_in(&mut process, job).await;
        process.output_until("up\r\n").await;
        type_in(&mut process, "\x1a").await;
        process.output_until("topped").await;
        type_in(&mut process, "kill -9 %1; wait; echo k''illed\n").await;
        process.output_until("killed").await;
        type_in(&mut process, job).await;
        process.output_until("up\r\n").await;
        type_in(&mut process, "\x03").await;
        type_in(&mut process, "echo a''live; exit 7\n").await;
        process.output_until("alive").await;
        process.output().await;
        assert_eq!(process.report().await, ExecReport::Exited { code: 7 });
    });
}

#[test]
fn a_terminal_that_the_host_drops_is_hung_up() {
    with_init(|host| async move {
        let mut process = host.start(on_terminal("echo up; cat"), &[0, 1]).await;
        process.output_until("up").await;
        process.stdio[1] = None;
        assert_eq!(process.report().await, ExecReport::Signaled { signal: 1 });
    });
}

/// The terminal ends with its process, when all that was shown has been read.
#[test]
fn all_that_was_shown_arrives_though_a_descendant_keeps_the_terminal() {
    let script = "(trap '' HUP; exec sleep 600) & echo $!; \
                  head -c 200000 /dev/zero | tr '\\0' x; exit 5";
    with_init(|host| async move {
        for _ in 0..10 {
            let mut process = host.start(on_terminal(script), &[0, 1]).await;
            assert_eq!(process.report().await, ExecReport::Exited { code: 5 });
            let output = process.output().await;
            let (descendant, shown) = output.split_once("\r\n").unwrap();
            kill(Pid::from_raw(descendant.parse().unwrap()), Signal::SIGKILL).unwrap();
            assert_eq!(shown.len(), 200_000);
            assert_eq!(shown.trim_matches('x'), "");
        }
    });
}

#[test]
fn a_descendant_that_shows_on_and_on_ends_with_the_terminal() {
    with_init(|host| async move {
        let script = "(trap '' HUP; exec yes) & exit 5";
        let mut process = host.start(on_terminal(script), &[0, 1]).await;
        assert_eq!(process.report().await, ExecReport::Exited { code: 5 });
        process.output().await;
    });
}

#[test]
fn a_terminal_belongs_to_the_user_and_is_the_controlling_one() {
    let script = "stat -c %u $(tty); echo by name >/dev/tty; echo $TERM";
    with_init(|host| async move {
        let exec = Exec {
            user: Some("12345:12345".to_owned()),
            ..on_terminal(script)
        };
        let (output, end) = host.run(exec).await;
        assert_eq!(output, "12345\r\nby name\r\nxterm\r\n");
        assert_eq!(end, ExecReport::Exited { code: 0 });
    });
}

#[test]
fn a_terminal_at_which_nobody_looks_holds_nothing_up() {
    with_init(|host| async move {
        let script = "head -c 1000000 /dev/zero && exit 4";
        let mut process = host.start(on_terminal(script), &[]).await;
        assert_eq!(process.report().await, ExecReport::Exited { code: 4 });
    });
}

#[test]
fn a_process_that_closes_its_terminal_is_not_hung_up() {
    let script = "trap 'exit 6' USR1; exec </dev/null >/dev/null 2>&1; while sleep 1; do :; done";
    with_init(|host| async move {
        let mut process = host.start(on_terminal(script), &[0, 1]).await;
        process.output().await;
        let signal = ProcessRequest::Signal { signal: 10 };
        message::write(&mut process.control, &signal).await.unwrap();
        assert_eq!(process.report().await, ExecReport::Exited { code: 6 });
    });
}
