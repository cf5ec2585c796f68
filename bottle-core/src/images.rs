//! The images that a backend keeps: how they come, what they are and take up, how they go.

use std::fmt::Debug;
use std::io::Write;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::backend::BackendError;
use crate::spec::ImageSource;

/// The images of one user on this host. All methods may be called by several tasks, and by several
/// processes, at once.
#[async_trait]
pub trait Images: Send + Sync + Debug {
    /// Gets an image and makes its disk; what is here already is not fetched again. It can be
    /// asked for by its source, or by `name` instead, if that is given.
    ///
    /// # Errors
    ///
    /// [`BackendError::Failed`]; what was fetched so far may be kept to go on from there.
    ///
    /// # Cancellation
    ///
    /// Dropping the future does not stop the work; the end of the process does, and leaves nothing
    /// that the next call could not go on from.
    async fn pull(
        &self,
        source: &ImageSource,
        name: Option<&str>,
        reporter: Arc<dyn PullReporter>,
    ) -> Result<Pulled, BackendError>;

    /// Lists all images, by name.
    ///
    /// # Errors
    ///
    /// [`BackendError::Failed`] if they cannot be read.
    async fn list(&self) -> Result<Vec<StoredImage>, BackendError>;

    /// Finds an image by its full name.
    ///
    /// # Errors
    ///
    /// [`BackendError::Failed`] if there is none, or it cannot be read.
    async fn inspect(&self, name: &str) -> Result<ImageRecord, BackendError>;

    /// Writes an image, found by its full name, as an archive in the form of an OCI layout.
    ///
    /// # Errors
    ///
    /// [`BackendError::Failed`] if there is none, it cannot be read, or `to` cannot be written;
    /// what was written so far is no archive then.
    ///
    /// # Cancellation
    ///
    /// Dropping the future does not stop the work; a `to` that fails does.
    async fn export(&self, name: &str, to: Box<dyn Write + Send>)
    -> Result<Exported, BackendError>;

    /// Removes a name, and the files that no other name needs.
    ///
    /// # Errors
    ///
    /// [`BackendError::Failed`] if there is none, or a bottle runs from it.
    async fn remove(&self, name: &str) -> Result<Removed, BackendError>;

    /// Removes files that no image needs, cut-off downloads among them; with `all`, images that no
    /// bottle runs from, too.
    ///
    /// # Errors
    ///
    /// [`BackendError::Failed`] if something cannot be removed.
    async fn prune(&self, all: bool) -> Result<Removed, BackendError>;
}

/// When a start asks a registry for its image.
///
/// Images that are files of this host are looked at in any case.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "docker's users know these three")]
pub enum Pull {
    /// If it is not here.
    #[default]
    Missing,
    /// In any case: a tag may mean another image today.
    Always,
    /// Not at all: an image that is not here is an error.
    Never,
}

impl FromStr for Pull {
    type Err = ParsePullError;

    fn from_str(text: &str) -> Result<Self, ParsePullError> {
        match text {
            "missing" => Ok(Self::Missing),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            _ => Err(ParsePullError),
        }
    }
}

/// A word that says nothing about pulling.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("write `missing`, `always` or `never`")]
#[non_exhaustive]
pub struct ParsePullError;

/// What is known of one image under one name.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ImageRecord {
    /// How it is asked for, in full: `docker.io/library/debian:12`, `oci:DIR:TAG`.
    pub name: String,
    /// Digest of the manifest for this host: `sha256:…`.
    pub manifest: String,
    /// When it was put here, in seconds since the Unix epoch.
    pub added: u64,
    /// Bottom first.
    pub layers: Vec<LayerRecord>,
    /// The config as the image's author wrote it (OCI image-spec, config.md).
    pub config: serde_json::Value,
}

/// What is known of a layer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct LayerRecord {
    /// Digest of the blob: `sha256:…`.
    pub digest: String,
    /// Bytes of the blob.
    pub size: u64,
    /// Digest of the archive in it: `sha256:…`.
    pub diff_id: String,
}

/// An image, and what it takes up.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct StoredImage {
    /// What is known of it.
    #[serde(flatten)]
    pub record: ImageRecord,
    /// Bytes on the host's disk that no other image uses.
    pub own_bytes: u64,
    /// Bytes on the host's disk of layers that other images use, too.
    pub shared_bytes: u64,
    /// Whether a bottle runs from it.
    pub in_use: bool,
}

/// What came of a pull.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Pulled {
    /// The image.
    pub record: ImageRecord,
    /// Whether anything had to be done.
    pub changed: bool,
}

/// What came of an export.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Exported {
    /// Digest of the archive's manifest, which is not the image's: `sha256:…`.
    pub manifest: String,
    /// How many layers there are.
    pub layers: usize,
    /// Bytes of the archive.
    pub bytes: u64,
}

/// What was removed.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Removed {
    /// The names that are no more.
    pub names: Vec<String>,
    /// Bytes that were freed on the host's disk.
    pub bytes: u64,
}

/// A layer that an image needs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NeededLayer {
    /// Digest of the blob: `sha256:…`.
    pub digest: String,
    /// Bytes of the blob.
    pub size: u64,
    /// Whether it is here already.
    pub stored: bool,
}

/// Hears how layers come in, from several threads at once. Must not block for long.
pub trait PullReporter: Send + Sync {
    /// The image was found; these are its layers, bottom first.
    fn found(&self, layers: &[NeededLayer]);
    /// So many more bytes of a layer's blob, which is the one with this index, were read.
    fn read(&self, layer: usize, bytes: u64);
    /// A layer is whole.
    fn done(&self, layer: usize);
}
