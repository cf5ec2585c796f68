//! An OCI image layout, in a directory or in a tar file: `oci-layout`, `index.json`, `blobs/`.
//!
//! Documents are read whole, up to a limit; only layers are streamed (see `layer`).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::digest::Digest;
use crate::error::{ImageError, io_at};
use crate::layer::LayerBlob;
use crate::source::Blobs;
use crate::source::resolve::{
    Descriptor, Documents, Found, Index, MAX_DOCUMENT, parse, resolve, too_large,
};

/// The files of a layout, wherever they are.
pub(crate) trait Files {
    /// What errors call the whole.
    fn place(&self) -> &Path;

    /// Reads a file of at most `limit` bytes, `None` if there is none; of a larger one, one byte
    /// too many.
    ///
    /// # Errors
    ///
    /// [`ImageError`] if it is there and cannot be read.
    fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, ImageError>;
}

/// Finds the image that `reference` means: a name, or the digest of a manifest or index that
/// `index.json` lists.
pub(crate) fn find(files: &dyn Files, reference: Option<&str>) -> Result<Found, ImageError> {
    let index = read_index(files)?;
    resolve(&InLayout(files), &candidates(files, &index, reference)?)
}

/// The name of a blob's file; the digest's type makes it a harmless one.
pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn read_index(files: &dyn Files) -> Result<Index, ImageError> {
    let read = |name: &'static str| {
        let bytes = files.read(name, MAX_DOCUMENT)?;
        let bytes = bytes.ok_or_else(|| ImageError::NotALayout {
            dir: files.place().to_owned(),
            missing: format!("it has no file `{name}`"),
        })?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(too_large(name));
        }
        Ok(bytes)
    };
    let version: Marker = parse("file", MARKER, &read(MARKER)?)?;
    if !version.image_layout_version.starts_with("1.") {
        return Err(ImageError::Malformed {
            what: "file",
            digest: MARKER.to_owned(),
            reason: format!("version {} is unknown", version.image_layout_version),
        });
    }
    parse("file", INDEX, &read(INDEX)?)
}

/// The descriptors of `index.json` that `reference` means: one image, maybe per platform.
fn candidates<'i>(
    files: &dyn Files,
    index: &'i Index,
    reference: Option<&str>,
) -> Result<Vec<&'i Descriptor>, ImageError> {
    let all = index.all();
    let dir = files.place().to_owned();
    let Some(reference) = reference else {
        let names: BTreeSet<Option<&str>> = all.iter().map(|d| d.name()).collect();
        // Unnamed siblings are one image only if each is for a platform of its own.
        let variants = all.iter().all(|d| d.platform.is_some());
        let digests: BTreeSet<&str> = all.iter().map(|d| d.digest.as_str()).collect();
        return if digests.is_empty() {
            Err(ImageError::NotALayout {
                dir,
                missing: "its `index.json` lists no image".to_owned(),
            })
        } else if digests.len() == 1 || (names.len() == 1 && variants) {
            Ok(all)
        } else {
            Err(ImageError::Ambiguous {
                dir,
                known: known(index),
            })
        };
    };
    let matching: Vec<&Descriptor> = all
        .into_iter()
        .filter(|d| d.name() == Some(reference) || d.digest == reference)
        .collect();
    if matching.is_empty() {
        return Err(ImageError::UnknownReference {
            dir,
            reference: reference.to_owned(),
            known: known(index),
        });
    }
    Ok(matching)
}

/// The names (of unnamed ones the digests) that could be asked for.
fn known(index: &Index) -> String {
    let all = index.all();
    let names: BTreeSet<&str> = all.iter().map(|d| d.name().unwrap_or(&d.digest)).collect();
    if names.is_empty() {
        return "nothing".to_owned();
    }
    names.into_iter().collect::<Vec<_>>().join(", ")
}

/// A layout's blobs as documents.
struct InLayout<'f>(&'f dyn Files);

impl Documents for InLayout<'_> {
    fn document(
        &self,
        what: &'static str,
        digest: &Digest,
        size: u64,
    ) -> Result<Vec<u8>, ImageError> {
        let Self(files) = self;
        let bytes = files.read(&blob_name(digest), size)?;
        bytes.ok_or_else(|| ImageError::MissingBlob {
            dir: files.place().to_owned(),
            what,
            digest: digest.to_string(),
        })
    }
}

/// A layout in a directory.
#[derive(Debug)]
pub(crate) struct Directory {
    dir: PathBuf,
}

impl Directory {
    pub(crate) fn open(dir: &Path) -> Result<Self, ImageError> {
        let not_a_layout = |missing: &str| ImageError::NotALayout {
            dir: dir.to_owned(),
            missing: missing.to_owned(),
        };
        match fs::metadata(dir) {
            Ok(found) if found.is_dir() => Ok(Self {
                dir: dir.to_owned(),
            }),
            Ok(_) => Err(not_a_layout("it is not a directory")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(not_a_layout("it does not exist"))
            }
            Err(error) => Err(io_at("open", dir)(error)),
        }
    }
}

impl Files for Directory {
    fn place(&self) -> &Path {
        &self.dir
    }

    fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, ImageError> {
        let path = self.dir.join(name);
        let Some(file) = open_regular(&path)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(io_at("read", &path))?;
        Ok(Some(bytes))
    }
}

impl Blobs for Directory {
    fn open_layer(&self, blob: &LayerBlob) -> Result<Box<dyn Read + Send>, ImageError> {
        let path = self.dir.join(blob_name(&blob.digest));
        let file = open_regular(&path)?.ok_or_else(|| ImageError::MissingBlob {
            dir: self.dir.clone(),
            what: "layer",
            digest: blob.digest.to_string(),
        })?;
        let found = file.metadata().map_err(io_at("read", &path))?.len();
        if found != blob.size {
            return Err(ImageError::SizeMismatch {
                what: "layer",
                digest: blob.digest.to_string(),
                expected: blob.size,
                found,
            });
        }
        Ok(Box::new(file))
    }
}

/// Opens a regular file, `None` if there is nothing; a FIFO or device would block for ever.
pub(crate) fn open_regular(path: &Path) -> Result<Option<File>, ImageError> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => File::open(path).map(Some).map_err(io_at("open", path)),
        Ok(_) => Err(io_at("open", path)(io::Error::other("not a regular file"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_at("open", path)(error)),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marker {
    image_layout_version: String,
}

pub(crate) const MARKER: &str = "oci-layout";
pub(crate) const INDEX: &str = "index.json";
