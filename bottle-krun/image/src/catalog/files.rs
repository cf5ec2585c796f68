//! The files of the store that images need, and those that none does.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bottle_core::images::ImageRecord;

use super::remove_file;
use crate::WRITER_VERSION;
use crate::convert::image::key_of;
use crate::digest::Digest;
use crate::error::{ImageError, io_at};
use crate::store::PARTIAL;

/// The name that images of these layers share: their disks are the same.
pub(super) fn key(record: &ImageRecord) -> String {
    // What is no digest belongs to a record that has no disk.
    let ids = record.layers.iter();
    key_of(ids.filter_map(|layer| Digest::parse(&layer.diff_id))).hex()
}

/// Whether a bottle runs from the disk with this key.
pub(super) fn is_locked(store: &Path, key: &str) -> Result<bool, ImageError> {
    for path in list(&store.join(IMAGES))? {
        if stem(&path) != Some(key) {
            continue;
        }
        if is_file_locked(&path)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_file_locked(path: &Path) -> Result<bool, ImageError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(io_at("open", path)(error)),
    };
    match file.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(io_at("lock", path)(error)),
    }
}

/// What a set of images needs.
#[derive(Debug)]
pub(super) struct Kept<'s> {
    store: &'s Path,
    /// How many disks need a layer, by diff id in hexadecimal digits.
    layers: BTreeMap<String, BTreeSet<String>>,
    /// Keys of disks.
    disks: BTreeSet<String>,
    /// Names of files that others need.
    needed: &'s BTreeSet<OsString>,
}

impl<'s> Kept<'s> {
    pub(super) fn of(
        store: &'s Path,
        records: &[ImageRecord],
        needed: &'s BTreeSet<OsString>,
    ) -> Self {
        let mut layers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for record in records {
            for layer in hexes(record) {
                layers.entry(layer).or_default().insert(key(record));
            }
        }
        Self {
            store,
            layers,
            disks: records.iter().map(key).collect(),
            needed,
        }
    }

    /// Bytes on the host's disk of what only this image's disk needs, and of what others do, too.
    pub(super) fn sizes(&self, record: &ImageRecord) -> Result<(u64, u64), ImageError> {
        let mine = hexes(record);
        let (mut own, mut shared) = (0, 0);
        for path in list(&self.store.join(LAYERS))? {
            let Some(stem) = stem(&path).filter(|stem| mine.contains(*stem)) else {
                continue;
            };
            let users = self.layers.get(stem).map_or(0, BTreeSet::len);
            *(if users > 1 { &mut shared } else { &mut own }) += size(&path)?;
        }
        let disk = key(record);
        for path in list(&self.store.join(IMAGES))? {
            if stem(&path) == Some(&disk) {
                own += size(&path)?;
            }
        }
        Ok((own, shared))
    }

    /// Removes the files of an image that is not among these, as far as these don't need them.
    pub(super) fn remove_others_of(&self, record: &ImageRecord) -> Result<u64, ImageError> {
        let (layers, disk) = (hexes(record), key(record));
        self.remove(|stem| layers.contains(stem) || *stem == disk)
    }

    /// Removes all files that these don't need, and cut-off downloads.
    pub(super) fn remove_others(&self) -> Result<u64, ImageError> {
        let mut bytes = self.remove(|_| true)?;
        for path in list(&self.store.join(BLOBS))? {
            bytes += size(&path)?;
            remove_file(&path)?;
        }
        Ok(bytes)
    }

    fn any_is_locked(&self, disks: Option<&BTreeSet<String>>) -> Result<bool, ImageError> {
        for disk in disks.into_iter().flatten() {
            if is_locked(self.store, disk)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn remove(&self, wanted: impl Fn(&str) -> bool) -> Result<u64, ImageError> {
        let mut bytes = 0;
        // Disks first: none may be left whose layers have gone.
        for (dir, is_disk) in [(IMAGES, true), (LAYERS, false)] {
            for path in list(&self.store.join(dir))? {
                let Some(stem) = stem(&path).filter(|stem| wanted(stem)) else {
                    continue;
                };
                let (needed, is_running) = if is_disk {
                    // A disk that lost its name may still have a bottle that runs from it.
                    (self.disks.contains(stem), is_locked(self.store, stem)?)
                } else {
                    let users = self.layers.get(stem);
                    (users.is_some(), self.any_is_locked(users)?)
                };
                let stays = match Use::of(&path) {
                    Use::Disk => needed || (is_disk && is_running),
                    Use::Former => is_running,
                    Use::Partial => is_file_locked(&path)?,
                };
                if stays
                    || path
                        .file_name()
                        .is_some_and(|name| self.needed.contains(name))
                {
                    continue;
                }
                bytes += size(&path)?;
                remove_file(&path)?;
            }
        }
        Ok(bytes)
    }
}

/// What a file of the store is good for.
enum Use {
    /// Part of a disk: of those that this program makes, or of a later one's.
    Disk,
    /// Part of a disk that a former version of this program made: of use to bottles that still run
    /// from it.
    Former,
    /// To whoever is writing it.
    Partial,
}

impl Use {
    fn of(path: &Path) -> Self {
        if path.extension().is_some_and(|found| found == PARTIAL) {
            return Self::Partial;
        }
        let name = path.file_name().and_then(|name| name.to_str());
        let version = name
            .and_then(|name| name.split_once("-w")?.1.split('.').next())
            .and_then(|version| version.parse::<u32>().ok());
        match version {
            Some(WRITER_VERSION..) => Self::Disk,
            Some(_) | None => Self::Former,
        }
    }
}

/// The files of a directory, which may be missing.
pub(super) fn list(dir: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_at("list", dir)(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(io_at("list", dir))?.path());
    }
    paths.sort();
    Ok(paths)
}

/// What a file's name begins with: the key it was made for.
pub(super) fn stem(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    let (stem, _version) = name.split_once("-w")?;
    Some(stem)
}

fn hexes(record: &ImageRecord) -> BTreeSet<String> {
    let ids = record.layers.iter();
    ids.filter_map(|layer| Some(Digest::parse(&layer.diff_id)?.hex()))
        .collect()
}

/// What a file really takes up, since disks are sparse.
fn size(path: &Path) -> Result<u64, ImageError> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(found.blocks() * 512),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(io_at("examine", path)(error)),
    }
}

const BLOBS: &str = "blobs";
const IMAGES: &str = "images";
const LAYERS: &str = "layers";
