//! Cases that start bottles of their own, or none.

use std::num::NonZero;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::sleep;

use super::{Seen, Subject, ensure, output};
use crate::backend::{BackendError, Command, Ended, ExitStatus};
use crate::testing::program::STUBBORN;
use crate::units::Vcpus;

/// A workload that ends at the first signal is given this long.
const GRACE: Duration = Duration::from_secs(5);

/// Between two looks at something that changes by itself.
const TICK: Duration = Duration::from_millis(50);

/// Planning says what would happen, and nothing happens.
///
/// # Errors
///
/// What was seen instead.
pub async fn a_plan_creates_nothing(subject: &Subject) -> Result<(), Seen> {
    let before = ((subject.traces)(), subject.backend.list().await?);
    let plan = subject.backend.plan(&subject.named("contract-plan")?)?;
    let after = ((subject.traces)(), subject.backend.list().await?);
    ensure!(before == after, "before: {before:?}, after: {after:?}");
    let name = subject.backend.name();
    ensure!(
        plan.backend == name,
        "the plan of `{name}` is one of `{}`",
        plan.backend
    );
    for what in ["image", "command", "record"] {
        let there = plan.lines.iter().any(|line| line.what == what);
        ensure!(there, "the plan says nothing about `{what}`");
    }
    Ok(())
}

/// A machine that the backend cannot build is refused before anything is created.
///
/// # Errors
///
/// What was seen instead.
pub async fn what_the_backend_lacks_is_refused_when_it_is_planned(
    subject: &Subject,
) -> Result<(), Seen> {
    let most = subject.backend.capabilities().max_vcpus;
    let Some(more) = most.checked_add(1).and_then(NonZero::new) else {
        return Ok(());
    };
    let mut spec = subject.named("contract-vcpus")?;
    spec.resources.vcpus = Vcpus(more);
    match subject.backend.plan(&spec) {
        Err(BackendError::Unsupported { .. }) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => Err(Seen(format!(
            "{more} virtual CPUs were planned, {most} can be had"
        ))),
    }
}

/// Start, list, open, a second handle, remove: and nothing is left.
///
/// # Errors
///
/// What was seen instead.
pub async fn a_bottle_is_listed_and_opened_while_it_runs_and_leaves_nothing_when_removed(
    subject: &Subject,
) -> Result<(), Seen> {
    const NAME: &str = "contract-life";
    let before = (subject.traces)();
    let bottle = subject.start(NAME).await?;
    let id = bottle.id().clone();
    ensure!(
        id.as_str().starts_with(NAME),
        "`{id}` is not derived from `{NAME}`"
    );
    ensure!(
        subject.runs(&id).await?,
        "the list does not show it running"
    );

    let opened = subject.backend.open(&id).await?;
    let said = output(opened.as_ref(), Command::new(["echo", "opened"]), b"").await?;
    ensure!(said.stdout == b"opened\n", "it said {:?}", said.stdout);
    drop(opened);
    ensure!(
        subject.runs(&id).await?,
        "dropping a handle that was opened ended it"
    );

    bottle.remove().await?;
    let list = subject.backend.list().await?;
    ensure!(
        list.iter().all(|it| it.id != id),
        "the list still shows it: {list:?}"
    );
    match subject.backend.open(&id).await {
        Err(BackendError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
        Ok(_) => return Err(Seen("it can still be opened".to_owned())),
    }
    let after = (subject.traces)();
    ensure!(before == after, "before: {before:?}, after: {after:?}");
    Ok(())
}

/// The second stop finds nothing to do; the status of the main process is the bottle's.
///
/// # Errors
///
/// What was seen instead.
pub async fn stopping_twice_is_stopping_once_and_waiting_says_how_it_ended(
    subject: &Subject,
) -> Result<(), Seen> {
    let bottle = subject.start("contract-stop").await?;
    let mut command = Command::new(["sh", "-c", "exit 7"]);
    command.main = true;
    let status = output(bottle.as_ref(), command, b"").await?.status;
    ensure!(status == ExitStatus::Exited(7), "the main process {status}");
    bottle.stop(GRACE).await?;
    bottle.stop(GRACE).await?;
    let ended = bottle.wait().await?;
    ensure!(
        ended == Ended::Goodbye(Some(ExitStatus::Exited(7))),
        "it ended as {ended:?}"
    );
    ensure!(
        bottle.wait().await? == ended,
        "waiting again says something else"
    );
    ensure!(
        bottle.exec(&Command::new(["true"])).await.is_err(),
        "a process started afterwards"
    );
    bottle.remove().await?;
    Ok(())
}

/// Nothing in a bottle can refuse to end.
///
/// # Errors
///
/// What was seen instead.
pub async fn a_workload_that_ignores_the_first_signal_is_killed_after_the_grace(
    subject: &Subject,
) -> Result<(), Seen> {
    let bottle = subject.start("contract-stubborn").await?;
    let mut process = bottle.exec(&Command::new(["sh", "-c", STUBBORN])).await?;
    let mut ready = [0; 6];
    process.stdout.read_exact(&mut ready).await?;
    ensure!(&ready == b"ready\n", "it said {ready:?}");
    bottle.stop(Duration::from_millis(200)).await?;
    let ended = bottle.wait().await?;
    ensure!(
        matches!(ended, Ended::Goodbye(None) | Ended::Killed),
        "it ended as {ended:?}"
    );
    bottle.remove().await?;
    Ok(())
}

/// A bottle lives no longer than the handle that owns it.
///
/// # Errors
///
/// What was seen instead.
pub async fn dropping_the_handle_that_started_a_bottle_ends_it(
    subject: &Subject,
) -> Result<(), Seen> {
    const NAME: &str = "contract-drop";
    let before = (subject.traces)();
    let bottle = subject.start(NAME).await?;
    let id = bottle.id().clone();
    ensure!(
        subject.runs(&id).await?,
        "the list does not show it running"
    );
    let process = bottle.exec(&Command::new(["cat"])).await?;
    drop(bottle);
    // The deadline is the case's.
    while subject.runs(&id).await? {
        sleep(TICK).await;
    }
    let status = process.control.wait().await;
    ensure!(
        !matches!(status, Ok(ExitStatus::Exited(_))),
        "a process in it ended well: {status:?}"
    );
    while (subject.traces)() != before {
        sleep(TICK).await;
    }
    Ok(())
}
