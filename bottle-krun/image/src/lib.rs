//! OCI images to read-only disks, and writable overlays.
//!
//! ```text
//! source   registry | layout | archive -> manifest, config    every document's digest checked
//!   layer  blob -> decompressed bytes                  digest, size, diff id checked
//!     tar  bytes -> entries                            hostile: total parser with limits
//!    tree  entries -> one merged tree                  whiteouts, as overlayfs would show it
//!   erofs  bodies while they stream by, then the tree  one EROFS file
//!   store  temporary file, fsync, rename               one conversion per key at a time
//! ```
//!
//! Nothing is extracted to the host's file system: layers are parsed and written as one disk
//! image file, so path traversal does not exist. Memory grows with the number of entries (which
//! is limited), never with their contents. The same layers give the same bytes.
#![forbid(unsafe_code)]

mod convert;
mod digest;
mod erofs;
mod error;
mod layer;
mod options;
mod overlay;
mod source;
mod store;
mod tar;
mod tree;

use std::env;
use std::path::{Path, PathBuf};

use bottle_core::image::ImageSource;

use crate::tree::Limits;

// The front door: these names are the contract, the modules are not.
pub use crate::error::{EntryProblem, ImageError};
pub use crate::options::{Input, Proxies, RegistryRule, SourceOptions, Timeouts};
pub use crate::overlay::make_overlay;
pub use crate::source::registry::error::{CredentialError, RegistryError};

/// The version of the disk format that this writer makes; part of every key in the store.
pub const WRITER_VERSION: u32 = 1;

/// An image, found and read but not yet converted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ImageRef {
    /// Digest of the manifest: `sha256:…`.
    pub manifest: String,
    /// What the image says about running it.
    pub config: ImageConfig,
}

/// What an image says about running it (OCI image-spec, config.md).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
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

/// A read-only disk made of an image.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ImageDisk {
    /// The EROFS file in the store.
    pub path: PathBuf,
    /// The image.
    pub image: ImageRef,
    /// False if the store had it already.
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

/// Converts an image into one merged EROFS disk in `store`, or finds it there.
///
/// The store is made if it does not exist. Concurrent callers, other processes included, convert
/// an image once: the others wait and find it. The file has mode 0644, so that the jailed
/// virtual machine monitor may map it under another uid.
///
/// # Errors
///
/// [`ImageError`]; nothing half-made stays in the store, except `blobs/*.partial` of a download
/// that broke off: the next one continues it.
///
/// # Security
///
/// The image is read as hostile input. What comes out is as trustworthy as the image: a disk for
/// a guest kernel to mount, which the host itself must not mount.
pub fn to_disk(
    source: &ImageSource,
    options: &SourceOptions,
    store: &Path,
) -> Result<ImageDisk, ImageError> {
    let source::Opened { found, blobs } = source::open(source, options, store)?;
    let key = format!("{}-w{WRITER_VERSION}", found.manifest.hex());
    let (path, converted) = store::publish(store, &key, |file| {
        convert::convert(&*blobs, &found.layers, store, file, &Limits::DEFAULT)
    })?;
    Ok(ImageDisk {
        path,
        image: found.image,
        converted,
    })
}
