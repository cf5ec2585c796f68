//! The guest's clock, which is the host's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use crate::error::{InitError, failed};

/// How far the two may be apart: less than that is the way from one to the other.
const TOLERANCE: Duration = Duration::from_millis(50);

/// Sets the clock to the host's time, nanoseconds since the Unix epoch, if it is another one.
pub(crate) fn set(unix_ns: u64) -> Result<(), InitError> {
    let host = Duration::from_nanos(unix_ns);
    let own = SystemTime::now().duration_since(UNIX_EPOCH);
    if own.is_ok_and(|own| agree(own, host)) {
        return Ok(());
    }
    let host = TimeSpec::from_duration(host);
    clock_settime(ClockId::CLOCK_REALTIME, host).map_err(failed("set", "the clock"))
}

fn agree(own: Duration, host: Duration) -> bool {
    own.abs_diff(host) <= TOLERANCE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_left_alone_within_its_tolerance_either_way() {
        let ms = Duration::from_millis;
        assert!(agree(ms(1000), ms(1050)) && agree(ms(1050), ms(1000)));
        assert!(!agree(ms(1000), ms(1051)) && !agree(ms(1051), ms(1000)));
    }
}
