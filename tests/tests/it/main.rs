//! Tests in real microVMs: `cargo xtask smoke [FILTER]` runs them where they can run.
//!
//! Elsewhere each of them says on standard error that it was skipped, and why. Every test of a
//! defence says how it fails when the defence is taken away.

mod bad_input;
mod boot;
mod cli;
mod conformance;
mod disk_full;
mod dns;
mod egress;
mod exec;
mod files;
mod image_config;
mod kill;
mod layers;
mod refused;
mod registry;
mod servers;
mod sessions;
mod stall;
mod unprivileged;
