//! Processes, on the machine of the test.

use std::env;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process;

use bottle_wire::guest::{Exec, ExecReport, MAX_PROCESSES, ProcessRequest, SpawnFailure, Window};
use bottle_wire::message;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;

use crate::control::testing::{Host, Process, shell, with_init};

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

#[test]
fn as_many_as_are_allowed_run_at_once_and_one_more_is_told_so() {
    with_init(|host| async move {
        let mut running = Vec::new();
        for number in 0..MAX_PROCESSES {
            // They all wait for their input, so none ends before all run.
            let script = format!("read line; echo $line {number}");
            running.push(host.start(shell(&script), &[0, 1]).await);
        }
        let refused = host.ask(shell("true"), &[1]).await.report().await;
        let limit = MAX_PROCESSES;
        assert_eq!(refused, ExecReport::Failed(SpawnFailure::TooMany { limit }));
        for (number, mut process) in running.into_iter().enumerate().rev() {
            type_in(&mut process, "told\n").await;
            assert_eq!(process.output().await, format!("told {number}\n"));
            assert_eq!(process.report().await, ExecReport::Exited { code: 0 });
        }
        let (_, end) = host.run(shell("exit 2")).await;
        assert_eq!(end, ExecReport::Exited { code: 2 });
    });
}

#[test]
fn user_directory_and_variables_are_the_processes_own() {
    let script =
        "id -u; id -g; id -G; pwd; echo $HOME $USER $BOTTLE $OWN $TERM; echo x >/dev/stdout";
    let told = |exec: Exec| async move |host: &Host| host.run(exec).await.0;
    with_init(|host| async move {
        let root = told(shell(script))(&host).await;
        assert_eq!(root, "0\n0\n0\n/\n/root root 1\nx\n");
        let exec = Exec {
            user: Some("12345:54321".to_owned()),
            cwd: Some("/usr/bin/../lib".to_owned()),
            env: [("OWN", "yes"), ("BOTTLE", "2"), ("HOME", "/h")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            ..shell(script)
        };
        let own = told(exec)(&host).await;
        assert_eq!(own, "12345\n54321\n54321\n/usr/lib\n/h 12345 2 yes\nx\n");
    });
}

#[test]
fn a_program_that_cannot_be_started_says_why() {
    let dir = env::temp_dir().join(format!("bottle-exec-{}", process::id()));
    fs::create_dir_all(&dir).unwrap();
    let file = |name: &str, content: &str, mode| {
        let path = dir.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let data = file("data", "data", 0o644);
    let script = file("script", "#!/no/such/interpreter\n", 0o755);
    let secret = file("secret", "#!/bin/sh\n", 0o700);
    let failure = async |host: &Host, exec: Exec| {
        let report = host.ask(exec, &[1]).await.report().await;
        let ExecReport::Failed(failure) = report else {
            panic!("{report:?}")
        };
        failure
    };
    let program = |name: &str| Exec {
        argv: vec![name.to_owned()],
        ..shell("")
    };
    let setup = |why: &str| SpawnFailure::Setup(why.to_owned());
    with_init(|host| async move {
        for missing in [
            "no-such-program",
            "/no/such/program",
            "/etc/passwd/x",
            &script,
        ] {
            let failure = failure(&host, program(missing)).await;
            assert_eq!(failure, SpawnFailure::NotFound, "{missing}");
        }
        let mut foreign = program(&secret);
        foreign.user = Some("12345".to_owned());
        for exec in [program(&data), program("/etc"), foreign] {
            let failure = failure(&host, exec.clone()).await;
            let fits =
                matches!(&failure, SpawnFailure::NotExecutable(why) if why.contains("denied"));
            assert!(fits, "{exec:?}: {failure:?}");
        }
        let mut exec = shell("true");
        exec.cwd = Some("/no/such/directory".to_owned());
        assert_eq!(
            failure(&host, exec).await,
            setup("cannot enter the working directory: No such file or directory (os error 2)")
        );
        let mut exec = shell("true");
        exec.user = Some("nosuchuser".to_owned());
        let unknown = setup("the image has no user `nosuchuser`");
        assert_eq!(failure(&host, exec).await, unknown);
        let mut exec = shell("true");
        exec.argv.clear();
        assert_eq!(
            failure(&host, exec).await,
            setup("there is no program to run")
        );
    });
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_process_without_streams_runs_and_its_end_is_told() {
    let script = "cat; yes | head -c 1000000; echo x >&2; exit 9";
    with_init(|host| async move {
        let mut process = host.start(shell(script), &[]).await;
        assert_eq!(process.report().await, ExecReport::Exited { code: 9 });
    });
}
