//! The krun backend: bottles in libkrun microVMs.
//!
//! ```text
//! KrunBackend (client) ──socket──► shim ──socketpair──► warden ──► vmm (PID 1 of the jail)
//! ```
//!
//! All of them are one program: [`reexec`] is called first in `main` and becomes whichever of them
//! its caller asked for.

use std::ffi::OsString;
use std::path::PathBuf;

use async_trait::async_trait;
use bottle_core::backend::{Backend, BackendError, Bottle, Capabilities, Plan, Summary};
use bottle_core::id::BottleId;
use bottle_core::reporter::Reporter;
use bottle_core::spec::Spec;
use serde::Serialize;

/// Becomes shim, warden or vmm if this process was started as one, and returns otherwise.
///
/// A program that embeds this crate calls it first in `main`, before threads exist.
pub fn reexec() {}

/// Where the backend finds and keeps things.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KrunOptions {
    /// The program that is re-executed as shim, warden and vmm; absent means the current one.
    pub helper: Option<PathBuf>,
    /// The kernel library; absent means the first one found in the usual places.
    pub kernel: Option<PathBuf>,
    /// What outlives a bottle (its record) and what must survive its shim (its overlay).
    pub state_dir: PathBuf,
    /// Sockets.
    pub runtime_dir: PathBuf,
    /// Disks made of images.
    pub image_store: PathBuf,
}

impl KrunOptions {
    /// Takes the directories from `XDG_STATE_HOME`, `XDG_RUNTIME_DIR`, `XDG_CACHE_HOME` and `HOME`.
    ///
    /// Returns `None` if neither they nor `HOME` say where anything may be kept.
    pub fn from_env(variable: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let _ = variable;
        None
    }
}

/// Runs bottles in libkrun microVMs.
#[derive(Debug)]
pub struct KrunBackend {
    options: KrunOptions,
}

impl KrunBackend {
    /// Makes a backend; touches nothing yet.
    pub fn new(options: KrunOptions) -> Self {
        Self { options }
    }
}

#[async_trait]
impl Backend for KrunBackend {
    fn name(&self) -> &'static str {
        "krun"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { own_kernel: true, max_vcpus: 8, egress_gateway: true }
    }

    fn plan(&self, _: &Spec) -> Result<Plan, BackendError> {
        let _ = &self.options;
        Err(BackendError::Unsupported { backend: "krun", what: "plan yet".to_owned() })
    }

    async fn start(&self, _: Plan, _: &dyn Reporter) -> Result<Box<dyn Bottle>, BackendError> {
        Err(BackendError::Unsupported { backend: "krun", what: "start yet".to_owned() })
    }

    async fn list(&self) -> Result<Vec<Summary>, BackendError> {
        Ok(Vec::new())
    }

    async fn open(&self, id: &BottleId) -> Result<Box<dyn Bottle>, BackendError> {
        Err(BackendError::NotFound { id: id.clone() })
    }
}

/// What one layer of this host can do.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// The layer, one word.
    pub layer: &'static str,
    /// Whether a bottle can start with it.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What would mend it, as a command or a sentence.
    pub fix: Option<String>,
}

/// Examines this host.
pub fn doctor(options: &KrunOptions) -> Vec<Finding> {
    let _ = options;
    Vec::new()
}
