//! One layer: its blob -> its image and its journal.

use std::io::{self, BufReader, Read};
use std::mem;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use tracing::{debug, warn};

use crate::convert::{apply, refused};
use crate::digest::{Digest, Hashed};
use crate::erofs::body::{Bodies, StoreError};
use crate::erofs::{self, BLOCK, Form, is_representable};
use crate::error::{EntryProblem, ImageError, io_at};
use crate::journal::{self, Summary};
use crate::layer::{LayerBlob, LayerReader, OverLimit, Progress};
use crate::pipe::pipe;
use crate::record::{Leaf, Record};
use crate::source::Blobs;
use crate::source::layout::open_regular;
use crate::store::{Partial, Shelf};
use crate::tar::{Entry, EntryKind, Tar, TarError, components};
use crate::tree::{self, Limits, PutError, Tree};

/// The extension of a layer's image.
pub(crate) const IMAGE: &str = "erofs";
/// The extension of a layer's journal.
pub(crate) const JOURNAL: &str = "entries";

/// Finds a layer in the store; one that is damaged (by a file system that lost its end, say) is
/// as good as none.
pub(crate) fn find(shelf: &Shelf, diff_id: &Digest) -> Result<Option<Summary>, ImageError> {
    let key = diff_id.hex();
    let path = shelf.path(&key, IMAGE);
    let Some(blocks) = blocks(shelf, diff_id)? else {
        return Ok(None);
    };
    let journal = shelf.path(&key, JOURNAL);
    let summary = match open_regular(&journal)? {
        Some(mut file) => journal::verify(&mut file).map_err(io_at("read", &journal))?,
        None => None,
    };
    let whole = summary.filter(|summary| summary.blocks == blocks);
    if whole.is_none() {
        warn!(path = %path.display(), "layer without its journal in the store, made again");
    }
    Ok(whole)
}

/// How many blocks a layer's image has; `None` if there is none, or none that is whole.
pub(crate) fn blocks(shelf: &Shelf, diff_id: &Digest) -> Result<Option<u32>, ImageError> {
    let path = shelf.path(&diff_id.hex(), IMAGE);
    let Some(file) = open_regular(&path)? else {
        return Ok(None);
    };
    let read_error = || io_at("read", &path);
    let length = file.metadata().map_err(read_error())?.len();
    let blocks = erofs::blocks_of(&file).map_err(read_error())?;
    let whole = blocks.filter(|blocks| u64::from(*blocks) * BLOCK == length);
    if whole.is_none() {
        warn!(path = %path.display(), "damaged layer in the store, made again");
    }
    Ok(whole)
}

/// Makes a layer, or waits until somebody else has.
pub(crate) fn make(
    source: &dyn Blobs,
    blob: &LayerBlob,
    shelf: &Shelf,
    limits: &Limits,
    progress: Progress<'_>,
) -> Result<Summary, ImageError> {
    let key = blob.diff_id.hex();
    let image = shelf.lock(&key, IMAGE)?;
    if let Some(summary) = find(shelf, &blob.diff_id)? {
        return Ok(summary);
    }
    let journal = shelf.lock(&key, JOURNAL)?;
    let summary = write(
        source,
        blob,
        &image,
        &journal,
        shelf.dir(),
        limits,
        progress,
    )?;
    // In this order an image implies a journal.
    shelf.publish([journal, image])?;
    Ok(summary)
}

/// Nothing that is written is to be used unless this returns success: digests are known at the
/// end.
fn write(
    source: &dyn Blobs,
    blob: &LayerBlob,
    image: &Partial,
    journal: &Partial,
    spill: &Path,
    limits: &Limits,
    progress: Progress<'_>,
) -> Result<Summary, ImageError> {
    let image_error = || io_at("write", image.path());
    let journal_error = || io_at("write", journal.path());
    let mut layer = Layer {
        tree: Tree::new(limits, spill),
        bodies: Bodies::new(image.file().try_clone().map_err(image_error())?),
        journal: journal::Writer::new(journal.file()).map_err(journal_error())?,
        limits: *limits,
        progress,
    };
    let over_limit = |error: &io::Error| {
        let is_ours = error.get_ref().is_some_and(|inner| inner.is::<OverLimit>());
        is_ours.then(|| OverLimit(limits.bytes).into())
    };
    let mut reader = LayerReader::open(source, blob, progress)?;
    // Decompression is most of the work: it has a thread of its own.
    let (writer, plain) = pipe();
    let mut plain = Hashed::new(plain);
    let (read, reader) = thread::scope(|scope| {
        let decompressing = scope.spawn(move || {
            writer.pump(&mut reader);
            reader
        });
        let read = layer
            .read(&mut plain)
            .and_then(|()| io::copy(&mut plain, &mut io::sink()).map_err(Fault::Read));
        let read = read.map(|_| (plain.digest(), plain.count()));
        // Whoever failed wants no more bytes.
        drop(plain);
        match decompressing.join() {
            Ok(reader) => (read, reader),
            Err(panic) => resume_unwind(panic),
        }
    });
    let bytes = match read {
        Ok((digest, bytes)) => {
            reader.finish(&digest)?;
            bytes
        }
        Err(fault) => {
            return Err(match fault {
                Fault::Entry { path, problem } => reader.explain(|layer| ImageError::BadEntry {
                    layer,
                    path: String::from_utf8_lossy(&path).into_owned(),
                    source: problem,
                }),
                Fault::Journal(source) => journal_error()(source),
                Fault::Limit { what, limit } => ImageError::Limit { what, limit },
                Fault::Read(source) => match over_limit(&source) {
                    Some(error) => error,
                    None => reader.explain(|layer| ImageError::UnreadableLayer { layer, source }),
                },
                Fault::Spill(source) => ImageError::Spill { source },
                Fault::Write(source) => image_error()(source),
            });
        }
    };
    let Layer {
        mut tree,
        bodies,
        journal,
        ..
    } = layer;
    tree.keep_marks()
        .map_err(|error| refused(blob, b"", error))?;
    let end = bodies.finish().map_err(image_error())?;
    let blocks = erofs::write(&tree, Form::Layer { end }, image.file()).map_err(image_error())?;
    let summary = Summary { bytes, blocks };
    journal.finish(summary).map_err(journal_error())?;
    Ok(summary)
}

/// What stopped a layer, before it is known whether its blob is to blame.
enum Fault {
    Entry {
        path: Vec<u8>,
        problem: EntryProblem,
    },
    Journal(io::Error),
    Limit {
        what: &'static str,
        limit: u64,
    },
    Read(io::Error),
    Spill(io::Error),
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

/// A layer while its archive is read.
struct Layer<'f> {
    tree: Tree,
    bodies: Bodies,
    journal: journal::Writer<'f>,
    limits: Limits,
    progress: Progress<'f>,
}

impl Layer<'_> {
    fn read(&mut self, reader: impl Read) -> Result<(), Fault> {
        let mut tar = Tar::new(BufReader::with_capacity(BUFFER, reader));
        while let Some(mut entry) = tar.next()? {
            let path = mem::take(&mut entry.path);
            if let Err(refusal) = self.place(&path, entry, &mut tar) {
                return Err(match refusal {
                    Refusal::Journal(error) => Fault::Journal(error),
                    Refusal::Put(PutError::Problem(problem)) => Fault::Entry { path, problem },
                    Refusal::Put(PutError::Limit { what, limit }) => Fault::Limit { what, limit },
                    Refusal::Put(PutError::Spill(kind)) => Fault::Spill(kind.into()),
                    Refusal::Store(StoreError::Truncated) => Fault::Entry {
                        path,
                        problem: EntryProblem::Truncated,
                    },
                    Refusal::Store(StoreError::Read(error)) => Fault::Read(error),
                    Refusal::Store(StoreError::Write(error)) => Fault::Write(error),
                });
            }
        }
        Ok(())
    }

    fn place(
        &mut self,
        path: &[u8],
        entry: Entry,
        tar: &mut Tar<impl Read>,
    ) -> Result<(), Refusal> {
        let mut path = components(path)?;
        match Whiteout::of(&path)? {
            Whiteout::Aufs => return Ok(()),
            Whiteout::Named { name } => {
                path.pop();
                path.push(name);
                return self.accept(&path, Record::Whiteout);
            }
            Whiteout::No => {}
            Whiteout::Opaque => {
                path.pop();
                return self.accept(&path, Record::Opaque);
            }
        }
        let Entry { mut meta, kind, .. } = entry;
        meta.xattrs.retain(|(name, _)| {
            let keep = is_representable(name) && !name.starts_with(OVERLAY_PRIVATE);
            if !keep {
                debug!(name = %name.escape_ascii(), "extended attribute dropped");
            }
            keep
        });
        let leaf = match kind {
            EntryKind::Block(rdev) => Leaf::Block(rdev),
            EntryKind::Char(rdev) => Leaf::Char(rdev),
            EntryKind::Directory => return self.accept(&path, Record::Dir(meta)),
            EntryKind::Fifo => Leaf::Fifo,
            EntryKind::File(size) => {
                // Before the disk is full of what a header only claims.
                if size > self.limits.bytes {
                    return Err(Refusal::Put(PutError::Limit {
                        what: OverLimit::WHAT,
                        limit: self.limits.bytes,
                    }));
                }
                Leaf::File(self.bodies.store(size, tar).map_err(Refusal::Store)?)
            }
            EntryKind::HardLink(target) => return self.accept(&path, Record::Link(target)),
            EntryKind::Symlink(target) => Leaf::Symlink(target.into_boxed_slice()),
        };
        self.accept(&path, Record::Put(meta, leaf))
    }

    fn accept(&mut self, path: &[&[u8]], record: Record) -> Result<(), Refusal> {
        let before = self.tree.counted();
        self.add(path, record)?;
        let now = self.tree.counted();
        let Progress { entries, names, .. } = self.progress;
        let over = |what| move |OverLimit(limit)| PutError::Limit { what, limit };
        entries
            .spend(now.0 - before.0)
            .map_err(over(tree::ENTRIES))?;
        names.spend(now.1 - before.1).map_err(over(tree::NAMES))?;
        Ok(())
    }

    fn add(&mut self, path: &[&[u8]], record: Record) -> Result<(), Refusal> {
        self.journal
            .add(&path.join(&b'/'), &record)
            .map_err(Refusal::Journal)?;
        let is_link = matches!(record, Record::Link(_));
        match apply(&mut self.tree, path, record) {
            // A lower layer may have it: whoever merges layers will know.
            Err(PutError::Problem(EntryProblem::LinkToNothing)) if is_link => {
                Ok(self.tree.vacate(path)?)
            }
            other => Ok(other?),
        }
    }
}

enum Refusal {
    Journal(io::Error),
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

/// What a path says about paths of lower layers (OCI image-spec, layer.md).
enum Whiteout<'p> {
    /// Book-keeping of AUFS that old layers contain: no content.
    Aufs,
    Named {
        name: &'p [u8],
    },
    No,
    Opaque,
}

impl<'p> Whiteout<'p> {
    fn of(path: &[&'p [u8]]) -> Result<Self, EntryProblem> {
        let Some((name, dir)) = path.split_last() else {
            return Ok(Self::No);
        };
        let is_aufs = |name: &&[u8]| name.starts_with(AUFS);
        if *name == OPAQUE && !dir.iter().any(is_aufs) {
            return Ok(Self::Opaque);
        }
        if path.iter().any(is_aufs) {
            return Ok(Self::Aufs);
        }
        match name.strip_prefix(WHITEOUT) {
            None => Ok(Self::No),
            Some(b"" | b"." | b"..") => Err(EntryProblem::Whiteout),
            Some(name) => Ok(Self::Named { name }),
        }
    }
}

/// In front of a name that lower layers have.
pub(crate) const WHITEOUT: &[u8] = b".wh.";
const AUFS: &[u8] = b".wh..wh.";
/// In a directory of which lower layers have something.
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";
/// Attributes by which the overlay driver would take orders from an image.
const OVERLAY_PRIVATE: &[u8] = b"trusted.overlay.";
const BUFFER: usize = 256 << 10;
