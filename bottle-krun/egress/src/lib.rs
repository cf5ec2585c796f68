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
//!
//! In reading order: `flow` (from the first byte to a protocol), `proxy` (the explicit
//! entrance), `session` (one HTTP connection of the guest), `request` (judges a head),
//! `forward` and `pump` (carry a request), `websocket` (carries messages), `tunnel` (carries what is not looked into), `upstream` (keeps
//! connections), `dial` (resolves, checks, dials), `credential` (injects and scrubs), `denial`
//! (explains).
#![forbid(unsafe_code)]

mod address;
mod body;
mod ca;
mod credential;
mod denial;
mod dial;
mod dns;
mod flow;
mod forward;
mod hello;
mod host_proxy;
mod ledger;
mod names;
mod proxy;
mod pump;
mod recent;
mod request;
mod roots;
mod scan;
mod session;
mod shared;
mod sniff;
mod tunnel;
mod upstream;
mod websocket;

use std::fmt::{self, Debug, Formatter};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bottle_core::credential::Credential;
use bottle_core::event::EventSink;
use bottle_core::policy::{Policy, Reason};
use bottle_core::secret::Secret;
use bottle_core::spec::Resolve;
use rustls::crypto::aws_lc_rs;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

pub use credential::{
    CommandSource, CredentialSource, FileSource, FixedSource, SourceError, VaultError,
};
pub use host_proxy::{HostProxy, HostProxyError};
pub use roots::RootsError;
pub use scan::ScannerError;

use crate::ca::{Authority, MintError};
use crate::credential::Vault;
use crate::denial::Refusal;
use crate::dial::Dialer;
use crate::dns::DnsFilter;
use crate::ledger::Ledger;
use crate::names::NameTable;
use crate::scan::Scanner;
use crate::session::Target;
use crate::shared::{MAX_REQUESTS, Shared};

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

/// What the host lends to one bottle's egress. The default is nothing.
#[derive(Debug, Default)]
pub struct HostSide {
    /// The credentials that rules name, and where their values come from.
    pub credentials: Vec<(Credential, Box<dyn CredentialSource>)>,
    /// The proxy through which names are reached.
    pub proxy: Option<HostProxy>,
}

/// The egress side of one bottle. Cheap to clone; all clones share one CA, one name table.
#[derive(Clone)]
pub struct Egress {
    shared: Arc<Shared>,
    dns: Arc<DnsFilter>,
}

impl Debug for Egress {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Egress").finish_non_exhaustive()
    }
}

impl Egress {
    /// Makes the CA, the name table and the scanner.
    ///
    /// # Errors
    ///
    /// [`EgressError`] if the host has no usable roots, a PEM text holds none, or a key cannot be made.
    pub fn new(config: EgressConfig) -> Result<Self, EgressError> {
        Self::with_host(config, HostSide::default())
    }

    /// The same, with what the host lends.
    ///
    /// # Errors
    ///
    /// The same, and [`EgressError::Credentials`] if a rule names a credential that is not there.
    pub fn with_host(config: EgressConfig, host: HostSide) -> Result<Self, EgressError> {
        let HostSide { credentials, proxy } = host;
        let EgressConfig {
            bottle,
            policy,
            resolve,
            upstream_roots,
            known_values,
            events,
        } = config;
        let default_provider = aws_lc_rs::default_provider();
        let random = default_provider.secure_random;
        let provider = Arc::new(default_provider);
        let scanner = Arc::new(Scanner::new(&known_values)?);
        let vault = Vault::new(credentials, &policy)?;
        let policy = Arc::new(policy);
        let names = Arc::new(NameTable::new(&policy));
        let dns = DnsFilter::new(
            Arc::clone(&policy),
            Arc::clone(&names),
            Arc::clone(&scanner),
            Arc::clone(&events),
        );
        let tls = roots::client_config(Arc::clone(&provider), &upstream_roots)?;
        let authority = Authority::new(&bottle, provider).map_err(|source| EgressError::Ca {
            bottle,
            source: CaError(source),
        })?;
        let shared = Shared {
            policy,
            names,
            scanner,
            ledger: Ledger::new(events, random),
            vault,
            authority,
            dialer: Arc::new(Dialer {
                resolve,
                proxy,
                tls_http1: roots::without_http2(&tls),
                tls,
            }),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
        };
        Ok(Self {
            shared: Arc::new(shared),
            dns: Arc::new(dns),
        })
    }

    /// Returns the certificate of the bottle's CA, PEM.
    pub fn ca_pem(&self) -> String {
        self.shared.authority.pem().to_owned()
    }

    /// Returns the TCP ports that the guest side has to capture: the policy's, the proxy's and the
    /// tripwires.
    pub fn ports(&self) -> Vec<u16> {
        let mut ports = self.shared.policy.ports();
        ports.extend(TRIPWIRES);
        ports.push(PROXY_PORT);
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// Answers one DNS message (RFC 1035 wire format) from the guest; total. `None` means silence.
    pub fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        self.dns.answer(query)
    }

    /// Serves one captured connection to its end: the explicit proxy if `destination` is
    /// [`GATEWAY`]:[`PROXY_PORT`], else transparently.
    ///
    /// `stream` is dropped without shutdown to mean a reset.
    ///
    /// # Security
    ///
    /// `destination` is the guest's word and only ever names something: a synthetic address stands
    /// for its name, any other is refused. No byte of `stream` leaves before its request was judged.
    ///
    /// # Cancellation
    ///
    /// Dropping the future ends the connection and, with it, what it has open to its upstream.
    pub async fn serve<S>(&self, destination: SocketAddr, stream: S)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let shared = Arc::clone(&self.shared);
        let destination = SocketAddr::new(destination.ip().to_canonical(), destination.port());
        let is_proxy = destination == SocketAddr::new(GATEWAY, PROXY_PORT);
        let target = if is_proxy {
            Target::Address(GATEWAY)
        } else {
            flow::target_of(&shared, destination.ip())
        };
        let Ok(_permit) = Arc::clone(&shared.connections).try_acquire_owned() else {
            let refusal = Refusal::new(
                Reason::LimitReached,
                format!("more than {MAX_CONNECTIONS} connections at once"),
            );
            shared.refuse_flow(&target, destination.port(), &refusal);
            return;
        };
        if is_proxy {
            proxy::serve(shared, Box::new(stream)).await;
        } else {
            flow::serve(shared, target, destination.port(), Box::new(stream)).await;
        }
    }
}

/// Why a bottle's egress side could not be set up.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EgressError {
    /// The bottle's certificate authority could not be made.
    #[error("cannot make the certificate authority of bottle `{bottle}`")]
    Ca {
        /// The bottle.
        bottle: String,
        /// What failed.
        source: CaError,
    },
    /// Rules and credentials do not fit together.
    #[error(transparent)]
    Credentials(#[from] VaultError),
    /// There is nothing to verify upstreams with.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// The scanner cannot take the known values.
    #[error(transparent)]
    Scanner(#[from] ScannerError),
}

/// What failed when a certificate authority was made.
#[derive(Debug, Error)]
#[error(transparent)]
pub struct CaError(MintError);

/// Well-known ports that are captured although nothing may be allowed there, so that an attempt is
/// recorded, and answered where the protocol has an answer.
const TRIPWIRES: [u16; 23] = [
    21, 22, 23, 25, 80, 110, 143, 443, 465, 587, 853, 993, 1080, 2375, 3306, 3389, 5432, 6379,
    8000, 8080, 8443, 9418, 27017,
];

/// Most connections of one bottle at once.
const MAX_CONNECTIONS: usize = 512;
