//! OCI images to read-only disks, and writable overlays.
//!
//! ```text
//! source   registry | layout | archive -> manifest, config    every document's digest checked
//!   layer  blob -> decompressed bytes                  digest and size checked; its own thread
//!    pipe  bytes to the thread that writes             diff id checked
//!     tar  bytes -> entries                            hostile: total parser with limits
//! journal  entries, in order                           a layer's, kept: `….entries`
//!    tree  entries -> a tree, one layer's or merged    whiteouts, as overlayfs would show it
//!   erofs  bodies while they stream by, then the tree  one EROFS image per layer: `….erofs`;
//!                                                      the merged tree without bodies: `….meta`
//!    vmdk  metadata and layers                         one disk of all of them: `….vmdk`
//! catalog  names -> images, what they take up          removal of what nobody needs
//!   store  temporary file, fsync, rename               one conversion per key at a time
//! convert  all of the above, in this order             layers in parallel
//!  export  entries and bodies -> an OCI archive        the way back
//! ```
//!
//! Nothing is extracted to the host's file system: layers are parsed and written as disk image
//! files, so path traversal does not exist. Memory grows with the number of entries and their names
//! (both are limited), never with their contents; what else is known of them is kept in a temporary
//! file if there are many. The same layers give the same bytes, and images that have
//! a layer in common share its file.
#![forbid(unsafe_code)]

mod catalog;
mod convert;
mod digest;
mod erofs;
mod error;
mod export;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod journal;
mod layer;
mod options;
mod overlay;
mod pipe;
mod record;
mod source;
mod spill;
mod store;
mod tar;
mod tree;
mod vmdk;

use std::env;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bottle_core::image::ImageSource;
use bottle_core::images::{ImageRecord, PullReporter};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::layer::LayerBlob;
use crate::source::Blobs;
use crate::source::resolve::{Config, Found};
use crate::tree::Limits;

// The front door: these names are the contract, the modules are not.
pub use crate::catalog::{Catalog, Hold};
pub use crate::error::{EntryProblem, ImageError};
pub use crate::export::export;
pub use crate::options::{Input, Proxies, RegistryRule, SourceOptions, Timeouts};
pub use crate::overlay::make_overlay;
pub use crate::source::registry::error::{CredentialError, RegistryError};

/// The version of the files that this writer makes; part of every name in the store.
pub const WRITER_VERSION: u32 = 2;

/// An image, found and read but not yet converted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ImageRef {
    /// Digest of the manifest: `sha256:…`.
    pub manifest: String,
    /// What the image says about running it.
    pub config: ImageConfig,
}

/// What an image says about running it (OCI image-spec, config.md).
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`, split at the first `=`.
    pub env: Vec<(String, String)>,
    /// `User`; empty means root.
    pub user: String,
    /// `WorkingDir`; empty means `/`.
    pub working_dir: String,
    /// `StopSignal`; empty means SIGTERM.
    pub stop_signal: String,
    /// `Volumes`: paths.
    pub volumes: Vec<String>,
    /// `ExposedPorts`: `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// `Labels`, sorted by name.
    pub labels: Vec<(String, String)>,
    /// When it was made, as it says (RFC 3339); empty if it does not.
    pub created: String,
    /// The processor it is for; empty if it does not say.
    pub architecture: String,
    /// The system it is for; empty if it does not say.
    pub os: String,
}

/// A read-only disk made of an image: several files that a descriptor joins.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ImageDisk {
    /// The descriptor, in VMDK's flat form, in the store. It names the parts by their file names
    /// alone: the disk can be used where it and they are in one directory.
    pub descriptor: PathBuf,
    /// Every part's file in the store, in the disk's order: metadata first, then layers, each once.
    pub parts: Vec<PathBuf>,
    /// The image.
    pub image: ImageRef,
    /// False if the store had all of it already.
    pub converted: bool,
}

/// Finds an image and reads its manifest and config, digests checked.
///
/// Without a reference a layout or archive must hold exactly one image. An image index is
/// followed to the manifest for this host's processor.
///
/// # Errors
///
/// [`ImageError`]: what, where, what to do.
///
/// # Security
///
/// Credentials go to the registry they are for and to the token server that it names, over TLS
/// unless plain HTTP was named for it. They stand in no error and no log.
pub fn find(source: &ImageSource, options: &SourceOptions) -> Result<ImageRef, ImageError> {
    let work = options.spool_dir.clone().unwrap_or_else(env::temp_dir);
    Ok(source::open(source, options, &work)?.found.image)
}

/// Converts an image into a disk in `store`, or finds it there.
///
/// The disk is an EROFS file system: the merged tree of all layers, and behind it one image per
/// layer that holds the files' contents (and is a file system of its own, with overlayfs'
/// whiteouts). Layers that the store has are not read again, whatever image they came with.
///
/// The store is made if it does not exist. Concurrent callers, other processes included, convert
/// a layer once: the others wait and find it. The files have mode 0644, so that the jailed virtual
/// machine monitor may map them under another uid. `reporter` hears what is going on.
///
/// # Errors
///
/// [`ImageError`]; nothing half-made stays in the store, except `blobs/*.partial` of a download
/// that broke off: the next one continues it. Layers that were whole stay there, even if others
/// were not, or if they do not fit each other.
///
/// # Security
///
/// The image is read as hostile input. What comes out is as trustworthy as the image: a disk for
/// a guest kernel to mount, which the host itself must not mount.
pub fn to_disk(
    source: &ImageSource,
    options: &SourceOptions,
    store: &Path,
    reporter: &dyn PullReporter,
) -> Result<ImageDisk, ImageError> {
    let source::Opened { found, blobs } = source::open(source, options, store)?;
    disk_of(found, &*blobs, store, reporter)
}

/// Gets an image and writes it down in the catalog of `store`, under its source's name or another.
///
/// Whoever is going to use its disk holds the [`Catalog`] meanwhile.
///
/// # Errors
///
/// As [`to_disk`].
pub fn pull(
    source: &ImageSource,
    name: Option<&str>,
    options: &SourceOptions,
    store: &Path,
    reporter: &dyn PullReporter,
) -> Result<(ImageDisk, ImageRecord), ImageError> {
    let catalog = Catalog::new(store);
    let _hold = catalog.hold()?;
    let source::Opened { found, blobs } = source::open(source, options, store)?;
    let record = ImageRecord {
        name: name.map_or_else(|| source.to_string(), str::to_owned),
        manifest: found.image.manifest.clone(),
        added: SystemTime::UNIX_EPOCH
            .elapsed()
            .map_or(0, |since| since.as_secs()),
        layers: found.layers.iter().map(LayerBlob::record).collect(),
        // It was parsed before.
        config: serde_json::from_slice(&found.config_bytes).unwrap_or_default(),
    };
    let disk = disk_of(found, &*blobs, store, reporter)?;
    let record = match catalog.get(&record.name)? {
        // When it came stays what it was.
        Some(known)
            if (ImageRecord {
                added: known.added,
                ..record.clone()
            }) == known =>
        {
            known
        }
        Some(_) | None => {
            catalog.record(&record)?;
            record
        }
    };
    Ok((disk, record))
}

/// Finds the disk of an image that is in the catalog of `store` under its full name; asks nobody
/// else.
///
/// `None` if there is no such image, or if its files are not whole.
///
/// # Errors
///
/// [`ImageError`] if the store cannot be read.
pub fn stored(store: &Path, name: &str) -> Result<Option<ImageDisk>, ImageError> {
    let Some(record) = Catalog::new(store).get(name)? else {
        return Ok(None);
    };
    let blobs = record.layers.iter().map(LayerBlob::recorded);
    let Some(blobs) = blobs.collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    let Some(disk) = convert::find(&blobs, store)? else {
        return Ok(None);
    };
    let config = record.config.to_string();
    let digest = Digest::of(config.as_bytes());
    let config = Config::parse(&digest, config.as_bytes())?.run(&digest)?;
    Ok(Some(ImageDisk {
        descriptor: disk.descriptor,
        parts: disk.parts,
        image: ImageRef {
            manifest: record.manifest,
            config,
        },
        converted: false,
    }))
}

fn disk_of(
    found: Found,
    blobs: &dyn Blobs,
    store: &Path,
    reporter: &dyn PullReporter,
) -> Result<ImageDisk, ImageError> {
    let disk = convert::disk(blobs, &found.layers, store, &Limits::DEFAULT, reporter)?;
    Ok(ImageDisk {
        descriptor: disk.descriptor,
        parts: disk.parts,
        image: found.image,
        converted: disk.converted,
    })
}
