//! What the fuzz targets of this crate call, and so do tests with the targets' seeds.
//!
//! Each function takes any bytes and panics if a promise does not hold. See `fuzz/`.

mod recipe;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::{Cursor, ErrorKind, Read};
use std::path::Path;
use std::process::Command;

use bottle_core::images::ImageRecord;
use bottle_core::reporter::Silent;

use crate::convert::{Disk, disk};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::export::layer::Layers;
use crate::layer::{Compression, LayerBlob};
use crate::source::Blobs;
use crate::tar::write::head;
use crate::tar::{EntryKind, Tar, components};
use crate::tree::Limits;

/// Reads bytes as an archive, twice: as they are, and with the checksums of headers put right, so
/// that what is behind that gate is reached. Returns the number of entries of both.
///
/// Promised: it ends; it holds no more than the archive has; what it gives can be written so that
/// it reads back the same.
///
/// # Panics
///
/// If that is not so.
pub fn tar(bytes: &[u8]) -> usize {
    let mut mended = bytes.to_vec();
    for block in mended.chunks_exact_mut(HEADER) {
        mend(block);
    }
    entries(bytes) + entries(&mended)
}

fn entries(bytes: &[u8]) -> usize {
    let mut tar = Tar::new(bytes);
    let mut count = 0;
    let mut held = 0;
    while let Ok(Some(entry)) = tar.next() {
        count += 1;
        assert!(count <= bytes.len() / HEADER, "more entries than headers");
        let mut buffer = [0; 4096];
        while tar.read(&mut buffer).expect("memory can be read") > 0 {}
        let target = match &entry.kind {
            EntryKind::HardLink(target) | EntryKind::Symlink(target) => target.len(),
            EntryKind::Block(_)
            | EntryKind::Char(_)
            | EntryKind::Directory
            | EntryKind::Fifo
            | EntryKind::File(_) => 0,
        };
        let xattrs = entry.meta.xattrs.iter();
        let xattrs: usize = xattrs.map(|(name, value)| name.len() + value.len()).sum();
        held += entry.path.len() + target + xattrs;
        assert!(held <= bytes.len(), "more text than bytes");
        // Paths are written as they are kept: normal.
        let path = components(&entry.path).map(|names| names.join(&b'/'));
        if let Ok(path) = path
            && !path.is_empty()
        {
            let written = head(&path, &entry.meta, &entry.kind);
            let read = Tar::new(&written[..]).next();
            let read = read.expect("readable").expect("an entry");
            assert_eq!((&read.path, &read.meta), (&path, &entry.meta));
            assert_eq!(read.kind, entry.kind);
        }
    }
    count
}

/// Puts the checksum of a block right that looks like a header.
fn mend(block: &mut [u8]) {
    if &block[257..262] != b"ustar" {
        return;
    }
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Makes a disk of layers that the bytes describe. Returns whether one came of it.
///
/// Promised: any archives are a disk or one error that blames them; `fsck.erofs` finds no fault with
/// the disk or with any of its layers; exported and converted again it is the same.
///
/// # Panics
///
/// If that is not so, or if `fsck.erofs` is not installed.
pub fn erofs(bytes: &[u8]) -> bool {
    let layers = recipe::layers(bytes);
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let store = dir.path().join("store");
    let (blobs, made) = converted(&layers, &store);
    let made = match made {
        Ok(made) => made,
        Err(error) => {
            assert!(error.is_bad_image(), "{error:?}");
            return false;
        }
    };
    let joined = joined(&made);
    let path = dir.path().join("joined.erofs");
    fs::write(&path, &joined).expect("a file can be written");
    fsck(&path);
    for layer in &made.parts[1..] {
        fsck(layer);
    }

    let again = exported(&store, &blobs);
    let (_, back) = converted(&again, &dir.path().join("again"));
    let back = back.expect("what was exported is an image");
    // Layers that differ in what the store does not keep are one layer from then on.
    if back.parts.len() == made.parts.len() {
        assert!(
            joined == self::joined(&back),
            "the disk of the exported image is another"
        );
    }
    true
}

fn converted(layers: &[Vec<u8>], store: &Path) -> (Vec<LayerBlob>, Result<Disk, ImageError>) {
    let blobs: Vec<_> = layers.iter().map(|bytes| blob(bytes)).collect();
    let source = Memory(layers);
    let disk = disk(&source, &blobs, store, &Limits::DEFAULT, &Silent);
    (blobs, disk)
}

fn exported(store: &Path, blobs: &[LayerBlob]) -> Vec<Vec<u8>> {
    let record = ImageRecord {
        name: String::new(),
        manifest: String::new(),
        added: 0,
        layers: blobs.iter().map(LayerBlob::record).collect(),
        config: serde_json::Value::Null,
    };
    let layers = Layers::find(store, &record).expect("the store can be read");
    let mut archives = Vec::new();
    layers
        .expect("what was made is whole")
        .each(&Limits::DEFAULT, |layer| {
            let mut archive = Vec::new();
            layer.write(&mut archive)?;
            archives.push(archive);
            Ok(())
        })
        .expect("what was made can be exported");
    archives
}

fn joined(disk: &Disk) -> Vec<u8> {
    let read = |part| fs::read(part).expect("a part of the disk can be read");
    disk.parts.iter().flat_map(read).collect()
}

fn fsck(image: &Path) {
    let output = match Command::new("fsck.erofs").arg(image).output() {
        Ok(output) => output,
        Err(error) if cfg!(test) && error.kind() == ErrorKind::NotFound => return,
        Err(error) => panic!("cannot run fsck.erofs: {error}"),
    };
    assert!(
        output.status.success(),
        "{}: {}",
        image.display(),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn blob(bytes: &[u8]) -> LayerBlob {
    let digest = Digest::of(bytes);
    LayerBlob {
        digest,
        size: bytes.len() as u64,
        diff_id: digest,
        compression: Compression::None,
    }
}

struct Memory<'l>(&'l [Vec<u8>]);

impl Blobs for Memory<'_> {
    fn open_layer(&self, blob: &LayerBlob) -> Result<Box<dyn Read + Send>, ImageError> {
        let found = self.0.iter().find(|bytes| Digest::of(bytes) == blob.digest);
        let bytes = found.expect("only these layers are asked for").clone();
        Ok(Box::new(Cursor::new(bytes)))
    }
}

const HEADER: usize = 512;
