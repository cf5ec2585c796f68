//! The harness of the tests in real microVMs.
//!
//! ```text
//! given     what the run was given: image, `bottle`, kernel; without them a test is skipped, loudly
//! host      directories of one test's own, the backend and the command line working in them
//! upstream  HTTPS servers and bare listeners on the host's loopback that count what reaches them
//! bench     a bottle with its host and upstreams: run a program in it, wait for an event of it
//! frame     a check with what it needs: the shared bottle, one of its own, or none
//! cli       the `bottle` command as a child of the test
//! processes what /proc says of a bottle's processes
//! layout    OCI layouts that are wrong in one way
//! terminal  a person at a terminal: the `bottle` command on a pseudo-terminal, its screen read
//! token     a GitHub token that is well-formed and nobody's, made at run time
//! wait      wait for a condition, never for time
//! ```
//!
//! Tests run where a microVM can run: as `cargo xtask smoke` starts them.
#![forbid(unsafe_code)]

pub mod bench;
pub mod cli;
pub mod frame;
pub mod given;
pub mod host;
pub mod layout;
pub mod processes;
pub mod registry;
pub mod terminal;
pub mod token;
pub mod upstream;
pub mod wait;
