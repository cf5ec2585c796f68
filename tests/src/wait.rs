//! Waiting for conditions.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

/// Between two looks at a condition that nobody announces.
const INTERVAL: Duration = Duration::from_millis(50);

/// Looks until `look` returns something, and returns it.
///
/// # Errors
///
/// What `look` says, or that `what` did not come about within `deadline`.
pub async fn wait_for<T>(
    deadline: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if Instant::now() >= end {
            bail!("waited {deadline:?} in vain: {what}");
        }
        sleep(INTERVAL).await;
    }
}

/// Waits until a condition is true.
///
/// # Errors
///
/// That `what` did not come about within `deadline`.
pub async fn wait_until(
    deadline: Duration,
    what: &str,
    mut condition: impl FnMut() -> bool,
) -> Result<()> {
    wait_for(deadline, what, async || Ok(condition().then_some(()))).await
}
