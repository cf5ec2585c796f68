//! Images in memory.

use std::collections::BTreeMap;
use std::future::pending;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use serde_json::json;

use super::fake::{FakeBackend, lock};
use crate::backend::{BackendError, Blame, Hint};
use crate::images::{
    Exported, ImageRecord, Images, LayerRecord, NeededLayer, PullReporter, Pulled, Removed,
    StoredImage,
};
use crate::spec::ImageSource;

/// Bytes of the one layer.
const SIZE: u64 = 47_000_000;
/// What it takes up.
const DISK: u64 = 120_000_000;

/// What an export writes.
const ARCHIVE: &[u8] = b"an archive\n";

/// What was pulled so far.
#[derive(Debug, Default)]
pub(super) struct FakeImages {
    records: Mutex<BTreeMap<String, ImageRecord>>,
    hang_exports: AtomicBool,
}

impl FakeImages {
    pub(super) fn hang_exports(&self) {
        self.hang_exports.store(true, Ordering::Relaxed);
    }
}

#[async_trait]
impl Images for FakeImages {
    async fn pull(
        &self,
        source: &ImageSource,
        name: Option<&str>,
        reporter: Arc<dyn PullReporter>,
    ) -> Result<Pulled, BackendError> {
        if *source != FakeBackend::image() {
            return Err(BackendError::Failed {
                op: format!("pull image `{source}`"),
                blame: Blame::User,
                hint: Some(Hint("the only image here is `oci:/fake`".to_owned())),
                source: "No such file or directory (os error 2)".into(),
            });
        }
        let name = name.map_or_else(|| source.to_string(), str::to_owned);
        let mut records = lock(&self.records);
        let stored = !records.is_empty();
        let digest = format!("sha256:{:064}", 1);
        reporter.found(&[NeededLayer {
            digest: digest.clone(),
            size: SIZE,
            stored,
        }]);
        if !stored {
            reporter.read(0, SIZE);
            reporter.done(0);
        }
        let record = ImageRecord {
            name: name.clone(),
            manifest: format!("sha256:{:064}", 2),
            added: 0,
            layers: vec![LayerRecord {
                digest,
                size: SIZE,
                diff_id: format!("sha256:{:064}", 3),
            }],
            config: json!({ "architecture": "amd64", "os": "linux" }),
        };
        let changed = records.insert(name, record.clone()).is_none();
        Ok(Pulled { record, changed })
    }

    async fn list(&self) -> Result<Vec<StoredImage>, BackendError> {
        let records = lock(&self.records);
        let is_shared = records.len() > 1;
        let stored = records.values().map(|record| StoredImage {
            record: record.clone(),
            own_bytes: if is_shared { 0 } else { DISK },
            shared_bytes: if is_shared { DISK } else { 0 },
            in_use: false,
        });
        Ok(stored.collect())
    }

    async fn inspect(&self, name: &str) -> Result<ImageRecord, BackendError> {
        let found = lock(&self.records).get(name).cloned();
        found.ok_or_else(|| unknown("inspect", name))
    }

    async fn export(
        &self,
        name: &str,
        mut to: Box<dyn Write + Send>,
    ) -> Result<Exported, BackendError> {
        let Some(record) = lock(&self.records).get(name).cloned() else {
            return Err(unknown("export", name));
        };
        if self.hang_exports.load(Ordering::Relaxed) {
            return pending().await;
        }
        let written = to.write_all(ARCHIVE).and_then(|()| to.flush());
        written.map_err(|error| BackendError::Failed {
            op: format!("export image `{name}`"),
            blame: Blame::User,
            hint: None,
            source: error.into(),
        })?;
        Ok(Exported {
            manifest: record.manifest,
            layers: record.layers.len(),
            bytes: ARCHIVE.len() as u64,
        })
    }

    async fn remove(&self, name: &str) -> Result<Removed, BackendError> {
        let mut records = lock(&self.records);
        if records.remove(name).is_none() {
            return Err(unknown("remove", name));
        }
        Ok(Removed {
            names: vec![name.to_owned()],
            bytes: if records.is_empty() { DISK } else { 0 },
        })
    }

    async fn prune(&self, all: bool) -> Result<Removed, BackendError> {
        let mut records = lock(&self.records);
        if !all || records.is_empty() {
            return Ok(Removed::default());
        }
        let names = records.keys().cloned().collect();
        records.clear();
        Ok(Removed { names, bytes: DISK })
    }
}

fn unknown(op: &str, name: &str) -> BackendError {
    BackendError::Failed {
        op: format!("{op} image `{name}`"),
        blame: Blame::User,
        hint: None,
        source: "there is no such image here".into(),
    }
}
