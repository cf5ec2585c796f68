//! What upstreams are verified with: the system's roots and the ones named for this bottle.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;

/// Makes the client side of TLS.
pub(crate) fn client_config(
    provider: Arc<CryptoProvider>,
    named: &[String],
) -> Result<Arc<ClientConfig>, RootsError> {
    let mut roots = RootCertStore::empty();
    for (index, text) in named.iter().enumerate() {
        let unusable = |why: String| RootsError::Unusable {
            number: index + 1,
            why,
        };
        let mut count = 0;
        for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
            let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
            roots
                .add(certificate)
                .map_err(|error| unusable(error.to_string()))?;
            count += 1;
        }
        if count == 0 {
            return Err(unusable("it holds no certificate in PEM form".to_owned()));
        }
    }
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::warn!(%error, "some of the system's root certificates cannot be read");
    }
    roots.add_parsable_certificates(system.certs);
    if roots.is_empty() {
        return Err(RootsError::None);
    }
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| RootsError::Tls { source })?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The same for a connection on which HTTP/2 is of no use.
pub(crate) fn without_http2(config: &ClientConfig) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// Why there is nothing to verify upstreams with.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RootsError {
    /// The host has no root certificates and none were named.
    #[error(
        "this host has no root certificates to verify upstreams with (install `ca-certificates`, or name some with `--upstream-ca FILE`)"
    )]
    None,
    /// The TLS library refused its own defaults.
    #[error("cannot set up TLS towards upstreams")]
    Tls {
        /// What it said.
        source: rustls::Error,
    },
    /// A PEM text that was named holds nothing that can be used.
    #[error("upstream CA number {number} cannot be used: {why}")]
    Unusable {
        /// Which of the texts, from 1.
        number: usize,
        /// What is wrong with it.
        why: String,
    },
}
