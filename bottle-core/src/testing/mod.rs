//! An in-memory backend and the conformance suite that any backend can run.
//!
//! [`FakeBackend`] starts nothing: a bottle is a value and its programs are a handful of functions.
//! [`contract`] is what makes the seam honest: the fake and the real backends pass the same cases.

pub mod contract;
mod fake;
mod fake_main;
mod images;
mod machine;
pub(crate) mod program;
#[cfg(test)]
mod tests;

pub use fake::FakeBackend;
