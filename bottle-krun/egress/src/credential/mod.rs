//! Real credentials: kept here, put into judged requests, taken out of answers.
//!
//! ```text
//! request ─► judge, scan ─► strip what the guest sent ─► inject ─► upstream
//! guest   ◄─ scrub (known encodings of the value) ◄──────────────────── answer
//! ```
//!
//! The guest never has the value. What an upstream does to it before sending it back (a hash, an
//! encryption, an encoding of its own) cannot be seen here.

pub(crate) mod scrub;
mod source;

use std::collections::HashMap;
use std::fmt::{self, Debug, Formatter};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bottle_core::credential::{Credential, Form};
use bottle_core::policy::{CredentialName, Policy, Reason};
use bottle_core::secret::Secret;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, RANGE};
use thiserror::Error;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

pub use source::{CommandSource, CredentialSource, FileSource, FixedSource, SourceError};

use crate::denial::Refusal;
use crate::scan::Scanner;

/// All credentials of one bottle.
#[derive(Debug, Default)]
pub(crate) struct Vault(HashMap<CredentialName, Arc<Keeper>>);

impl Vault {
    /// Takes credentials with their sources.
    ///
    /// # Errors
    ///
    /// [`VaultError`] if a rule names one that is not among them, or two have the same name.
    pub(crate) fn new(
        credentials: Vec<(Credential, Box<dyn CredentialSource>)>,
        policy: &Policy,
    ) -> Result<Self, VaultError> {
        let mut vault = Self::default();
        for (credential, source) in credentials {
            let name = credential.name().clone();
            let keeper = Keeper {
                credential,
                source,
                kept: Mutex::default(),
            };
            if vault.0.insert(name.clone(), Arc::new(keeper)).is_some() {
                return Err(VaultError::Twice { name });
            }
        }
        let inspected = policy
            .rules()
            .iter()
            .filter_map(|rule| rule.grant()?.inspect());
        for name in inspected.filter_map(|inspect| inspect.credential()) {
            if !vault.0.contains_key(name) {
                return Err(VaultError::Unknown { name: name.clone() });
            }
        }
        Ok(vault)
    }

    /// Returns the credential of this name.
    pub(crate) fn keeper(&self, name: &CredentialName) -> Option<Arc<Keeper>> {
        self.0.get(name).map(Arc::clone)
    }
}

/// Why the credentials of a bottle cannot be kept.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum VaultError {
    /// Two credentials have one name.
    #[error("there are two credentials with the name `{}`", name.as_str())]
    Twice {
        /// The name.
        name: CredentialName,
    },
    /// A rule names a credential that is not there.
    #[error("a rule names the credential `{}`, which does not exist", name.as_str())]
    Unknown {
        /// The name.
        name: CredentialName,
    },
}

/// One credential, its source, and its value once it was needed.
pub(crate) struct Keeper {
    credential: Credential,
    source: Box<dyn CredentialSource>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    value: Option<Arc<Value>>,
    renewed: Option<Instant>,
}

/// Shows the name alone.
impl Debug for Keeper {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "Keeper({})", self.credential.name().as_str())
    }
}

/// A value that is in use.
pub(crate) struct Value {
    header: HeaderValue,
    /// Finds the value in what an upstream sends.
    finder: Scanner,
}

/// Shows nothing.
impl Debug for Value {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("Value(..)")
    }
}

impl Keeper {
    /// Returns the value, asking its source the first time.
    pub(crate) async fn value(&self) -> Result<Arc<Value>, Refusal> {
        let mut kept = self.kept.lock().await;
        if let Some(value) = &kept.value {
            return Ok(Arc::clone(value));
        }
        let value = self.fetch().await.map_err(|error| {
            // The source's own words are for the host; the guest learns the name.
            tracing::warn!(credential = self.name(), %error, "no value of a credential");
            Refusal::new(
                Reason::CredentialUnavailable,
                format!("the credential {} could not be had", self.name()),
            )
        })?;
        kept.value = Some(Arc::clone(&value));
        Ok(value)
    }

    /// Asks the source again because an upstream did not take the value. `None` if that is no use:
    /// nothing newer came, or it was asked a moment ago.
    pub(crate) async fn renewed(&self, refused: &Arc<Value>) -> Option<Arc<Value>> {
        if !self.source.is_renewable() {
            return None;
        }
        let mut kept = self.kept.lock().await;
        match &kept.value {
            // Another request was faster.
            Some(value) if !Arc::ptr_eq(value, refused) => return Some(Arc::clone(value)),
            Some(_) | None => {}
        }
        if kept.renewed.is_some_and(|at| at.elapsed() < RENEWAL_PAUSE) {
            return None;
        }
        kept.renewed = Some(Instant::now());
        let value = match self.fetch().await {
            Ok(value) => value,
            Err(error) => {
                tracing::warn!(credential = self.name(), %error, "a credential was not renewed");
                return None;
            }
        };
        if value.header == refused.header {
            return None;
        }
        kept.value = Some(Arc::clone(&value));
        Some(value)
    }

    async fn fetch(&self) -> Result<Arc<Value>, SourceError> {
        let bytes = self.source.fetch().await?;
        let secret = Secret::new(self.name(), bytes.trim_ascii()).ok_or(SourceError::TooShort)?;
        let text = match self.credential.form() {
            Form::Between(before, after) => {
                Zeroizing::new([before.as_bytes(), secret.expose(), after.as_bytes()].concat())
            }
            Form::Basic(user) => {
                let pair = [user.as_bytes(), b":", secret.expose()].concat();
                let pair = Zeroizing::new(pair);
                let encoded = Zeroizing::new(BASE64_STANDARD.encode(&*pair));
                Zeroizing::new([b"Basic ", encoded.as_bytes()].concat())
            }
        };
        let mut header = HeaderValue::from_bytes(&text).map_err(|_| SourceError::NotForAHeader)?;
        header.set_sensitive(true);
        // The name of a header comes back in small letters.
        let small = Zeroizing::new(secret.expose().to_ascii_lowercase());
        let values = [secret.clone()]
            .into_iter()
            .chain(Secret::new(self.name(), small.to_vec()));
        let values: Vec<_> = values.collect();
        let finder = Scanner::of_values(&values).map_err(|_| SourceError::TooLong)?;
        Ok(Arc::new(Value { header, finder }))
    }

    fn name(&self) -> &str {
        self.credential.name().as_str()
    }

    /// Puts the value where it belongs, and nothing of the guest's beside it.
    pub(crate) fn inject(&self, headers: &mut HeaderMap, value: &Value) {
        self.strip(headers);
        if let Ok(name) = HeaderName::from_bytes(self.credential.header().as_bytes()) {
            headers.insert(name, value.header.clone());
        }
        // The answer has to be readable on its way back, and whole: no half of the value in a part.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.remove(RANGE);
    }

    /// Removes the guest's own credentials, in whatever spelling a server might accept.
    pub(crate) fn strip(&self, headers: &mut HeaderMap) {
        let plain = |name: &str| name.replace('_', "-");
        let own = plain(self.credential.header());
        let named: Vec<HeaderName> = headers
            .keys()
            .filter(|name| plain(name.as_str()) == own)
            .cloned()
            .collect();
        for name in named.into_iter().chain([AUTHORIZATION]) {
            headers.remove(name);
        }
    }
}

/// A source is not asked for a newer value more often than this.
const RENEWAL_PAUSE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests;
