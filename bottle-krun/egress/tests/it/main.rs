//! The gateway between a guest's streams and real TLS servers on loopback.

mod allowed;
mod refused;
mod secrets;
mod streams;
mod support;
