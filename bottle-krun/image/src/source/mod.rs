//! Where images come from.
//!
//! ```text
//! ImageSource ── layout    a directory ┐
//!             ├─ archive   a tar file  ├─ documents ─ resolve ─► Found: manifest, config, blobs
//!             └─ registry  HTTPS       ┘
//!                                        Blobs ─► layers' bytes, for whoever converts them
//! ```
//!
//! A source resolves a reference to one manifest and config for this host (all digests checked)
//! and opens the layers' blobs. What a blob holds is believed by nobody: whoever reads one checks
//! size and digests while the bytes go by (see `layer`).

pub(crate) mod archive;
pub(crate) mod layout;
pub(crate) mod registry;
pub(crate) mod resolve;

use std::fmt::{self, Debug, Formatter};
use std::io::Read;
use std::path::Path;

use bottle_core::image::ImageSource;

use self::archive::{Archive, Content};
use self::layout::Directory;
use self::registry::Registry;
use self::resolve::Found;
use crate::error::ImageError;
use crate::layer::LayerBlob;
use crate::options::SourceOptions;

/// What the blobs of an image are read from.
pub(crate) trait Blobs: Sync {
    /// Opens a layer's blob at its first byte, as it is stored: compressed.
    ///
    /// # Errors
    ///
    /// [`ImageError`] if it is not there, or cannot be opened, or is known to have another size.
    fn open_layer(&self, blob: &LayerBlob) -> Result<Box<dyn Read + Send>, ImageError>;
}

/// An image, and what its layers are read from.
pub(crate) struct Opened {
    pub(crate) found: Found,
    pub(crate) blobs: Box<dyn Blobs>,
}

impl Debug for Opened {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened")
            .field("found", &self.found)
            .finish_non_exhaustive()
    }
}

/// Finds an image; `work` is where what has to be kept for a while is kept.
pub(crate) fn open(
    source: &ImageSource,
    options: &SourceOptions,
    work: &Path,
) -> Result<Opened, ImageError> {
    match source {
        ImageSource::DockerArchive { path, reference } => {
            let archive = Archive::open(path, work)?;
            archive.docker(reference.as_ref())
        }
        ImageSource::OciArchive { path, reference } => {
            Archive::open(path, work)?.oci(reference.as_deref())
        }
        ImageSource::OciLayout { dir, reference } => {
            let directory = Directory::open(dir)?;
            Ok(Opened {
                found: layout::find(&directory, reference.as_deref())?,
                blobs: Box::new(directory),
            })
        }
        ImageSource::Registry(reference) => {
            let registry = Registry::new(reference, options, work);
            Ok(Opened {
                found: registry.find()?,
                blobs: Box::new(registry),
            })
        }
        ImageSource::Stdin => {
            let archive = options.stdin.archive(work)?;
            match archive.content() {
                Content::Docker => archive.docker(None),
                Content::Neither => Err(archive.neither()),
                Content::Oci => archive.oci(None),
            }
        }
        other => Err(ImageError::UnsupportedSource {
            place: other.to_string(),
        }),
    }
}
