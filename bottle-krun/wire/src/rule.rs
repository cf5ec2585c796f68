//! A rule on its way to the shim.

use serde::{Deserialize, Serialize};

/// One rule, field for field as `bottle_core::policy::WrittenRule` has it; words are in lower case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchRule {
    /// Whether it forbids.
    pub is_denial: bool,
    /// The host pattern.
    pub host: String,
    /// TCP ports.
    pub ports: Vec<u16>,
    /// Methods; empty means any.
    pub methods: Vec<String>,
    /// Prefixes of paths; empty means any.
    pub paths: Vec<String>,
    /// `inspect`, `splice` or `tcp`, if said.
    pub mode: Option<String>,
    /// Whether private addresses are reached.
    pub private: bool,
    /// Whether a wildcard over a public suffix is meant.
    pub wide: bool,
    /// `block`, `redact`, `warn` or `off`, if said.
    pub dlp: Option<String>,
    /// The name of a credential.
    pub credential: Option<String>,
    /// The most bytes of a request's body.
    pub max_body: Option<u64>,
    /// The most names under a wildcard.
    pub max_names: Option<u32>,
}
