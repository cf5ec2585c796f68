//! Cases of bottles that go on without whoever started them.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

use super::{Seen, Subject, ensure};
use crate::backend::{BackendError, Command, Ended, ExitStatus, State};
use crate::event::Happening;
use crate::id::BottleId;
use crate::log::{LogPosition, LogStream};
use crate::reporter::Silent;

/// Between two looks at something that changes by itself.
const TICK: Duration = Duration::from_millis(50);

/// Its handle is dropped, others attach, and it ends with its main process; then it is gone.
///
/// # Errors
///
/// What was seen instead.
pub async fn a_detached_bottle_goes_on_without_its_handle_and_ends_with_its_main_process(
    subject: &Subject,
) -> Result<(), Seen> {
    let before = (subject.traces)();
    let mut spec = subject.named("contract-detached")?;
    spec.detached = true;
    let plan = subject.backend.plan(&spec)?;
    let bottle = subject.backend.start(plan, &Silent).await?;
    let id = bottle.id().clone();
    match bottle.attach(None).await {
        Err(BackendError::NoMain { .. }) => {}
        Err(error) => return Err(error.into()),
        Ok(_) => return Err(Seen("there is a main process before it starts".to_owned())),
    }
    let mut command = Command::new(["cat"]);
    command.main = true;
    drop(bottle.exec(&command).await?);
    drop(bottle);
    ensure!(subject.runs(&id).await?, "it ended with its handle");

    let bottle = subject.backend.open(&id).await?;
    let mut first = bottle.attach(None).await?;
    let mut second = bottle.attach(None).await?;
    let mut stdin = first.stdin.take().ok_or_else(no_input)?;
    stdin.write_all(b"hello\n").await?;
    stdin.flush().await?;
    for process in [&mut first, &mut second] {
        let mut heard = [0; 6];
        process.stdout.read_exact(&mut heard).await?;
        ensure!(&heard == b"hello\n", "somebody heard {heard:?}");
    }
    ensure!(
        logged(subject, &id).await? == b"hello\n",
        "the log is another"
    );
    let live = bottle.inspect().await?;
    ensure!(live.main_started, "its main process does not run");

    bottle.kill(15).await?;
    let status = second.control.wait().await?;
    ensure!(
        status == ExitStatus::Signaled(15),
        "the main process {status}"
    );
    let ended = bottle.wait().await?;
    ensure!(
        ended == Ended::Goodbye(Some(ExitStatus::Signaled(15))),
        "it ended as {ended:?}"
    );
    drop((first, second, stdin, bottle));
    while (subject.traces)() != before || !subject.backend.list().await?.is_empty() {
        sleep(TICK).await;
    }
    let events = subject.backend.events(&id, 0).await?;
    let last = events.last().map(|event| &event.what);
    ensure!(
        matches!(
            last,
            Some(Happening::End {
                code: Some(143),
                ..
            })
        ),
        "its record ends with {last:?}"
    );
    Ok(())
}

/// Ended, it is listed; started again, it has its id and log; removed, it is gone.
///
/// # Errors
///
/// What was seen instead.
pub async fn a_bottle_that_is_kept_starts_again_until_it_is_removed(
    subject: &Subject,
) -> Result<(), Seen> {
    let before = (subject.traces)();
    let mut spec = subject.named("contract-kept")?;
    spec.kept = true;
    let plan = subject.backend.plan(&spec)?;
    let bottle = subject.backend.start(plan, &Silent).await?;
    let id = bottle.id().clone();
    let nothing = |name: &str| Err(format!("there is no secret `{name}`").into());
    let running = subject.backend.plan_again(&id, &nothing);
    ensure!(
        matches!(running, Err(BackendError::Running { .. })),
        "it can be started while it runs: {running:?}"
    );
    let mut command = Command::new(["sh", "-c", "exit 7"]);
    command.main = true;
    bottle.exec(&command).await?.control.wait().await?;
    bottle.stop(Duration::ZERO).await?;
    drop(bottle);
    loop {
        let list = subject.backend.list().await?;
        match list.iter().find(|it| it.id == id).map(|it| &it.state) {
            None => return Err(Seen("it is not listed any more".to_owned())),
            Some(State::Running) => sleep(TICK).await,
            Some(State::Ended { code: Some(7), .. }) => break,
            Some(state) => return Err(Seen(format!("it is listed as {state:?}"))),
        }
    }

    let plan = subject.backend.plan_again(&id, &nothing)?;
    ensure!(plan.id == id, "it would be started as `{}`", plan.id);
    let bottle = subject.backend.start(plan, &Silent).await?;
    ensure!(subject.runs(&id).await?, "it does not run again");
    bottle.stop(Duration::ZERO).await?;
    drop(bottle);
    while subject.runs(&id).await? {
        sleep(TICK).await;
    }
    subject.backend.remove(&id).await?;
    match subject.backend.remove(&id).await {
        Err(BackendError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
        Ok(()) => return Err(Seen("it was removed twice".to_owned())),
    }
    let after = (subject.traces)();
    ensure!(before == after, "before: {before:?}, after: {after:?}");
    Ok(())
}

/// Waits until something was logged, and returns all of it.
async fn logged(subject: &Subject, id: &BottleId) -> Result<Vec<u8>, Seen> {
    loop {
        let chunk = subject.backend.log(id, LogPosition::default()).await?;
        if !chunk.records.is_empty() {
            let out = chunk
                .records
                .iter()
                .filter(|it| it.stream == LogStream::Out);
            return Ok(out.flat_map(|record| record.bytes.clone()).collect());
        }
        sleep(TICK).await;
    }
}

fn no_input() -> io::Error {
    io::Error::other("it has no standard input")
}
