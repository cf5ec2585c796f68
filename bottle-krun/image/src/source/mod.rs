//! Where images come from.
//!
//! A source resolves a reference to one manifest and config for this host (all digests checked)
//! and opens the layers' blobs. What a blob holds is believed by nobody: whoever reads one checks
//! size and digests while the bytes go by (see `layer`).

pub(crate) mod layout;

use std::io::Read;

use crate::error::ImageError;
use crate::layer::LayerBlob;

/// What the blobs of an image are read from.
pub(crate) trait Blobs: Sync {
    /// Opens a layer's blob at its first byte, as it is stored: compressed.
    ///
    /// # Errors
    ///
    /// [`ImageError`] if it is not there, or cannot be opened, or is known to have another size.
    fn open_layer(&self, blob: &LayerBlob) -> Result<Box<dyn Read + Send>, ImageError>;
}
