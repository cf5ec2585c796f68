//! The frames in which checks run: what they need is made, a failure tells all that is known, and
//! what was made goes away.

use std::env;
use std::io::{Write, stderr};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, ensure};
use bottle_core::backend::Ended;
use bottle_core::spec::Spec;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::bench::Bench;
use crate::given::{Given, vm};
use crate::host::TestHost;

/// Runs a check in the one bottle for all tests that leave it alive: a boot costs seconds.
///
/// Where hardware virtualization is emulated, a machine was seen to end under its guest without a
/// word of kernel or init (the cause is not proved). A check that this happens to is told so on
/// standard error and runs once more, in a new bottle; anything else fails at once.
///
/// # Panics
///
/// As [`vm`]; and if the bottle did not start.
#[track_caller]
pub fn in_shared_bottle(check: impl AsyncFn(&'static Bench) -> Result<()>) {
    vm(async |given| {
        let bench = shared(given).await?;
        let Err(error) = check(bench).await else {
            return Ok(());
        };
        let error = told(&error, &bench.host);
        if !is_lost_by_the_emulator(bench).await {
            return Err(error);
        }
        tell_loss(&error)?;
        let bench = shared(given).await?;
        check(bench)
            .await
            .map_err(|error| told(&error, &bench.host))
    });
}

/// Tells that a machine was lost, past the capture of a test's output: it is to be seen although
/// the test may pass.
fn tell_loss(error: &Error) -> Result<()> {
    let notice = "LOST MACHINE: it was reset without a word; once more in a new one";
    writeln!(stderr(), "{notice}\n{error:?}").context("cannot write to standard error")
}

/// Says whether the machine was reset under its guest: it is emulated, ended by itself, and neither
/// its kernel nor its init said a word, as both do before they end it.
async fn is_lost_by_the_emulator(bench: &Bench) -> bool {
    if env::var_os("BOTTLE_TEST_EMULATED").is_none() {
        return false;
    }
    let ended = timeout(Duration::from_secs(10), bench.bottle.wait()).await;
    matches!(ended, Ok(Ok(Ended::Crashed(how))) if how == "the VM ended (it exited with 0)")
}

/// Runs a check in a bottle of its own, then removes the bottle and looks for what is left of it.
///
/// # Panics
///
/// As [`vm`].
#[expect(
    clippy::needless_pass_by_value,
    reason = "a check is a closure, written where it is called"
)]
#[track_caller]
pub fn in_own_bottle(
    name: &str,
    change: impl Fn(&mut Spec),
    check: impl AsyncFn(&Bench) -> Result<()>,
) {
    vm(async |given| {
        let mut bench = Bench::start(given, name, &change).await?;
        let mut checked = check(&bench).await;
        if let Err(error) = &checked
            && is_lost_by_the_emulator(&bench).await
        {
            tell_loss(&told(error, &bench.host))?;
            bench = Bench::start(given, name, &change).await?;
            checked = check(&bench).await;
        }
        if let Err(error) = checked {
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
