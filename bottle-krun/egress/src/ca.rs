//! The bottle's own certificate authority: made in memory, gone with the bottle.
//!
//! One key signs; another, shared by all leaves, proves each connection. Leaves are kept by name
//! in a small cache, and a bucket limits how fast new ones are made.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bottle_core::policy::HostName;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// What a leaf certificate is for.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Subject {
    Name(HostName),
    Address(IpAddr),
}

/// The authority and its leaves.
///
/// # Security
///
/// The certificate carries no name constraints: it is trusted inside one bottle only, and denials
/// for any name have to be readable there. Whoever holds this value can impersonate every host to
/// that bottle, which is its purpose.
pub(crate) struct Authority {
    provider: Arc<CryptoProvider>,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    leaf_key: KeyPair,
    leaves: Mutex<Leaves>,
}

impl Authority {
    /// Makes the keys and the certificate of the bottle's authority.
    pub(crate) fn new(bottle: &str, provider: Arc<CryptoProvider>) -> Result<Self, MintError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = base_params(&provider)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let name: String = bottle.chars().take(40).collect();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("bottle {name} egress CA"));
        params
            .distinguished_name
            .push(DnType::OrganizationName, "bottle");
        let pem = params.self_signed(&key)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            pem,
            leaf_key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?,
            leaves: Mutex::new(Leaves::new(Instant::now())),
            provider,
        })
    }

    /// Returns the authority's certificate.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// Returns what a TLS server for the subject needs, made now or taken from the cache.
    pub(crate) fn server_config(&self, subject: &Subject) -> Result<Arc<ServerConfig>, MintError> {
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = leaves.find(subject) {
            return Ok(known);
        }
        if !leaves.may_mint(Instant::now()) {
            return Err(MintError::Limit);
        }
        let made = Arc::new(self.mint(subject)?);
        leaves.keep(subject.clone(), Arc::clone(&made));
        Ok(made)
    }

    fn mint(&self, subject: &Subject) -> Result<ServerConfig, MintError> {
        let mut params = base_params(&self.provider)?;
        let (san, text) = match subject {
            Subject::Name(name) => (
                SanType::DnsName(name.as_str().try_into()?),
                name.as_str().to_owned(),
            ),
            Subject::Address(address) => (SanType::IpAddress(*address), address.to_string()),
        };
        params.subject_alt_names = vec![san];
        // A common name has at most 64 characters; clients read the alternative name.
        if text.len() <= 64 {
            params.distinguished_name.push(DnType::CommonName, text);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf: CertificateDer<'static> = params
            .signed_by(&self.leaf_key, &self.issuer)?
            .der()
            .clone();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.leaf_key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf], key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// Validity and serial number that all our certificates have in common.
fn base_params(provider: &CryptoProvider) -> Result<CertificateParams, MintError> {
    let mut params = CertificateParams::default();
    let now = SystemTime::now();
    // A guest's clock may be a little behind ours.
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + VALID).into();
    let mut serial = [0_u8; 16];
    provider
        .secure_random
        .fill(&mut serial)
        .map_err(|_| MintError::Random)?;
    // Positive and of full length.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = rcgen::DistinguishedName::new();
    Ok(params)
}

/// Server configurations by subject, the least recently used one dropped first, and the bucket.
struct Leaves {
    known: HashMap<Subject, (u64, Arc<ServerConfig>)>,
    clock: u64,
    tokens: u32,
    filled: Instant,
}

impl Leaves {
    fn new(now: Instant) -> Self {
        Self {
            known: HashMap::new(),
            clock: 0,
            tokens: MINT_BURST,
            filled: now,
        }
    }

    fn find(&mut self, subject: &Subject) -> Option<Arc<ServerConfig>> {
        self.clock += 1;
        let (used, config) = self.known.get_mut(subject)?;
        *used = self.clock;
        Some(Arc::clone(config))
    }

    fn keep(&mut self, subject: Subject, config: Arc<ServerConfig>) {
        if self.known.len() >= MAX_LEAVES
            && let Some(oldest) = self
                .known
                .iter()
                .min_by_key(|(_, (used, _))| *used)
                .map(|(subject, _)| subject.clone())
        {
            self.known.remove(&oldest);
        }
        self.known.insert(subject, (self.clock, config));
    }

    fn may_mint(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.filled);
        let refilled =
            u32::try_from(since.as_millis() / MINT_EVERY.as_millis()).unwrap_or(u32::MAX);
        if refilled > 0 {
            self.tokens = self.tokens.saturating_add(refilled).min(MINT_BURST);
            self.filled = now;
        }
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }
}

/// Why a certificate was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MintError {
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    #[error("too many certificates in a short time")]
    Limit,
    #[error("the random number generator failed")]
    Random,
    #[error("cannot use a certificate")]
    Tls(#[from] rustls::Error),
}

const BACKDATED: Duration = Duration::from_secs(3600);
const VALID: Duration = Duration::from_secs(365 * 24 * 3600);
const MAX_LEAVES: usize = 512;
const MINT_BURST: u32 = 256;
const MINT_EVERY: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs;

    use super::*;

    fn provider() -> Arc<CryptoProvider> {
        Arc::new(aws_lc_rs::default_provider())
    }

    #[test]
    fn a_leaf_is_made_once_per_subject() {
        let authority = Authority::new("web", provider()).unwrap();
        let name = Subject::Name("a.test".parse().unwrap());
        let first = authority.server_config(&name).unwrap();
        assert!(Arc::ptr_eq(
            &first,
            &authority.server_config(&name).unwrap()
        ));
        authority
            .server_config(&Subject::Address("127.0.0.1".parse().unwrap()))
            .unwrap();
    }

    #[test]
    fn minting_stops_at_the_limit_and_goes_on_later() {
        let start = Instant::now();
        let mut leaves = Leaves::new(start);
        for _ in 0..MINT_BURST {
            assert!(leaves.may_mint(start));
        }
        assert!(!leaves.may_mint(start));
        assert!(leaves.may_mint(start + MINT_EVERY));
        assert!(!leaves.may_mint(start + MINT_EVERY));
    }

    #[test]
    fn the_least_recently_used_leaf_is_dropped_first() {
        let authority = Authority::new("web", provider()).unwrap();
        let subject = |n: usize| Subject::Name(format!("n{n}.test").parse().unwrap());
        let config = authority.server_config(&subject(0)).unwrap();
        let mut leaves = Leaves::new(Instant::now());
        for n in 0..MAX_LEAVES {
            leaves.find(&subject(n));
            leaves.keep(subject(n), Arc::clone(&config));
        }
        assert!(leaves.find(&subject(0)).is_some());
        leaves.keep(subject(MAX_LEAVES), config);
        assert!(leaves.find(&subject(0)).is_some());
        assert!(leaves.find(&subject(1)).is_none());
    }
}
