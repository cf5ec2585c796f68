//! OCI images to read-only disks, and writable overlays.
//!
//! ```text
//! source   index.json -> manifest -> config            every blob's digest checked
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
//! ```
//!
//! Nothing is extracted to the host's file system: layers are parsed and written as disk image
//! files, so path traversal does not exist. Memory grows with the number of entries (which is
//! limited), never with their contents. The same layers give the same bytes, and images that have
//! a layer in common share its file.
#![forbid(unsafe_code)]

mod catalog;
mod convert;
mod digest;
mod erofs;
mod error;
mod follow;
mod journal;
mod layer;
mod overlay;
mod pipe;
mod source;
mod store;
mod tar;
mod tree;
mod vmdk;

use std::path::{Path, PathBuf};

use crate::source::layout::Layout;
use crate::tree::Limits;

// The front door: these names are the contract, the modules are not.
pub use crate::catalog::{Catalog, Hold};
pub use crate::error::{EntryProblem, ImageError};
pub use crate::follow::{Follow, LayerInfo};
pub use crate::overlay::make_overlay;

/// The version of the files that this writer makes; part of every name in the store.
pub const WRITER_VERSION: u32 = 2;

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

/// Converts an image of an OCI layout into a disk in `store`, or finds it there.
///
/// The disk is an EROFS file system: the merged tree of all layers, and behind it one image per
/// layer that holds the files' contents (and is a file system of its own, with overlayfs'
/// whiteouts). Layers that the store has are not read again, whatever image they came with.
///
/// The store is made if it does not exist. Concurrent callers, other processes included, convert
/// a layer once: the others wait and find it. The files have mode 0644, so that the jailed virtual
/// machine monitor may map them under another uid. `follow` hears what is going on.
///
/// # Errors
///
/// [`ImageError`]; nothing half-made stays in the store. Layers that were whole stay there, even
/// if others were not, or if they do not fit each other.
///
/// # Security
///
/// The image is read as hostile input. What comes out is as trustworthy as the image: a disk for
/// a guest kernel to mount, which the host itself must not mount.
pub fn to_disk(
    dir: &Path,
    reference: Option<&str>,
    store: &Path,
    follow: &dyn Follow,
) -> Result<ImageDisk, ImageError> {
    let layout = Layout::open(dir)?;
    let found = layout.find(reference)?;
    let disk = convert::disk(&layout, &found.layers, store, &Limits::DEFAULT, follow)?;
    Ok(ImageDisk {
        descriptor: disk.descriptor,
        parts: disk.parts,
        image: found.image,
        converted: disk.converted,
    })
}
