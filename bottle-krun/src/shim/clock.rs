//! The guest's clock follows the host's when that is set, and after the host slept.
//!
//! A machine that stands still does not notice: its clock goes on where it was. The host's
//! monotonic clock stands still, too, while its wall clock does not (clock_gettime(2)), so the two
//! drift apart exactly when a guest has to be told.

use std::convert::Infallible;
use std::future::pending;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bottle_wire::guest::ToInit;
use bottle_wire::message;
use tokio::io::AsyncWrite;
use tokio::time::sleep;

/// How often the clocks are compared.
const PERIOD: Duration = Duration::from_secs(5);
/// What counts as a step. Less is the guest's own business.
const STEP: Duration = Duration::from_secs(2);

/// Tells the guest the time after every step, for ever.
pub(super) async fn follow<W: AsyncWrite + Unpin>(control: &mut W) -> Infallible {
    let start = Instant::now();
    let mut known = Reading::now(start);
    loop {
        sleep(PERIOD).await;
        let now = Reading::now(start);
        if !now.stepped_since(&known) {
            continue;
        }
        known = now;
        let unix_ns = u64::try_from(now.wall.as_nanos()).unwrap_or(u64::MAX);
        if message::write(control, &ToInit::Time { unix_ns })
            .await
            .is_err()
        {
            // The bottle is ending, which is noticed elsewhere.
            return pending().await;
        }
    }
}

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug)]
struct Reading {
    /// Since the Unix epoch.
    wall: Duration,
    /// Since the bottle began.
    steady: Duration,
}

impl Reading {
    fn now(start: Instant) -> Self {
        Self {
            wall: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
            steady: start.elapsed(),
        }
    }

    /// Whether one clock went much further than the other.
    fn stepped_since(&self, before: &Self) -> bool {
        let steady = self.steady.saturating_sub(before.steady);
        let expected = before.wall.saturating_add(steady);
        self.wall.abs_diff(expected) > STEP
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clock_that_was_set_or_a_host_that_slept_is_a_step() {
        let secs = Duration::from_secs;
        let before = Reading {
            wall: secs(1000),
            steady: secs(10),
        };
        let at = |wall, steady| Reading {
            wall: secs(wall),
            steady: secs(steady),
        };
        assert!(!at(1005, 15).stepped_since(&before));
        assert!(!at(1007, 15).stepped_since(&before));
        assert!(at(1008, 15).stepped_since(&before), "set forward, or slept");
        assert!(at(900, 15).stepped_since(&before), "set back");
    }
}
