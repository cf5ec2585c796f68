//! What the store holds by name, what it takes up, and how it goes away again.
//!
//! ```text
//! STORE/lock                  shared while images are added or started, exclusive to remove
//! STORE/names/<hash>.json     one record a name: manifest, config, layers
//! STORE/images/<key>-wV.*     an image's own disk; a bottle holds a shared lock on the descriptor
//! STORE/layers/<diff id>-wV.* shared between images; V is the writer's version
//! STORE/blobs/*.partial       downloads that were cut off and may go on
//! ```
//!
//! A record is written last and removed first: files without a record are leftovers, which
//! [`Catalog::prune`] removes.

mod files;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bottle_core::images::{ImageRecord, Removed, StoredImage};
use tracing::warn;

use self::files::Kept;
use crate::digest::Digest;
use crate::error::{ImageError, io_at};

/// The images of a store.
#[derive(Clone, Debug)]
pub struct Catalog {
    store: PathBuf,
    /// Names of files that are in use though nobody runs from them.
    needed: BTreeSet<OsString>,
}

/// Keeps what it holds from being removed, or everybody else from using it, until dropped.
#[derive(Debug)]
pub struct Hold(#[expect(dead_code, reason = "its descriptor holds a lock")] File);

impl Catalog {
    /// Opens the catalog of a store, which need not exist yet.
    #[must_use]
    pub fn new(store: &Path) -> Self {
        Self {
            store: store.to_owned(),
            needed: BTreeSet::new(),
        }
    }

    /// Counts these files of the store as in use, though nobody runs from them now.
    #[must_use]
    pub fn needing<'p>(mut self, files: impl IntoIterator<Item = &'p Path>) -> Self {
        let names = files.into_iter().filter_map(Path::file_name);
        self.needed.extend(names.map(OsStr::to_owned));
        self
    }

    /// Keeps images from being removed meanwhile; for who adds one or is about to start from it.
    ///
    /// # Errors
    ///
    /// [`ImageError::Io`].
    pub fn hold(&self) -> Result<Hold, ImageError> {
        let (path, file) = self.lock_file()?;
        file.lock_shared().map_err(io_at("lock", &path))?;
        Ok(Hold(file))
    }

    /// Writes down an image whose disk is there.
    ///
    /// # Errors
    ///
    /// [`ImageError::Io`]; a former record of the name is left as it was.
    pub(crate) fn record(&self, record: &ImageRecord) -> Result<(), ImageError> {
        let dir = self.store.join(NAMES);
        fs::create_dir_all(&dir).map_err(io_at("make the directory", &dir))?;
        let path = self.path_of(&record.name);
        let mut file = tempfile::NamedTempFile::new_in(&dir).map_err(io_at("write", &path))?;
        let json = serde_json::to_vec(record).map_err(|error| ImageError::Io {
            op: "write",
            path: path.clone(),
            source: error.into(),
        })?;
        file.write_all(&json)
            .and_then(|()| file.as_file().sync_all())
            .map_err(io_at("write", &path))?;
        file.persist(&path)
            .map_err(|error| io_at("write", &path)(error.error))?;
        Ok(())
    }

    /// Finds an image by its full name.
    ///
    /// # Errors
    ///
    /// [`ImageError::Io`]. A damaged record counts as none.
    pub fn get(&self, name: &str) -> Result<Option<ImageRecord>, ImageError> {
        let found = read(&self.path_of(name))?;
        Ok(found.filter(|record| record.name == name))
    }

    /// Lists all images, by name.
    ///
    /// # Errors
    ///
    /// [`ImageError::Io`].
    pub fn list(&self) -> Result<Vec<StoredImage>, ImageError> {
        let records = self.records()?;
        let kept = Kept::of(&self.store, &records, &self.needed);
        let listed = records.iter().map(|record| {
            let (own_bytes, shared_bytes) = kept.sizes(record)?;
            Ok(StoredImage {
                record: record.clone(),
                own_bytes,
                shared_bytes,
                in_use: self.is_in_use(record)?,
            })
        });
        listed.collect()
    }

    /// Removes a name, and all files that no other name needs.
    ///
    /// # Errors
    ///
    /// [`ImageError::InUse`] if a bottle runs from it, or needs it to start again, and no other name has the same disk,
    /// [`ImageError::NotStored`] if there is no such name, [`ImageError::Io`].
    pub fn remove(&self, name: &str) -> Result<Removed, ImageError> {
        let _alone = self.alone()?;
        let Some(record) = self.get(name)? else {
            return Err(ImageError::NotStored {
                name: name.to_owned(),
            });
        };
        let mut left = self.records()?;
        left.retain(|other| other.name != name);
        let is_last = !left
            .iter()
            .any(|other| files::key(other) == files::key(&record));
        if is_last && self.is_in_use(&record)? {
            return Err(ImageError::InUse {
                name: name.to_owned(),
            });
        }
        remove_file(&self.path_of(name))?;
        let bytes = Kept::of(&self.store, &left, &self.needed).remove_others_of(&record)?;
        Ok(Removed {
            names: vec![name.to_owned()],
            bytes,
        })
    }

    /// Removes leftovers: files that no image needs or that only a former version of this program
    /// could use, and cut-off downloads; with `all`, every image that no bottle runs from as well.
    ///
    /// # Errors
    ///
    /// [`ImageError::Io`].
    pub fn prune(&self, all: bool) -> Result<Removed, ImageError> {
        let _alone = self.alone()?;
        let mut names = Vec::new();
        let mut left = Vec::new();
        for record in self.records()? {
            if all && !self.is_in_use(&record)? {
                remove_file(&self.path_of(&record.name))?;
                names.push(record.name);
            } else {
                left.push(record);
            }
        }
        let bytes = Kept::of(&self.store, &left, &self.needed).remove_others()?;
        Ok(Removed { names, bytes })
    }

    fn records(&self) -> Result<Vec<ImageRecord>, ImageError> {
        let dir = self.store.join(NAMES);
        let mut records = Vec::new();
        for path in files::list(&dir)? {
            match read(&path)? {
                Some(record) if self.path_of(&record.name) == path => records.push(record),
                Some(_) | None => {
                    warn!(path = %path.display(), "this is not a record of an image; ignored");
                }
            }
        }
        records.sort_by(|a: &ImageRecord, b| a.name.cmp(&b.name));
        Ok(records)
    }

    fn is_in_use(&self, record: &ImageRecord) -> Result<bool, ImageError> {
        let key = files::key(record);
        let mut needed = self.needed.iter().map(Path::new);
        Ok(needed.any(|name| files::stem(name) == Some(&key))
            || files::is_locked(&self.store, &key)?)
    }

    /// Waits until nobody adds or starts images, and keeps it so.
    fn alone(&self) -> Result<Hold, ImageError> {
        let (path, file) = self.lock_file()?;
        file.lock().map_err(io_at("lock", &path))?;
        Ok(Hold(file))
    }

    fn lock_file(&self) -> Result<(PathBuf, File), ImageError> {
        fs::create_dir_all(&self.store).map_err(io_at("make the directory", &self.store))?;
        let path = self.store.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io_at("open", &path))?;
        Ok((path, file))
    }

    /// Names are somebody else's text: a hash of one is a harmless file name.
    fn path_of(&self, name: &str) -> PathBuf {
        let hash = Digest::of(name.as_bytes()).hex();
        self.store.join(NAMES).join(format!("{hash}.json"))
    }
}

/// Reads a record; `None` if there is none or it is damaged.
fn read(path: &Path) -> Result<Option<ImageRecord>, ImageError> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_at("read", path)(error)),
    }
}

fn remove_file(path: &Path) -> Result<(), ImageError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_at("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

const NAMES: &str = "names";
