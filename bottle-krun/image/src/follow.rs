//! What a conversion tells about itself while it runs.

/// A layer of the image that is being converted.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct LayerInfo {
    /// Digest of the blob, as it is stored: `sha256:…`.
    pub digest: String,
    /// Bytes of the blob, as it is stored.
    pub size: u64,
    /// True if the store has the layer already, or a layer before this one is the same: its blob
    /// is not read.
    pub present: bool,
}

/// Follows a conversion; `()` does so silently.
///
/// A layer is named by its index in [`layers`](Self::layers). Calls come from several threads, and
/// those that make them wait: return soon.
pub trait Follow: Sync {
    /// What there is to do, bottom layer first; once, before anything else.
    fn layers(&self, _layers: &[LayerInfo]) {}

    /// So many more bytes of a layer's blob were read.
    fn read(&self, _layer: usize, _bytes: u64) {}

    /// The layer is in the store now. Not called for those that were present.
    fn done(&self, _layer: usize) {}
}

impl Follow for () {}
