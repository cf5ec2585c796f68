//! One layer's blob as a stream of tar bytes, its digest checked at the end.

use std::io::{self, BufReader, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bottle_core::images::{LayerRecord, PullReporter};
use flate2::bufread::MultiGzDecoder;
use zstd::stream::read::Decoder as ZstdDecoder;

use crate::digest::{Digest, Hashed};
use crate::error::ImageError;
use crate::source::Blobs;

/// What the image's documents say about a layer.
#[derive(Clone, Debug)]
pub(crate) struct LayerBlob {
    /// Of the blob as it is stored.
    pub(crate) digest: Digest,
    /// Of the blob as it is stored.
    pub(crate) size: u64,
    /// Of the tar archive in it.
    pub(crate) diff_id: Digest,
    pub(crate) compression: Compression,
}

impl LayerBlob {
    /// What the catalog keeps of it.
    pub(crate) fn record(&self) -> LayerRecord {
        LayerRecord {
            digest: self.digest.to_string(),
            size: self.size,
            diff_id: self.diff_id.to_string(),
        }
    }

    /// A layer that the catalog knows and nobody is going to read any more; `None` if what is
    /// known is no digest.
    pub(crate) fn recorded(record: &LayerRecord) -> Option<Self> {
        Some(Self {
            digest: Digest::parse(&record.digest)?,
            size: record.size,
            diff_id: Digest::parse(&record.diff_id)?,
            compression: Compression::None,
        })
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Compression {
    Gzip,
    None,
    Zstd,
}

/// How much an image may still have of something: decompressed bytes, say.
#[derive(Debug)]
pub(crate) struct Budget {
    left: AtomicU64,
    limit: u64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            left: AtomicU64::new(limit),
            limit,
        }
    }

    pub(crate) fn spend(&self, bytes: u64) -> Result<(), OverLimit> {
        let order = Ordering::Relaxed;
        self.left
            .fetch_update(order, order, |left| left.checked_sub(bytes))
            .map(drop)
            .map_err(|_| OverLimit(self.limit))
    }
}

/// What the reader of a layer has in common with those of the image's other layers.
#[derive(Clone, Copy)]
pub(crate) struct Progress<'p> {
    /// The layer's index.
    pub(crate) layer: usize,
    /// Of decompressed bytes.
    pub(crate) budget: &'p Budget,
    /// Of entries, since the trees of layers that are made at a time are in memory at a time.
    pub(crate) entries: &'p Budget,
    /// Of the bytes of their names, likewise.
    pub(crate) names: &'p Budget,
    /// Set when another layer has failed.
    pub(crate) stop: &'p AtomicBool,
    pub(crate) reporter: &'p dyn PullReporter,
}

/// Decompresses a layer's blob; its digest is computed on the way.
///
/// Bytes that were read are not trustworthy before [`finish`](Self::finish) said so.
pub(crate) struct LayerReader<'p> {
    blob: LayerBlob,
    decoder: Decoder<'p>,
    progress: Progress<'p>,
}

impl<'p> LayerReader<'p> {
    pub(crate) fn open(
        source: &dyn Blobs,
        blob: &LayerBlob,
        progress: Progress<'p>,
    ) -> Result<Self, ImageError> {
        let raw = Hashed::new(Followed {
            inner: source.open_layer(blob)?,
            progress,
        });
        let raw = BufReader::with_capacity(BUFFER, raw);
        let decoder = match blob.compression {
            Compression::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(raw))),
            Compression::None => Decoder::None(raw),
            Compression::Zstd => {
                Decoder::Zstd(ZstdDecoder::with_buffer(raw).map_err(|source| {
                    ImageError::UnreadableLayer {
                        layer: blob.digest.to_string(),
                        source,
                    }
                })?)
            }
        };
        Ok(Self {
            blob: blob.clone(),
            decoder,
            progress,
        })
    }

    /// Checks size and digest of the blob, and the digest of what it held, all of which was read.
    pub(crate) fn finish(mut self, found: &Digest) -> Result<(), ImageError> {
        self.check_blob()?;
        if *found != self.blob.diff_id {
            return Err(ImageError::DigestMismatch {
                what: "a layer's content (diff id)",
                expected: self.blob.diff_id.to_string(),
                found: found.to_string(),
            });
        }
        Ok(())
    }

    /// The reason for a failure: a blob with a wrong digest explains whatever came of it.
    pub(crate) fn explain(mut self, otherwise: impl FnOnce(String) -> ImageError) -> ImageError {
        match self.check_blob() {
            Err(error @ ImageError::DigestMismatch { .. }) => error,
            Ok(()) | Err(_) => otherwise(self.blob.digest.to_string()),
        }
    }

    /// Hashes the rest of the blob and compares.
    fn check_blob(&mut self) -> Result<(), ImageError> {
        let raw = self.decoder.raw();
        io::copy(raw, &mut io::sink()).map_err(|source| ImageError::UnreadableLayer {
            layer: self.blob.digest.to_string(),
            source,
        })?;
        let raw = raw.get_mut();
        if raw.count() != self.blob.size {
            return Err(ImageError::SizeMismatch {
                what: "layer",
                digest: self.blob.digest.to_string(),
                expected: self.blob.size,
                found: raw.count(),
            });
        }
        if raw.digest() != self.blob.digest {
            return Err(ImageError::DigestMismatch {
                what: "a layer",
                expected: self.blob.digest.to_string(),
                found: raw.digest().to_string(),
            });
        }
        Ok(())
    }
}

impl Read for LayerReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.decoder.read(buf)?;
        self.progress
            .budget
            .spend(read as u64)
            .map_err(io::Error::other)?;
        Ok(read)
    }
}

/// The image has more bytes, decompressed, than this.
#[derive(Debug, thiserror::Error)]
#[error("the layers exceed the limit of {0} decompressed bytes")]
pub(crate) struct OverLimit(pub(crate) u64);

impl OverLimit {
    /// Of what there is too much.
    pub(crate) const WHAT: &str = "bytes of all layers, decompressed";
}

impl From<OverLimit> for ImageError {
    fn from(OverLimit(limit): OverLimit) -> Self {
        Self::Limit {
            what: OverLimit::WHAT,
            limit,
        }
    }
}

/// A blob whose bytes are told while they are read, until another layer has failed.
struct Followed<'p> {
    inner: Box<dyn Read + Send>,
    progress: Progress<'p>,
}

impl Read for Followed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Progress {
            layer,
            stop,
            reporter,
            ..
        } = self.progress;
        if stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("another layer has failed"));
        }
        let read = self.inner.read(buf)?;
        reporter.read(layer, read as u64);
        Ok(read)
    }
}

type Raw<'p> = BufReader<Hashed<Followed<'p>>>;

enum Decoder<'p> {
    Gzip(Box<MultiGzDecoder<Raw<'p>>>),
    None(Raw<'p>),
    Zstd(ZstdDecoder<'static, Raw<'p>>),
}

impl<'p> Decoder<'p> {
    fn raw(&mut self) -> &mut Raw<'p> {
        match self {
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::None(raw) => raw,
            Self::Zstd(decoder) => decoder.get_mut(),
        }
    }
}

impl Read for Decoder<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(decoder) => decoder.read(buf),
            Self::None(raw) => raw.read(buf),
            Self::Zstd(decoder) => decoder.read(buf),
        }
    }
}

const BUFFER: usize = 256 << 10;
