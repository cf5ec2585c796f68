//! Names of backends and how to make them, so that `--backend NAME` also finds those of other
//! crates.
//!
//! A registry is filled once, in `main`, and then only asked. Making a backend may fail: a name
//! that is known is not yet a backend that works here.

use std::collections::BTreeMap;
use std::fmt::{self, Debug, Formatter};
use std::sync::Arc;

use serde::Serialize;
use thiserror::Error;

use crate::backend::{Backend, BackendError};

type Construct = Box<dyn Fn() -> Result<Arc<dyn Backend>, BackendError> + Send + Sync>;
type Examine = Box<dyn Fn() -> Vec<Finding> + Send + Sync>;

/// The backends that a program knows, by name.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "testing")] {
/// use std::sync::Arc;
/// use bottle_core::registry::Registry;
/// use bottle_core::testing::FakeBackend;
///
/// let registry = Registry::new().with("fake", || Ok(Arc::new(FakeBackend::new())));
/// assert!(registry.make("fake").is_ok());
/// assert_eq!(
///     registry.make("fale").unwrap_err().to_string(),
///     "there is no backend `fale` (known: `fake`)"
/// );
/// # }
/// ```
#[derive(Default)]
pub struct Registry {
    entries: BTreeMap<String, Entry>,
}

struct Entry {
    construct: Construct,
    examine: Option<Examine>,
}

impl Registry {
    /// Makes an empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a backend under a name; the last one of a name wins.
    #[must_use]
    pub fn with(
        mut self,
        name: impl Into<String>,
        construct: impl Fn() -> Result<Arc<dyn Backend>, BackendError> + Send + Sync + 'static,
    ) -> Self {
        let entry = Entry {
            construct: Box::new(construct),
            examine: None,
        };
        self.entries.insert(name.into(), entry);
        self
    }

    /// Adds what examines the host for the backend of this name; without such a backend, nothing.
    #[must_use]
    pub fn with_doctor(
        mut self,
        name: &str,
        examine: impl Fn() -> Vec<Finding> + Send + Sync + 'static,
    ) -> Self {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.examine = Some(Box::new(examine));
        }
        self
    }

    /// Iterates over the names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Makes the backend of this name.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Unknown`] lists the names there are; [`RegistryError::Construct`] carries
    /// what the backend said.
    pub fn make(&self, name: &str) -> Result<Arc<dyn Backend>, RegistryError> {
        (self.entry(name)?.construct)().map_err(|source| RegistryError::Construct {
            name: name.to_owned(),
            source,
        })
    }

    /// Examines this host for the backend of this name; empty if it has nothing to examine.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Unknown`] lists the names there are.
    pub fn examine(&self, name: &str) -> Result<Vec<Finding>, RegistryError> {
        let entry = self.entry(name)?;
        Ok(entry.examine.as_ref().map_or_else(Vec::new, |look| look()))
    }

    fn entry(&self, name: &str) -> Result<&Entry, RegistryError> {
        self.entries
            .get(name)
            .ok_or_else(|| RegistryError::Unknown {
                name: name.to_owned(),
                known: self.names().map(str::to_owned).collect(),
            })
    }
}

impl Debug for Registry {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// What one layer of this host can do for a backend.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// The layer, one word.
    pub layer: String,
    /// Whether a bottle can start with it.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What would mend it, as a command or a sentence.
    pub fix: Option<String>,
}

/// Why there is no backend of a name.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The backend is known and could not be made.
    #[error("cannot use backend `{name}`")]
    Construct {
        /// Its name.
        name: String,
        /// What it said.
        source: BackendError,
    },
    /// Nothing has this name.
    #[error("there is no backend `{name}` (known: {})", list(known))]
    Unknown {
        /// The name.
        name: String,
        /// All names that would do.
        known: Vec<String>,
    },
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken() -> Result<Arc<dyn Backend>, BackendError> {
        Err(BackendError::Unsupported {
            backend: "moon",
            what: "reach the moon".to_owned(),
        })
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let registry = Registry::new().with("moon", broken).with("alpha", broken);
        assert_eq!(registry.names().collect::<Vec<_>>(), ["alpha", "moon"]);
        assert_eq!(
            registry.make("mon").unwrap_err().to_string(),
            "there is no backend `mon` (known: `alpha`, `moon`)"
        );
        assert_eq!(
            Registry::new().make("krun").unwrap_err().to_string(),
            "there is no backend `krun` (known: none)"
        );
    }

    #[test]
    fn a_backend_that_cannot_be_made_says_why() {
        use std::error::Error;
        let error = Registry::new()
            .with("moon", broken)
            .make("moon")
            .unwrap_err();
        assert_eq!(error.to_string(), "cannot use backend `moon`");
        assert_eq!(
            error.source().unwrap().to_string(),
            "backend `moon` cannot reach the moon"
        );
    }

    #[test]
    fn a_doctor_is_found_by_the_name_of_its_backend() {
        let finding = Finding {
            layer: "kvm".to_owned(),
            ok: false,
            found: "no `/dev/kvm`".to_owned(),
            fix: Some("load the module `kvm_amd`".to_owned()),
        };
        let told = finding.clone();
        let registry = Registry::new()
            .with("moon", broken)
            .with("quiet", broken)
            .with_doctor("moon", move || vec![told.clone()])
            .with_doctor("nobody", Vec::new);
        assert_eq!(registry.examine("moon").unwrap(), [finding]);
        assert_eq!(registry.examine("quiet").unwrap(), []);
        registry.examine("nobody").unwrap_err();
    }
}
