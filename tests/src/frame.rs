//! The frames in which checks run: what they need is made, a failure tells all that is known, and
//! what was made goes away.

use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, ensure};
use bottle_core::spec::Spec;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::bench::Bench;
use crate::given::{Given, vm};
use crate::host::TestHost;

/// Runs a check in the one bottle for all tests that leave it alive: a boot costs seconds.
///
/// # Panics
///
/// As [`vm`]; and if the bottle did not start.
#[track_caller]
pub fn in_shared_bottle(check: impl AsyncFnOnce(&'static Bench) -> Result<()>) {
    vm(async |given| {
        let bench = shared(given).await?;
        check(bench)
            .await
            .map_err(|error| told(&error, &bench.host))
    });
}

/// Runs a check in a bottle of its own, then removes the bottle and looks for what is left of it.
///
/// # Panics
///
/// As [`vm`].
#[track_caller]
pub fn in_own_bottle(
    name: &str,
    change: impl FnOnce(&mut Spec),
    check: impl AsyncFnOnce(&Bench) -> Result<()>,
) {
    vm(async |given| {
        let mut bench = Bench::start(given, name, change).await?;
        if let Err(error) = check(&bench).await {
            bench.host.keep();
            return Err(told(&error, &bench.host));
        }
        bench
            .bottle
            .remove()
            .await
            .context("cannot remove the bottle")?;
        let left = bench.host.leftovers()?;
        ensure!(left.is_empty(), "a removed bottle left {left:?}");
        Ok(())
    });
}

/// Runs a check in directories of its own, without a bottle.
///
/// # Panics
///
/// As [`vm`].
#[track_caller]
pub fn on_host(check: impl AsyncFnOnce(&TestHost) -> Result<()>) {
    vm(async |given| {
        let mut host = TestHost::new(given)?;
        check(&host).await.map_err(|error| {
            host.keep();
            told(&error, &host)
        })
    });
}

/// Joins an error and what bottles of a host wrote; the error comes first.
fn told(error: &Error, host: &TestHost) -> Error {
    anyhow!("{error:?}\n{}", host.tails())
}

/// Returns the shared bottle, a new one if there is none or the last one has ended.
async fn shared(given: &'static Given) -> Result<&'static Bench> {
    static BENCH: Mutex<Option<&'static Bench>> = Mutex::const_new(None);
    let mut shared = BENCH.lock().await;
    if let Some(bench) = *shared
        && timeout(Duration::ZERO, bench.bottle.wait()).await.is_err()
    {
        return Ok(bench);
    }
    let bench = Bench::start(given, "shared", |_| {}).await;
    let bench = bench.context("cannot start the shared bottle")?;
    // It lives as long as the test program.
    Ok(shared.insert(Box::leak(Box::new(bench))))
}
