//! Layers -> disk: what the store lacks is made, layers in parallel, then what joins them.
//!
//! ```text
//! layer   blob -> layers/….erofs, layers/….entries      per diff id; the only reader of blobs
//! image   every ….entries in order -> images/….meta      the merged tree
//!         meta + layers -> images/….vmdk                 one disk of all of them
//! ```

pub(crate) mod image;
pub(crate) mod layer;

use std::collections::HashMap;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use bottle_core::images::{NeededLayer, PullReporter};

use crate::digest::Digest;
use crate::error::ImageError;
use crate::journal::Summary;
use crate::layer::{Budget, LayerBlob, Progress};
use crate::record::Record;
use crate::source::Blobs;
use crate::store::Shelf;
use crate::tar::components;
use crate::tree::{Limits, PutError, Tree};

/// A disk in the store.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) descriptor: PathBuf,
    /// Every extent's file, metadata first.
    pub(crate) parts: Vec<PathBuf>,
    /// False if all of it was there.
    pub(crate) converted: bool,
}

/// Both directories of a store.
#[derive(Debug)]
pub(crate) struct Shelves {
    pub(crate) layers: Shelf,
    pub(crate) images: Shelf,
}

/// A layer that the store has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored<'b> {
    pub(crate) blob: &'b LayerBlob,
    pub(crate) summary: Summary,
}

/// Finds the disk of these layers in the store.
pub(crate) fn find(blobs: &[LayerBlob], store: &Path) -> Result<Option<Disk>, ImageError> {
    let shelves = Shelves {
        layers: Shelf::layers(store)?,
        images: Shelf::images(store)?,
    };
    image::find(&shelves, blobs)
}

/// Finds the disk of these layers in the store, or makes it.
pub(crate) fn disk(
    source: &dyn Blobs,
    blobs: &[LayerBlob],
    store: &Path,
    limits: &Limits,
    reporter: &dyn PullReporter,
) -> Result<Disk, ImageError> {
    let shelves = Shelves {
        layers: Shelf::layers(store)?,
        images: Shelf::images(store)?,
    };
    let mut first_with: HashMap<Digest, usize> = HashMap::new();
    for (index, blob) in blobs.iter().enumerate() {
        first_with.entry(blob.diff_id).or_insert(index);
    }
    if let Some(disk) = image::find(&shelves, blobs)? {
        reporter.found(&infos(blobs, |_| true));
        return Ok(disk);
    }
    let mut found = Vec::new();
    let budget = Budget::new(limits.bytes);
    for (index, blob) in blobs.iter().enumerate() {
        let is_first = first_with[&blob.diff_id] == index;
        let summary = if is_first {
            layer::find(&shelves.layers, &blob.diff_id)?
        } else {
            None
        };
        if let Some(summary) = summary {
            budget.spend(summary.bytes)?;
        }
        found.push((is_first, summary));
    }
    reporter.found(&infos(blobs, |index| {
        let (is_first, summary) = found[index];
        !is_first || summary.is_some()
    }));
    let missing: Vec<usize> = (0..blobs.len())
        .filter(|index| matches!(found[*index], (true, None)))
        .collect();
    if !missing.is_empty() {
        shelves.layers.sweep();
    }
    let made = make_layers(
        source,
        blobs,
        &missing,
        &shelves.layers,
        limits,
        &budget,
        reporter,
    )?;
    let stored: Vec<Stored<'_>> = blobs
        .iter()
        .map(|blob| {
            let first = first_with[&blob.diff_id];
            let (_, summary) = found[first];
            let summary = summary
                .or_else(|| made.get(&first).copied())
                .expect("a layer that is not found is made, or that is an error");
            Stored { blob, summary }
        })
        .collect();
    image::make(&shelves, blobs, &stored, limits)
}

fn infos(blobs: &[LayerBlob], stored: impl Fn(usize) -> bool) -> Vec<NeededLayer> {
    let info = |(index, blob): (usize, &LayerBlob)| NeededLayer {
        digest: blob.digest.to_string(),
        size: blob.size,
        stored: stored(index),
    };
    blobs.iter().enumerate().map(info).collect()
}

/// Makes the layers with these indexes, as many at a time as there are processors.
///
/// The first failure stops the others where they are.
fn make_layers(
    source: &dyn Blobs,
    blobs: &[LayerBlob],
    missing: &[usize],
    shelf: &Shelf,
    limits: &Limits,
    budget: &Budget,
    reporter: &dyn PullReporter,
) -> Result<HashMap<usize, Summary>, ImageError> {
    let (entries, names) = (Budget::new(limits.entries), Budget::new(limits.names));
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let failure = Mutex::new(None);
    let made = Mutex::new(HashMap::new());
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let Some(&index) = missing.get(next.fetch_add(1, Ordering::Relaxed)) else {
                return;
            };
            let progress = Progress {
                layer: index,
                budget,
                entries: &entries,
                names: &names,
                stop: &stop,
                reporter,
            };
            match layer::make(source, &blobs[index], shelf, limits, progress) {
                Ok(summary) => {
                    lock(&made).insert(index, summary);
                    reporter.done(index);
                }
                // Whatever comes after it may be its consequence.
                Err(error) => {
                    if !stop.swap(true, Ordering::Relaxed) {
                        *lock(&failure) = Some(error);
                    }
                }
            }
        }
    };
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 1..cores.min(missing.len()) {
            scope.spawn(work);
        }
        work();
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(made.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does to a tree what a record says.
pub(crate) fn apply(tree: &mut Tree, path: &[&[u8]], record: Record) -> Result<(), PutError> {
    match record {
        Record::Dir(meta) => tree.put_dir(path, &meta),
        Record::Link(target) => tree.link(path, &components(&target)?),
        Record::Opaque => tree.opaque(path),
        Record::Put(meta, leaf) => tree.put(path, &meta, &leaf),
        Record::Whiteout => tree.whiteout(path),
    }
}

/// Words why an entry of a layer cannot become part of a tree.
pub(crate) fn refused(layer: &LayerBlob, path: &[u8], error: PutError) -> ImageError {
    match error {
        PutError::Limit { what, limit } => ImageError::Limit { what, limit },
        PutError::Problem(source) => ImageError::BadEntry {
            layer: layer.digest.to_string(),
            path: String::from_utf8_lossy(path).into_owned(),
            source,
        },
        PutError::Spill(kind) => ImageError::Spill {
            source: kind.into(),
        },
    }
}

#[cfg(test)]
mod tests;
