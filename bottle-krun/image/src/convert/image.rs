//! Journals -> the merged tree -> one disk.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use crate::convert::{Disk, Shelves, Stored, apply, layer, refused};
use crate::digest::Digest;
use crate::erofs::body::Body;
use crate::erofs::{self, BLOCK, Form};
use crate::error::{ImageError, io_at};
use crate::journal::Reader;
use crate::layer::LayerBlob;
use crate::record::{Leaf, Record};
use crate::source::layout::open_regular;
use crate::tar::components;
use crate::tree::{Limits, PutError, Tree};
use crate::vmdk::{self, Extent};

/// The extension of an image's metadata.
const METADATA: &str = "meta";
/// The extension of an image's descriptor.
const DESCRIPTOR: &str = "vmdk";

/// Finds the disk of these layers, whole in all its parts.
pub(crate) fn find(shelves: &Shelves, blobs: &[LayerBlob]) -> Result<Option<Disk>, ImageError> {
    let key = key(blobs);
    let descriptor = shelves.images.path(&key.hex(), DESCRIPTOR);
    let Some(found) = open_regular(&descriptor)? else {
        return Ok(None);
    };
    let metadata = shelves.images.path(&key.hex(), METADATA);
    let Some(file) = open_regular(&metadata)? else {
        return Ok(None);
    };
    let read_error = || io_at("read", &metadata);
    let length = file.metadata().map_err(read_error())?.len();
    let total = erofs::blocks_of(&file).map_err(read_error())?;
    let mut parts = vec![(metadata.clone(), length)];
    for diff_id in distinct(blobs) {
        let Some(blocks) = layer::blocks(&shelves.layers, diff_id)? else {
            return Ok(None);
        };
        let path = shelves.layers.path(&diff_id.hex(), layer::IMAGE);
        parts.push((path, u64::from(blocks) * BLOCK));
    }
    let bytes: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
    if total.is_none_or(|total| u64::from(total) * BLOCK != bytes) {
        return Ok(None);
    }
    let expected = text(&key, &parts);
    let mut text = Vec::new();
    found
        .take(expected.len() as u64 + 1)
        .read_to_end(&mut text)
        .map_err(io_at("read", &descriptor))?;
    Ok((text == expected.as_bytes()).then(|| Disk {
        descriptor,
        parts: parts.into_iter().map(|(path, _)| path).collect(),
        converted: false,
    }))
}

/// Makes the disk of layers that the store has, or waits until somebody else has.
pub(crate) fn make(
    shelves: &Shelves,
    blobs: &[LayerBlob],
    layers: &[Stored<'_>],
    limits: &Limits,
) -> Result<Disk, ImageError> {
    let key = key(blobs);
    let metadata = shelves.images.lock(&key.hex(), METADATA)?;
    if let Some(disk) = find(shelves, blobs)? {
        return Ok(Disk {
            converted: true,
            ..disk
        });
    }
    shelves.images.sweep();
    let (tree, mut parts) = merge(shelves, layers, limits)?;
    let write_error = || io_at("write", metadata.path());
    let behind = parts.iter().map(|(_, bytes)| bytes / BLOCK).sum();
    erofs::write(&tree, Form::Metadata { behind }, metadata.file()).map_err(write_error())?;
    let bytes = metadata.file().metadata().map_err(write_error())?.len();
    parts.insert(0, (shelves.images.path(&key.hex(), METADATA), bytes));

    let descriptor = shelves.images.lock(&key.hex(), DESCRIPTOR)?;
    let text = text(&key, &parts);
    let mut file = descriptor.file();
    file.write_all(text.as_bytes())
        .map_err(io_at("write", descriptor.path()))?;
    // In this order a descriptor implies what it describes.
    shelves.images.publish([metadata, descriptor])?;
    Ok(Disk {
        descriptor: shelves.images.path(&key.hex(), DESCRIPTOR),
        parts: parts.into_iter().map(|(path, _)| path).collect(),
        converted: true,
    })
}

/// Replays the journals; returns the tree and the layers' files with their sizes, each once.
fn merge(
    shelves: &Shelves,
    layers: &[Stored<'_>],
    limits: &Limits,
) -> Result<(Tree, Vec<(PathBuf, u64)>), ImageError> {
    let mut tree = Tree::new(limits, shelves.images.dir());
    let mut starts: Vec<(Digest, u64)> = Vec::new();
    let mut parts: Vec<(PathBuf, u64)> = Vec::new();
    let mut next = 0;
    for layer in layers {
        let diff_id = layer.blob.diff_id;
        let known = starts.iter().find(|(found, _)| *found == diff_id);
        let start = match known {
            Some((_, start)) => *start,
            None => {
                let start = next;
                let blocks = u64::from(layer.summary.blocks);
                starts.push((diff_id, start));
                let path = shelves.layers.path(&diff_id.hex(), layer::IMAGE);
                parts.push((path, blocks * BLOCK));
                next += blocks;
                start
            }
        };
        let path = shelves.layers.path(&diff_id.hex(), layer::JOURNAL);
        replay(&mut tree, &path, layer, start)?;
        tree.end_layer();
    }
    Ok((tree, parts))
}

/// Replays one journal; its layer's image begins at block `start` behind the metadata.
fn replay(tree: &mut Tree, path: &Path, layer: &Stored<'_>, start: u64) -> Result<(), ImageError> {
    let read_error = || io_at("read", path);
    let file = fs::File::open(path).map_err(io_at("open", path))?;
    let mut reader = Reader::open(file).map_err(read_error())?;
    while let Ok((name, mut record)) = reader.next().map_err(read_error())? {
        if let Record::Put(_, Leaf::File(body)) = &mut record {
            *body = place(*body, layer.summary.blocks, start).map_err(read_error())?;
        }
        components(&name)
            .map_err(PutError::from)
            .and_then(|components| apply(tree, &components, record))
            .map_err(|error| refused(layer.blob, &name, error))?;
    }
    Ok(())
}

/// Where a body is, counted from the end of the metadata.
pub(crate) fn place(body: Body, blocks: u32, start: u64) -> io::Result<Body> {
    let Body { size, first } = body;
    let end = u64::from(first).saturating_add(size.div_ceil(BLOCK));
    if size > 0 && end > u64::from(blocks) {
        return Err(io::Error::new(
            ErrorKind::InvalidData,
            "a file's place is outside of its layer",
        ));
    }
    let first = u32::try_from(start + u64::from(first)).map_err(|_| ErrorKind::FileTooLarge)?;
    Ok(Body { size, first })
}

/// What the disk is named by: images with the same layers share it.
fn key(blobs: &[LayerBlob]) -> Digest {
    key_of(blobs.iter().map(|blob| blob.diff_id))
}

/// What the files of an image with these diff ids are called.
pub(crate) fn key_of(diff_ids: impl Iterator<Item = Digest>) -> Digest {
    let list: String = diff_ids.map(|id| format!("{id}\n")).collect();
    Digest::of(list.as_bytes())
}

/// A layer that an image has twice is on its disk once.
fn distinct(blobs: &[LayerBlob]) -> Vec<&Digest> {
    let mut distinct: Vec<&Digest> = Vec::new();
    for blob in blobs {
        if !distinct.contains(&&blob.diff_id) {
            distinct.push(&blob.diff_id);
        }
    }
    distinct
}

fn text(key: &Digest, parts: &[(PathBuf, u64)]) -> String {
    let extents: Vec<Extent<'_>> = parts
        .iter()
        .map(|(path, bytes)| Extent {
            path,
            bytes: *bytes,
        })
        .collect();
    vmdk::descriptor(key, &extents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_within_its_layer_and_behind_the_layers_before() {
        let body = |size, first| Body { size, first };
        assert_eq!(place(body(8192, 1), 3, 10).unwrap(), body(8192, 11));
        assert_eq!(place(body(0, 3), 3, 10).unwrap(), body(0, 13));
        for (size, first) in [(8193, 1), (1, 3), (u64::MAX, 1), (1, u32::MAX)] {
            let error = place(body(size, first), 3, 10).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{size} {first}");
        }
        let error = place(body(1, 1), 3, u64::from(u32::MAX)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FileTooLarge);
    }
}
