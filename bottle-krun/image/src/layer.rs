//! One layer's blob as a stream of tar bytes, its digests checked at the end.

use std::io::{self, BufReader, Read};

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

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Compression {
    Gzip,
    None,
    Zstd,
}

/// Decompresses a layer; both digests are computed on the way.
///
/// Bytes that were read are not trustworthy before [`finish`](Self::finish) said so.
pub(crate) struct LayerReader {
    blob: LayerBlob,
    plain: Hashed<Decoder>,
    limit: u64,
}

impl LayerReader {
    /// Opens a layer of which at most `limit` bytes are wanted, decompressed.
    pub(crate) fn open(
        source: &dyn Blobs,
        blob: &LayerBlob,
        limit: u64,
    ) -> Result<Self, ImageError> {
        let raw = Hashed::new(source.open_layer(blob)?);
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
            plain: Hashed::new(decoder),
            limit,
        })
    }

    /// Reads what the archive's reader left over, and checks sizes and digests.
    ///
    /// Returns how many bytes there were, decompressed.
    pub(crate) fn finish(mut self) -> Result<u64, ImageError> {
        if let Err(source) = io::copy(&mut self, &mut io::sink()) {
            return Err(self.explain(|layer| ImageError::UnreadableLayer { layer, source }));
        }
        self.check_blob()?;
        let found = self.plain.digest();
        if found != self.blob.diff_id {
            return Err(ImageError::DigestMismatch {
                what: "a layer's content (diff id)",
                expected: self.blob.diff_id.to_string(),
                found: found.to_string(),
            });
        }
        Ok(self.plain.count())
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
        let raw = self.plain.get_mut().raw();
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

impl Read for LayerReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.plain.read(buf)?;
        if self.plain.count() > self.limit {
            return Err(io::Error::other(OverLimit));
        }
        Ok(read)
    }
}

/// The layer is larger, decompressed, than what was asked for.
#[derive(Debug, thiserror::Error)]
#[error("the layer exceeds the limit of decompressed bytes")]
pub(crate) struct OverLimit;

type Raw = BufReader<Hashed<Box<dyn Read + Send>>>;

enum Decoder {
    Gzip(Box<MultiGzDecoder<Raw>>),
    None(Raw),
    Zstd(ZstdDecoder<'static, Raw>),
}

impl Decoder {
    fn raw(&mut self) -> &mut Raw {
        match self {
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::None(raw) => raw,
            Self::Zstd(decoder) => decoder.get_mut(),
        }
    }
}

impl Read for Decoder {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(decoder) => decoder.read(buf),
            Self::None(raw) => raw.read(buf),
            Self::Zstd(decoder) => decoder.read(buf),
        }
    }
}

const BUFFER: usize = 256 << 10;
