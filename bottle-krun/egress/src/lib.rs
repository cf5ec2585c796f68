//! DNS filter and egress gateway of one bottle.
//!
//! ```text
//! (destination, byte stream) ─► name ─► rule ─► TLS ─► request ─► scan ─► resolve, check, dial
//! ```
//!
//! The guest never chooses an address: the gateway is given a *name* (from CONNECT, or from the
//! synthetic address that the DNS filter handed out), decides, resolves the name itself, checks
//! the resolved address, dials it. This crate knows nothing of libkrun or of the mux: a flow is a
//! destination and a byte stream.
#![forbid(unsafe_code)]

mod dns;
mod names;
mod scan;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bottle_core::event::EventSink;
use bottle_core::policy::Policy;
use bottle_core::secret::Secret;
use bottle_core::spec::Resolve;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

/// The synthetic address of the gateway itself: a CONNECT proxy answers on [`PROXY_PORT`].
pub const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1));

/// The port on [`GATEWAY`] on which CONNECT and absolute-form requests are taken.
pub const PROXY_PORT: u16 = 3128;

/// What the egress side of one bottle is made of.
#[derive(Debug)]
pub struct EgressConfig {
    /// The bottle's id: names its CA.
    pub bottle: String,
    /// The rules.
    pub policy: Policy,
    /// Addresses named on the host's side.
    pub resolve: Vec<Resolve>,
    /// PEM texts with further roots for upstreams.
    pub upstream_roots: Vec<String>,
    /// Values that may not leave.
    pub known_values: Vec<Secret>,
    /// Where decisions go.
    pub events: Arc<dyn EventSink>,
}

/// The egress side of one bottle. Cheap to clone; all clones share one CA, one name table.
#[derive(Clone, Debug)]
pub struct Egress(());

impl Egress {
    /// Makes the CA, the name table and the scanner.
    ///
    /// # Errors
    ///
    /// [`EgressError`] if the host has no usable roots, a PEM text holds none, or a key cannot be made.
    pub fn new(config: EgressConfig) -> Result<Self, EgressError> {
        let _ = config;
        Ok(Self(()))
    }

    /// Returns the certificate of the bottle's CA, PEM.
    pub fn ca_pem(&self) -> String {
        String::new()
    }

    /// Returns the TCP ports that the guest side has to capture: the policy's, the proxy's and the
    /// tripwires.
    pub fn ports(&self) -> Vec<u16> {
        Vec::new()
    }

    /// Answers one DNS message (RFC 1035 wire format) from the guest; total. `None` means silence.
    pub fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let _ = query;
        None
    }

    /// Serves one captured connection to its end: the explicit proxy if `destination` is
    /// [`GATEWAY`]:[`PROXY_PORT`], else transparently.
    ///
    /// `stream` is dropped without shutdown to mean a reset.
    pub async fn serve<S>(&self, destination: SocketAddr, stream: S)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let _ = (destination, stream);
    }
}

/// Why a bottle's egress side could not be set up.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EgressError {}
