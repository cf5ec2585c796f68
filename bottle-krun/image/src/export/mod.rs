//! A stored image -> an archive of it, as `skopeo`, `docker load` and [`pull`](crate::pull) read
//! them.
//!
//! ```text
//! oci-layout  index.json  manifest.json     what it is, for either kind of reader
//! blobs/sha256/…                            config, manifest
//! blobs/sha256/…                            layers, bottom first: plain tar archives
//! ```
//!
//! The store has no blobs any more: layers are written anew, from what their archives said and from
//! the bodies. The tree is the same, the bytes are not, and so diff ids and digests are new ones;
//! the same image always gives the same archive. Every layer is gone through twice, first for its
//! digest and size, which stand in front of it: nothing is kept meanwhile, in memory or on disk.

mod documents;
pub(crate) mod layer;

use std::collections::BTreeSet;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use bottle_core::images::Exported;

use self::documents::Documents;
use self::layer::{Layers, Part};
use crate::catalog::Catalog;
use crate::digest::{Digest, Hashed};
use crate::error::ImageError;
use crate::source::layout::{INDEX, MARKER, blob_name};
use crate::source::resolve::MAX_DOCUMENT;
use crate::tar::{EntryKind, write};
use crate::tree::{Limits, Meta};

/// Writes the image that the catalog of `store` has under `name` to `out`, as an OCI archive.
///
/// Layer by layer the archive holds what the image's own layers hold: names, types, modes, owners,
/// times, extended attributes, links, whiteouts and contents. What the store does not keep is not
/// in it: AUFS's own files, attributes that no disk here can have, times of access, names of users.
/// The config is the image's own, but for the digests of the layers.
///
/// Memory grows with the number of entries, as for a conversion, and not with their contents.
///
/// # Errors
///
/// [`ImageError::NotStored`], [`ImageError::Incomplete`], [`ImageError::Export`] if `out` fails,
/// [`ImageError::Io`] if the store cannot be read. What was written so far is no archive then.
pub fn export(store: &Path, name: &str, out: &mut dyn Write) -> Result<Exported, ImageError> {
    let catalog = Catalog::new(store);
    let _hold = catalog.hold()?;
    let Some(record) = catalog.get(name)? else {
        return Err(ImageError::NotStored {
            name: name.to_owned(),
        });
    };
    let Some(layers) = Layers::find(store, &record)? else {
        return Err(ImageError::Incomplete {
            name: name.to_owned(),
        });
    };
    let mut parts = Vec::new();
    layers.each(&Limits::DEFAULT, |layer| {
        let mut hashed = Hashed::new(io::sink());
        layer.write(&mut hashed)?;
        parts.push(Part::of(&hashed));
        Ok(())
    })?;
    let documents = Documents::new(&record, &parts);
    let mut archive = Archive {
        out: Hashed::new(BufWriter::with_capacity(BUFFER, out)),
    };
    for dir in ["blobs/", "blobs/sha256/"] {
        archive.head(dir, 0o755, &EntryKind::Directory)?;
    }
    archive.file(MARKER, &documents.marker)?;
    archive.file(INDEX, &documents.index)?;
    archive.file(documents::DOCKER, &documents.docker)?;
    for blob in [&documents.config, &documents.manifest] {
        archive.file(&blob_name(&Digest::of(blob)), blob)?;
    }
    let mut expected = parts.iter();
    let mut written = BTreeSet::new();
    layers.each(&Limits::DEFAULT, |layer| {
        let Some(part) = expected.next() else {
            return Err(layer.changed());
        };
        if !written.insert(part.digest) {
            // Once is enough; what it does to the layers above is known by going through it.
            return layer.write(&mut io::sink());
        }
        archive.head(&blob_name(&part.digest), 0o644, &EntryKind::File(part.size))?;
        let mut hashed = Hashed::new(&mut archive.out);
        layer.write(&mut hashed)?;
        if Part::of(&hashed) != *part {
            return Err(layer.changed());
        }
        archive.pad(part.size)
    })?;
    let bytes = archive.finish()?;
    Ok(Exported {
        manifest: Digest::of(&documents.manifest).to_string(),
        layers: parts.len(),
        bytes,
    })
}

/// The archive while it is written.
struct Archive<'o> {
    out: Hashed<BufWriter<&'o mut dyn Write>>,
}

impl Archive<'_> {
    fn head(&mut self, name: &str, mode: u16, kind: &EntryKind) -> Result<(), ImageError> {
        let meta = Meta {
            mode,
            ..Meta::default()
        };
        let head = write::head(name.as_bytes(), &meta, kind);
        self.out.write_all(&head).map_err(output)
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<(), ImageError> {
        let size = bytes.len() as u64;
        if size > MAX_DOCUMENT {
            // Whoever reads it has the same limit.
            return Err(ImageError::Limit {
                what: "bytes of a config",
                limit: MAX_DOCUMENT,
            });
        }
        self.head(name, 0o644, &EntryKind::File(size))?;
        self.out.write_all(bytes).map_err(output)?;
        self.pad(size)
    }

    fn pad(&mut self, size: u64) -> Result<(), ImageError> {
        layer::zeros(&mut self.out, write::padding(size))
    }

    /// Returns the number of bytes of the whole.
    fn finish(mut self) -> Result<u64, ImageError> {
        self.out.write_all(&write::END).map_err(output)?;
        self.out.flush().map_err(output)?;
        Ok(self.out.count())
    }
}

/// For `map_err`: that the archive could not be written.
fn output(source: io::Error) -> ImageError {
    ImageError::Export { source }
}

const BUFFER: usize = 256 << 10;
