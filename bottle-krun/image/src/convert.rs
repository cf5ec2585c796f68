//! Layers -> one EROFS image.

use std::io::{self, BufReader};
use std::mem;
use std::path::Path;

use tracing::debug;

use crate::erofs::body::{Bodies, StoreError};
use crate::erofs::{self, head_of, is_representable};
use crate::error::{EntryProblem, ImageError, io_at};
use crate::layer::{LayerBlob, LayerReader, OverLimit};
use crate::source::Blobs;
use crate::store::Target;
use crate::tar::{Entry, EntryKind, Tar, TarError, components};
use crate::tree::{Limits, NodeKind, PutError, Tree};

/// Writes the merged tree of `layers` into `target`; what it needs besides lives in `store`.
///
/// Nothing in `target` is to be used unless this returns success: digests are known at the end.
pub(crate) fn convert(
    source: &dyn Blobs,
    layers: &[LayerBlob],
    store: &Path,
    target: &Target<'_>,
    limits: &Limits,
) -> Result<(), ImageError> {
    let write_error = || io_at("write", target.path);
    let image = target.file.try_clone().map_err(write_error())?;
    let spool = tempfile::tempfile_in(store).map_err(io_at("make a temporary file in", store))?;
    let mut tree = Tree::new(limits);
    let mut bodies = Bodies::new(image, spool);
    let mut left = limits.bytes;
    for blob in layers {
        let mut reader = LayerReader::open(source, blob, left)?;
        if let Err(fault) = apply(&mut reader, &mut tree, &mut bodies) {
            return Err(match fault {
                Fault::Entry { path, problem } => reader.explain(|layer| ImageError::BadEntry {
                    layer,
                    path: String::from_utf8_lossy(&path).into_owned(),
                    source: problem,
                }),
                Fault::Limit { what, limit } => ImageError::Limit { what, limit },
                Fault::Read(source) => match over_limit(&source, limits) {
                    Some(error) => error,
                    None => reader.explain(|layer| ImageError::UnreadableLayer { layer, source }),
                },
                Fault::Write(source) => write_error()(source),
            });
        }
        left -= reader.finish().map_err(|error| {
            if let ImageError::UnreadableLayer { source, .. } = &error {
                over_limit(source, limits).unwrap_or(error)
            } else {
                error
            }
        })?;
        tree.end_layer();
        for body in tree.take_released() {
            bodies.release(&body);
        }
    }
    let (first, tails) = bodies.finish().map_err(write_error())?;
    erofs::write(&tree, first, &tails, target.file).map_err(write_error())
}

fn over_limit(error: &io::Error, limits: &Limits) -> Option<ImageError> {
    let is_ours = error.get_ref().is_some_and(|inner| inner.is::<OverLimit>());
    is_ours.then_some(ImageError::Limit {
        what: "bytes of all layers, decompressed",
        limit: limits.bytes,
    })
}

/// What stopped a layer, before it is known which layer it was.
enum Fault {
    Entry {
        path: Vec<u8>,
        problem: EntryProblem,
    },
    Limit {
        what: &'static str,
        limit: u64,
    },
    Read(io::Error),
    Write(io::Error),
}

impl From<TarError> for Fault {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Entry { path, problem } => Self::Entry { path, problem },
            TarError::Read(error) => Self::Read(error),
        }
    }
}

fn apply(reader: &mut LayerReader, tree: &mut Tree, bodies: &mut Bodies) -> Result<(), Fault> {
    let mut tar = Tar::new(BufReader::with_capacity(BUFFER, reader));
    while let Some(mut entry) = tar.next()? {
        let path = mem::take(&mut entry.path);
        if let Err(refusal) = place(&path, entry, &mut tar, tree, bodies) {
            return Err(match refusal {
                Refusal::Put(PutError::Problem(problem)) => Fault::Entry { path, problem },
                Refusal::Put(PutError::Limit { what, limit }) => Fault::Limit { what, limit },
                Refusal::Store(StoreError::Truncated) => Fault::Entry {
                    path,
                    problem: EntryProblem::Truncated,
                },
                Refusal::Store(StoreError::Read(error)) => Fault::Read(error),
                Refusal::Store(StoreError::Write(error)) => Fault::Write(error),
            });
        }
        for body in tree.take_released() {
            bodies.release(&body);
        }
    }
    Ok(())
}

enum Refusal {
    Put(PutError),
    Store(StoreError),
}

impl From<PutError> for Refusal {
    fn from(error: PutError) -> Self {
        Self::Put(error)
    }
}

impl From<EntryProblem> for Refusal {
    fn from(problem: EntryProblem) -> Self {
        Self::Put(problem.into())
    }
}

fn place(
    path: &[u8],
    entry: Entry,
    tar: &mut Tar<impl io::Read>,
    tree: &mut Tree,
    bodies: &mut Bodies,
) -> Result<(), Refusal> {
    let path = components(path)?;
    match Whiteout::of(&path)? {
        Whiteout::Aufs => return Ok(()),
        Whiteout::Named { dir, name } => return Ok(tree.whiteout(dir, name)?),
        Whiteout::No => {}
        Whiteout::Opaque { dir } => return Ok(tree.opaque(dir)?),
    }
    let Entry { mut meta, kind, .. } = entry;
    meta.xattrs.retain(|(name, _)| {
        let keep = is_representable(name) && !name.starts_with(OVERLAY_PRIVATE);
        if !keep {
            debug!(name = %name.escape_ascii(), "extended attribute dropped");
        }
        keep
    });
    match kind {
        EntryKind::Block(rdev) => tree.put(&path, meta, NodeKind::Block(rdev))?,
        EntryKind::Char(rdev) => tree.put(&path, meta, NodeKind::Char(rdev))?,
        EntryKind::Directory => tree.put_dir(&path, meta)?,
        EntryKind::Fifo => tree.put(&path, meta, NodeKind::Fifo)?,
        EntryKind::File(size) => {
            let head = head_of(&meta.xattrs);
            let body = bodies.store(size, head, tar).map_err(Refusal::Store)?;
            tree.put(&path, meta, NodeKind::File(body))?;
        }
        EntryKind::HardLink(target) => tree.link(&path, &components(&target)?)?,
        EntryKind::Symlink(target) => {
            tree.put(&path, meta, NodeKind::Symlink(target.into_boxed_slice()))?;
        }
    }
    Ok(())
}

/// What a path says about paths of lower layers (OCI image-spec, layer.md).
enum Whiteout<'p> {
    /// Book-keeping of AUFS that old layers contain: no content.
    Aufs,
    Named {
        dir: &'p [&'p [u8]],
        name: &'p [u8],
    },
    No,
    Opaque {
        dir: &'p [&'p [u8]],
    },
}

impl<'p> Whiteout<'p> {
    fn of(path: &'p [&'p [u8]]) -> Result<Self, EntryProblem> {
        let Some((name, dir)) = path.split_last() else {
            return Ok(Self::No);
        };
        let is_aufs = |name: &&[u8]| name.starts_with(AUFS);
        if *name == OPAQUE && !dir.iter().any(is_aufs) {
            return Ok(Self::Opaque { dir });
        }
        if path.iter().any(is_aufs) {
            return Ok(Self::Aufs);
        }
        match name.strip_prefix(WHITEOUT) {
            None => Ok(Self::No),
            Some(b"" | b"." | b"..") => Err(EntryProblem::Whiteout),
            Some(name) => Ok(Self::Named { dir, name }),
        }
    }
}

const WHITEOUT: &[u8] = b".wh.";
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Attributes by which the overlay driver would take orders from an image.
const OVERLAY_PRIVATE: &[u8] = b"trusted.overlay.";
const BUFFER: usize = 256 << 10;
