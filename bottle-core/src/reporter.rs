//! What happens during a start, told as values; wording and colour belong to the command line.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::images::{NeededLayer, PullReporter};

/// A stage of a start, in the order in which they end.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(
    clippy::exhaustive_enums,
    reason = "a new stage must be worded wherever stages are shown"
)]
pub enum Stage {
    /// Names become things: the image reference, the kernel library, the user's limits.
    Resolve,
    /// The OCI image becomes a read-only disk.
    Image,
    /// The writable overlay is made.
    Disks,
    /// The bottle's host process starts.
    Shim,
    /// Namespaces, private root and limits are set up around the VMM.
    Jail,
    /// The kernel boots to our init.
    Boot,
    /// The control channel is up and both ends have proved who they are.
    Hello,
    /// Users, CA, resolver and files are put in place.
    Provision,
    /// The workload runs.
    Run,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Self; 9] = [
        Self::Resolve,
        Self::Image,
        Self::Disks,
        Self::Shim,
        Self::Jail,
        Self::Boot,
        Self::Hello,
        Self::Provision,
        Self::Run,
    ];

    /// Returns the stage's stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Image => "image",
            Self::Disks => "disks",
            Self::Shim => "shim",
            Self::Jail => "jail",
            Self::Boot => "boot",
            Self::Hello => "hello",
            Self::Provision => "provision",
            Self::Run => "run",
        }
    }
}

/// Hears of a start's progress. Must not block for long.
pub trait Reporter: Send + Sync {
    /// A stage began.
    fn began(&self, stage: Stage);
    /// A stage ended well, after `took`; `note` says in a few words what came of it.
    fn ended(&self, stage: Stage, took: Duration, note: &str);
    /// Returns who hears of the layers that come in during [`Stage::Image`].
    fn pull(&self) -> Arc<dyn PullReporter> {
        Arc::new(Silent)
    }
}

/// Hears and says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl PullReporter for Silent {
    fn found(&self, _: &[NeededLayer]) {}
    fn read(&self, _: usize, _: u64) {}
    fn done(&self, _: usize) {}
}

impl Reporter for Silent {
    fn began(&self, _: Stage) {}
    fn ended(&self, _: Stage, _: Duration, _: &str) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_has_one_name_in_words_and_on_the_wire() {
        for stage in Stage::ALL {
            assert_eq!(serde_json::to_value(stage).unwrap(), stage.name());
        }
    }

    #[test]
    fn all_stages_stand_in_order() {
        assert!(Stage::ALL.is_sorted());
    }
}
