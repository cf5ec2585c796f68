//! What the command says and returns, against the backend in memory.

mod bench;
mod binary;
mod bottles;
mod doctor;
mod failures;
mod images;
mod session;
mod usage;
