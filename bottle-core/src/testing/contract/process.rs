//! Cases which leave a bottle as they found it.

use tokio::io::AsyncReadExt;

use super::{Output, Seen, ensure, output};
use crate::backend::{BackendError, Bottle, Command, ExitStatus, SpawnFailure};
use crate::spec::UserName;

/// How many bytes go through a process: more than any buffer on the way holds.
const MUCH: u32 = 1 << 20;

/// Statuses 0, 1 and 7 come back as they are.
///
/// # Errors
///
/// What was seen instead.
pub async fn a_process_ends_with_the_status_it_chose(bottle: &dyn Bottle) -> Result<(), Seen> {
    for (words, code) in [
        (vec!["true"], 0),
        (vec!["false"], 1),
        (vec!["sh", "-c", "exit 7"], 7),
    ] {
        let Output { status, .. } = output(bottle, Command::new(words.clone()), b"").await?;
        ensure!(status == ExitStatus::Exited(code), "{words:?} {status}");
    }
    Ok(())
}

/// Death by signal is not an exit code.
///
/// # Errors
///
/// What was seen instead.
pub async fn a_process_that_kills_itself_ends_by_that_signal(
    bottle: &dyn Bottle,
) -> Result<(), Seen> {
    let command = Command::new(["sh", "-c", "kill -9 $$"]);
    let Output { status, .. } = output(bottle, command, b"").await?;
    ensure!(status == ExitStatus::Signaled(9), "it {status}");
    Ok(())
}

/// Missing, not executable and impossible are three different answers.
///
/// # Errors
///
/// What was seen instead.
pub async fn what_cannot_be_started_is_told_apart(bottle: &dyn Bottle) -> Result<(), Seen> {
    let mut impossible = Command::new(["true"]);
    impossible.user = UserName::try_from("nobody-here".to_owned()).ok();
    for (command, code) in [
        (Command::new(["no-such-program"]), 127),
        (Command::new(["/etc/passwd"]), 126),
        (impossible, 125),
    ] {
        match bottle.exec(&command).await {
            Err(BackendError::Spawn(failure)) => {
                ensure!(failure.code() == code, "{:?}: {failure}", command.argv);
                if let SpawnFailure::NotFound { program } = failure {
                    ensure!(program == "no-such-program", "the error names {program:?}");
                }
            }
            Err(error) => return Err(error.into()),
            Ok(_) => return Err(Seen(format!("{:?} started", command.argv))),
        }
    }
    Ok(())
}

/// Every byte value, a mebibyte of them, with an end of file behind the last.
///
/// # Errors
///
/// What was seen instead.
pub async fn standard_input_comes_back_from_cat_unchanged(bottle: &dyn Bottle) -> Result<(), Seen> {
    let sent: Vec<u8> = (0..MUCH)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0])
        .collect();
    let got = output(bottle, Command::new(["cat"]), &sent).await?;
    ensure!(got.status == ExitStatus::Exited(0), "cat {}", got.status);
    let same = got
        .stdout
        .iter()
        .zip(&sent)
        .take_while(|(a, b)| a == b)
        .count();
    ensure!(
        got.stdout == sent,
        "sent {} bytes, got {} of which the first {same} are the same",
        sent.len(),
        got.stdout.len()
    );
    Ok(())
}

/// Output is complete when the streams end.
///
/// # Errors
///
/// What was seen instead.
pub async fn output_and_errors_arrive_on_their_own_streams(
    bottle: &dyn Bottle,
) -> Result<(), Seen> {
    let said = output(bottle, Command::new(["echo", "out"]), b"").await?;
    ensure!(
        (said.stdout.as_slice(), said.stderr.as_slice()) == (b"out\n", b""),
        "`echo out` said {:?}, and as an error {:?}",
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    );
    let said = output(bottle, Command::new(["sh", "-c", "echo err >&2"]), b"").await?;
    ensure!(
        (said.stdout.as_slice(), said.stderr.as_slice()) == (b"", b"err\n"),
        "`echo err >&2` said {:?}, and as an error {:?}",
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    );
    Ok(())
}

/// Nobody waits for input that will not come.
///
/// # Errors
///
/// What was seen instead.
pub async fn a_process_without_standard_input_reads_the_end_at_once(
    bottle: &dyn Bottle,
) -> Result<(), Seen> {
    let mut command = Command::new(["cat"]);
    command.stdin = false;
    let got = output(bottle, command, b"").await?;
    ensure!(got.status == ExitStatus::Exited(0), "cat {}", got.status);
    ensure!(got.stdout.is_empty(), "cat read {} bytes", got.stdout.len());
    Ok(())
}

/// Values are passed as they are, whatever is in them.
///
/// # Errors
///
/// What was seen instead.
pub async fn variables_of_a_command_reach_its_process(bottle: &dyn Bottle) -> Result<(), Seen> {
    let value = "a b=c \"d\" $HOME 'e'";
    let mut command = Command::new(["env"]);
    command.env = vec![("CONTRACT".to_owned(), value.to_owned())];
    let got = output(bottle, command, b"").await?;
    let printed = String::from_utf8_lossy(&got.stdout).into_owned();
    let wanted = format!("CONTRACT={value}");
    ensure!(
        printed.lines().any(|line| line == wanted),
        "the variable is not among {} lines of `env`",
        printed.lines().count()
    );
    Ok(())
}

/// A process that waits holds up no other.
///
/// # Errors
///
/// What was seen instead.
pub async fn several_processes_run_at_once(bottle: &dyn Bottle) -> Result<(), Seen> {
    let waiting = bottle.exec(&Command::new(["cat"])).await?;
    let (one, two, three) = tokio::join!(
        output(bottle, Command::new(["echo", "1"]), b""),
        output(bottle, Command::new(["cat"]), b"2"),
        output(bottle, Command::new(["sh", "-c", "exit 3"]), b""),
    );
    let (one, two, three) = (one?, two?, three?);
    ensure!(one.stdout == b"1\n", "the first said {:?}", one.stdout);
    ensure!(two.stdout == b"2", "the second said {:?}", two.stdout);
    ensure!(
        three.status == ExitStatus::Exited(3),
        "the third {}",
        three.status
    );
    drop(waiting.stdin);
    let status = waiting.control.wait().await?;
    ensure!(status == ExitStatus::Exited(0), "the waiting one {status}");
    Ok(())
}

/// A signal reaches a process while its streams are in use, and one that comes late is no error.
///
/// # Errors
///
/// What was seen instead.
pub async fn a_signal_ends_a_process(bottle: &dyn Bottle) -> Result<(), Seen> {
    let mut process = bottle.exec(&Command::new(["cat"])).await?;
    process.control.signal(15).await?;
    let status = process.control.wait().await?;
    ensure!(status == ExitStatus::Signaled(15), "it {status}");
    let mut rest = Vec::new();
    process.stdout.read_to_end(&mut rest).await?;
    ensure!(rest.is_empty(), "its output held {} bytes", rest.len());
    process.control.signal(15).await?;
    let again = process.control.wait().await?;
    ensure!(again == status, "waiting again says it {again}");
    Ok(())
}

/// The record starts with the start, and a part of it is a part of the whole.
///
/// # Errors
///
/// What was seen instead.
pub async fn events_are_numbered_from_one_without_gaps(bottle: &dyn Bottle) -> Result<(), Seen> {
    let all = bottle.events(1).await?;
    ensure!(!all.is_empty(), "a bottle that runs has recorded nothing");
    let numbers: Vec<u64> = all.iter().map(|event| event.seq).collect();
    ensure!(
        (1..).zip(&numbers).all(|(n, seq)| n == *seq),
        "they are {numbers:?}"
    );
    let later = bottle.events(2).await?;
    ensure!(
        later.iter().take(all.len() - 1).eq(all.iter().skip(1)),
        "from 2 on they are other ones"
    );
    Ok(())
}
