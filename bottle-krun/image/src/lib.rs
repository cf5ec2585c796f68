//! OCI images to read-only disks, and writable overlays.
//!
//! ```text
//! source   index.json -> manifest -> config            every blob's digest checked
//!   layer  blob -> decompressed bytes                  digest, size, diff id checked
//!     tar  bytes -> entries                            hostile: total parser with limits
//!    tree  entries -> one merged tree                  whiteouts, as overlayfs would show it
//!   erofs  bodies while they stream by, then the tree  one EROFS file
//! catalog  names -> images, what they take up        removal of what nobody needs
//!   store  temporary file, fsync, rename               one conversion per key at a time
//! ```
//!
//! Nothing is extracted to the host's file system: layers are parsed and written as one disk
//! image file, so path traversal does not exist. Memory grows with the number of entries (which
//! is limited), never with their contents. The same layers give the same bytes.
#![forbid(unsafe_code)]

mod catalog;
mod convert;
mod digest;
mod erofs;
mod error;
mod layer;
mod overlay;
mod source;
mod store;
mod tar;
mod tree;

use std::path::{Path, PathBuf};

use crate::source::layout::Layout;
use crate::tree::Limits;

// The front door: these names are the contract, the modules are not.
pub use crate::catalog::{Catalog, Hold};
pub use crate::error::{EntryProblem, ImageError};
pub use crate::overlay::make_overlay;

/// The version of the disk format that this writer makes; part of every key in the store.
pub const WRITER_VERSION: u32 = 1;

/// An image in an OCI layout, found and read but not yet converted.
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

/// Finds an image in an OCI layout directory and reads its manifest and config, digests checked.
///
/// `reference` is a name (`org.opencontainers.image.ref.name`) or the digest of a manifest or
/// index that `index.json` lists; without one the layout must hold exactly one image. An image
/// index is followed to the manifest for this host's processor.
///
/// # Errors
///
/// [`ImageError`]: what, where, what to do.
pub fn find(dir: &Path, reference: Option<&str>) -> Result<ImageRef, ImageError> {
    Ok(Layout::open(dir)?.find(reference)?.image)
}

/// Converts an image of an OCI layout into one merged EROFS disk in `store`, or finds it there.
///
/// The store is made if it does not exist. Concurrent callers, other processes included, convert
/// an image once: the others wait and find it. The file has mode 0644, so that the jailed
/// virtual machine monitor may map it under another uid.
///
/// # Errors
///
/// [`ImageError`]; nothing half-made stays in the store.
///
/// # Security
///
/// The image is read as hostile input. What comes out is as trustworthy as the image: a disk for
/// a guest kernel to mount, which the host itself must not mount.
pub fn to_disk(dir: &Path, reference: Option<&str>, store: &Path) -> Result<ImageDisk, ImageError> {
    let layout = Layout::open(dir)?;
    let found = layout.find(reference)?;
    let key = format!("{}-w{WRITER_VERSION}", found.manifest.hex());
    let (path, converted) = store::publish(store, &key, |file| {
        convert::convert(&layout, &found.layers, store, file, &Limits::DEFAULT)
    })?;
    Ok(ImageDisk {
        path,
        image: found.image,
        converted,
    })
}
