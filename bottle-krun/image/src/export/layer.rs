//! Layers as the store has them -> plain tar archives.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bottle_core::images::ImageRecord;

use super::output;
use crate::convert::image::place;
use crate::convert::{apply, layer, refused};
use crate::digest::{Digest, Hashed};
use crate::erofs::BLOCK;
use crate::erofs::body::Body;
use crate::error::{EntryProblem, ImageError, io_at};
use crate::journal::Reader;
use crate::layer::LayerBlob;
use crate::record::{Leaf, Record};
use crate::store::Shelf;
use crate::tar::{EntryKind, components, write};
use crate::tree::{Limits, Meta, PutError, Tree};

/// What an archive is called and how long it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Part {
    pub(super) digest: Digest,
    pub(super) size: u64,
}

impl Part {
    /// Of what was written.
    pub(super) fn of<W>(written: &Hashed<W>) -> Self {
        Self {
            digest: written.digest(),
            size: written.count(),
        }
    }
}

/// The layers of an image, bottom first.
pub(crate) struct Layers {
    /// Where the store can keep what does not fit into memory.
    spill: PathBuf,
    found: Vec<Found>,
}

struct Found {
    blob: LayerBlob,
    journal: PathBuf,
    image: PathBuf,
    blocks: u32,
}

impl Layers {
    /// `None` if one is not whole.
    pub(crate) fn find(store: &Path, record: &ImageRecord) -> Result<Option<Self>, ImageError> {
        let shelf = Shelf::layers(store)?;
        let mut found = Vec::new();
        for layer in &record.layers {
            let Some(blob) = LayerBlob::recorded(layer) else {
                return Ok(None);
            };
            let Some(summary) = layer::find(&shelf, &blob.diff_id)? else {
                return Ok(None);
            };
            let key = blob.diff_id.hex();
            found.push(Found {
                journal: shelf.path(&key, layer::JOURNAL),
                image: shelf.path(&key, layer::IMAGE),
                blocks: summary.blocks,
                blob,
            });
        }
        Ok(Some(Self {
            spill: shelf.dir().to_owned(),
            found,
        }))
    }

    /// Calls `work` with every layer; it has to write each.
    pub(crate) fn each(
        &self,
        limits: &Limits,
        mut work: impl FnMut(&mut Layer<'_>) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let mut tree = Tree::new(limits, &self.spill);
        for found in &self.found {
            work(&mut Layer {
                found,
                tree: &mut tree,
            })?;
            tree.end_layer();
        }
        Ok(())
    }
}

/// A layer, and what the layers below it made.
pub(crate) struct Layer<'l> {
    found: &'l Found,
    tree: &'l mut Tree,
}

impl Layer<'_> {
    /// Writes the whole archive.
    pub(crate) fn write(&mut self, out: &mut impl Write) -> Result<(), ImageError> {
        let Found {
            blob,
            journal,
            image,
            ..
        } = self.found;
        let read_error = || io_at("read", journal);
        let file = File::open(journal).map_err(io_at("open", journal))?;
        let mut reader = Reader::open(file).map_err(read_error())?;
        let bodies = File::open(image).map_err(io_at("open", image))?;
        let mut buffer = vec![0; BUFFER];
        while let Ok((name, record)) = reader.next().map_err(read_error())? {
            let put_error = |error| refused(blob, &name, error);
            let path = components(&name).map_err(|problem| put_error(problem.into()))?;
            let (head, body) = self.entry(&path, &record).map_err(put_error)?;
            out.write_all(&head).map_err(output)?;
            if let Some(body) = body {
                self.body(body, &bodies, &mut buffer, out)?;
            }
            apply(self.tree, &path, record).map_err(put_error)?;
        }
        out.write_all(&write::END).map_err(output)
    }

    /// That the store is not what it was a moment ago.
    pub(crate) fn changed(&self) -> ImageError {
        let source = io::Error::other("it changed while it was read");
        io_at("read", &self.found.image)(source)
    }

    /// An entry's head, and where its body is.
    fn entry(
        &mut self,
        path: &[&[u8]],
        record: &Record,
    ) -> Result<(Vec<u8>, Option<Body>), PutError> {
        let plain = Meta {
            mode: 0o644,
            ..Meta::default()
        };
        let whole = path.join(&b'/');
        Ok(match record {
            Record::Dir(meta) => {
                let name = [if path.is_empty() { b"." } else { &whole[..] }, b"/"].concat();
                (write::head(&name, meta, &EntryKind::Directory), None)
            }
            Record::Link(target) => {
                let target = components(target)?;
                let shared = self.tree.link_target(&target)?;
                // There are readers who give the file what stands beside its last name.
                let meta = Meta {
                    xattrs: Vec::new(),
                    ..self.tree.details(shared)?.meta
                };
                let kind = EntryKind::HardLink(target.join(&b'/'));
                (write::head(&whole, &meta, &kind), None)
            }
            Record::Opaque => {
                let name = beside(path, &[layer::OPAQUE]);
                (write::head(&name, &plain, &EntryKind::File(0)), None)
            }
            Record::Put(meta, leaf) => {
                let (kind, body) = match leaf {
                    Leaf::Block(rdev) => (EntryKind::Block(*rdev), None),
                    Leaf::Char(rdev) => (EntryKind::Char(*rdev), None),
                    Leaf::Fifo => (EntryKind::Fifo, None),
                    Leaf::File(body) => (EntryKind::File(body.size), Some(*body)),
                    Leaf::Symlink(target) => (EntryKind::Symlink(target.to_vec()), None),
                };
                (write::head(&whole, meta, &kind), body)
            }
            Record::Whiteout => {
                let (name, dir) = path.split_last().ok_or(EntryProblem::Whiteout)?;
                let name = beside(dir, &[layer::WHITEOUT, name]);
                (write::head(&name, &plain, &EntryKind::File(0)), None)
            }
        })
    }

    fn body(
        &self,
        body: Body,
        file: &File,
        buffer: &mut [u8],
        out: &mut impl Write,
    ) -> Result<(), ImageError> {
        let Found { image, blocks, .. } = self.found;
        let read_error = || io_at("read", image);
        let Body { size, first } = place(body, *blocks, 0).map_err(read_error())?;
        let mut at = u64::from(first) * BLOCK;
        let end = at + size;
        while at < end {
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            let wanted = left.min(buffer.len());
            file.read_exact_at(&mut buffer[..wanted], at)
                .map_err(read_error())?;
            out.write_all(&buffer[..wanted]).map_err(output)?;
            at += wanted as u64;
        }
        zeros(out, write::padding(size))
    }
}

/// Writes so many zeros.
pub(super) fn zeros(out: &mut impl Write, count: u64) -> Result<(), ImageError> {
    let copied = io::copy(&mut io::repeat(0).take(count), out);
    copied.map(drop).map_err(output)
}

/// The path of a name in `dir`.
fn beside(dir: &[&[u8]], name: &[&[u8]]) -> Vec<u8> {
    let name = name.concat();
    let components = dir.iter().copied().chain([&name[..]]);
    components.collect::<Vec<_>>().join(&b'/')
}

const BUFFER: usize = 256 << 10;
