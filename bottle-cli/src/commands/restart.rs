//! `bottle restart`: a bottle that was kept, once more.

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use bottle_core::backend::{Backend, BackendError, Plan};
use bottle_core::id::BottleId;
use tokio::time::{Instant, sleep};

use super::start::{launch, proxy, value};
use crate::args::{Args, RestartArgs, SecretRef};
use crate::exit::Status;
use crate::failure::Failure;
use crate::found;
use crate::host::{Host, Lookup};
use crate::printer::Printer;
use crate::terminal::DetachKeys;

/// How long a bottle that was stopped may take to let go of what it holds.
const RELEASE: Duration = Duration::from_secs(10);
/// Between two looks at it.
const PERIOD: Duration = Duration::from_millis(20);

pub(super) async fn run(
    args: &Args,
    restart: &RestartArgs,
    host: &mut Host,
    printer: &Printer,
) -> Result<Status, Failure> {
    let backend = host.registry.make(&args.backend)?;
    let found = found::find(&*backend, &restart.bottle).await?;
    if !found.kept {
        return Err(Failure::user(anyhow!(
            "bottle `{}` is not kept when it ends, and can't be started again",
            found.id
        ))
        .hint("start one with `--detach` or `--keep`"));
    }
    if found.runs()
        && let Ok(bottle) = backend.open(&found.id).await
    {
        bottle
            .stop(Duration::from_secs(restart.time.into()))
            .await?;
    }
    let mut plan = plan(&backend, &found.id, &*host.variable).await?;
    plan.spec.proxy = proxy(&*host.variable)?;
    let keys = DetachKeys::default();
    launch(&*backend, plan, keys, args.verbosity(), host, printer).await
}

/// Plans as soon as what served the bottle before has gone.
async fn plan(
    backend: &Arc<dyn Backend>,
    id: &BottleId,
    variable: &Lookup,
) -> Result<Plan, Failure> {
    let look_up = |name: &str| {
        let reference: SecretRef = name.parse()?;
        value(&reference, variable).map_err(|failure| failure.into_error().into())
    };
    let deadline = Instant::now() + RELEASE;
    loop {
        match backend.plan_again(id, &look_up) {
            Err(BackendError::Running { .. }) if Instant::now() < deadline => sleep(PERIOD).await,
            plan => return Ok(plan?),
        }
    }
}
