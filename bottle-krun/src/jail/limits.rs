//! Resource limits of the vmm.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{Failure, OrFailure, Step};

/// Descriptors that a machine may need: one per vsock connection, each kept five seconds longer,
/// and one per file of the image's disk, of which there are at most some 500.
pub(crate) const MIN_DESCRIPTORS: u64 = 4096;

/// Raises the descriptors to what is needed or allowed, and forbids core dumps.
///
/// The number of processes is not limited: that counter is shared with the user's other ones.
///
/// # Errors
///
/// [`Failure`] if the hard limit is below [`MIN_DESCRIPTORS`].
pub(crate) fn apply() -> Result<(), Failure> {
    let step = Step::Limits;
    let (soft, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).or_failure(step, "read the descriptor limit")?;
    if hard < MIN_DESCRIPTORS {
        return Err(Failure::new(
            step,
            format!("only {hard} descriptors are allowed, {MIN_DESCRIPTORS} are needed"),
        )
        .hint("raise the hard limit: `ulimit -Hn 4096`, or LimitNOFILE= of the service"));
    }
    let wanted = soft.max(MIN_DESCRIPTORS);
    setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted)
        .or_failure(step, format!("allow {wanted} descriptors"))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).or_failure(step, "forbid core dumps")
}
