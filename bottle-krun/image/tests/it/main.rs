//! Layouts made by code, converted, and read back: by a reader of this suite's own, by
//! `fsck.erofs`, and by the kernel where tests may mount.
#![expect(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "the helpers make input and oracles: what fails there fails the test, \
              and what is skipped must be said"
)]

mod archives;
mod bench;
mod calls;
mod corpus;
mod docker_registry;
mod export;
mod facts;
mod faults;
mod hostile;
mod kernel;
mod layouts;
mod pull;
mod reader;
mod registry;
mod resume;
mod scan;
mod shared;
mod stacks;
