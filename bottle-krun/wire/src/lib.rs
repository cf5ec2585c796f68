//! The protocols between guest, host process and client.
//!
//! ```text
//! client ──client::Open──► shim ──guest::FromHost──► init      one mux each,
//!                               ◄──guest::FromGuest──          credits per stream
//! ```
//!
//! [`mux`] carries many streams with credits over one byte stream. [`guest`] is spoken with a
//! hostile peer of the same build (versions must be equal), [`client`] with a trusted peer.
//! [`message`] puts single values on a stream, [`pump`] moves the bytes of one to another.
#![forbid(unsafe_code)]

#[cfg(feature = "client")]
pub mod client;
pub mod guest;
pub mod message;
pub mod mux;
pub mod pump;
#[cfg(feature = "client")]
mod rule;
