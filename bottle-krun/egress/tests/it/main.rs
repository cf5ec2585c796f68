//! The gateway between a guest's streams and real TLS servers on loopback.

#![expect(
    clippy::unwrap_used,
    reason = "the harness is test code outside `#[test]` functions"
)]

mod allowed;
mod credentials;
mod dlp;
mod host_proxy;
mod identity;
mod origin;
mod raw;
mod refused;
mod rules;
mod secrets;
mod streams;
mod support;
mod websocket;
