//! The store of disks: one file per key, published whole or not at all.
//!
//! ```text
//! KEY.partial   being written, under an exclusive lock; without one, left over by a crash
//! KEY.erofs     whole, never written again
//! ```
//!
//! The temporary file is its own lock: who waited for it looks again whether the disk is there
//! by now, and whether the file it locked still has its name. No other lock file stays behind.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tracing::{debug, warn};

use crate::erofs;
use crate::error::{ImageError, io_at};
use crate::source::layout::open_regular;

/// The file to write, and its name for error messages.
#[derive(Debug)]
pub(crate) struct Target<'f> {
    pub(crate) file: &'f File,
    pub(crate) path: &'f Path,
}

/// Finds the disk of `key`, or has `write` make it; false for found, true for made.
pub(crate) fn publish(
    store: &Path,
    key: &str,
    write: impl FnOnce(&Target<'_>) -> Result<(), ImageError>,
) -> Result<(PathBuf, bool), ImageError> {
    let path = store.join(format!("{key}.{PUBLISHED}"));
    fs::create_dir_all(store).map_err(io_at("make the directory", store))?;
    if is_there(&path)? {
        return Ok((path, false));
    }
    let partial = Partial::lock(store.join(format!("{key}.{PARTIAL}")))?;
    if is_there(&path)? {
        return Ok((path, false));
    }
    remove_leftovers(store, &partial.path);
    write(&Target {
        file: &partial.file,
        path: &partial.path,
    })?;
    partial.publish(store, &path)?;
    Ok((path, true))
}

/// A disk that is damaged (a file system that lost its end, say) is as good as none.
fn is_there(path: &Path) -> Result<bool, ImageError> {
    let Some(file) = open_regular(path)? else {
        return Ok(false);
    };
    let whole = erofs::looks_whole(&file).map_err(io_at("read", path))?;
    if !whole {
        warn!(path = %path.display(), "damaged disk in the store, made again");
    }
    Ok(whole)
}

/// The locked temporary file; removed unless it is published.
struct Partial {
    file: File,
    path: PathBuf,
    published: bool,
}

impl Partial {
    fn lock(path: PathBuf) -> Result<Self, ImageError> {
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(io_at("make", &path))?;
            file.lock().map_err(io_at("lock", &path))?;
            // Whoever had the lock before may have published or removed the file.
            if has_name(&file, &path).map_err(io_at("read", &path))? {
                file.set_len(0).map_err(io_at("write", &path))?;
                return Ok(Self {
                    file,
                    path,
                    published: false,
                });
            }
        }
    }

    fn publish(mut self, store: &Path, path: &Path) -> Result<(), ImageError> {
        self.file
            .set_permissions(Permissions::from_mode(0o644))
            .map_err(io_at("write", &self.path))?;
        self.file.sync_all().map_err(io_at("write", &self.path))?;
        fs::rename(&self.path, path).map_err(io_at("make", path))?;
        self.published = true;
        let directory = File::open(store).map_err(io_at("open", store))?;
        directory.sync_all().map_err(io_at("write", store))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        // Still locked: nobody else can be writing it.
        if let Err(error) = fs::remove_file(&self.path) {
            warn!(path = %self.path.display(), %error, "cannot remove the temporary file");
        }
    }
}

fn has_name(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes temporary files that nobody has locked. Failures only cost space.
fn remove_leftovers(store: &Path, ours: &Path) {
    let Ok(entries) = fs::read_dir(store) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path == ours
            || path
                .extension()
                .is_none_or(|extension| extension != PARTIAL)
        {
            continue;
        }
        if let Err(error) = remove_if_unlocked(&path) {
            debug!(path = %path.display(), %error, "temporary file stays");
        }
    }
}

fn remove_if_unlocked(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Ok(());
    }
    let file = File::open(path)?;
    match file.try_lock() {
        // Who has just opened the file, too, will notice that it lost its name.
        Ok(()) if has_name(&file, path)? => fs::remove_file(path),
        Ok(()) | Err(TryLockError::WouldBlock) => Ok(()),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

const PUBLISHED: &str = "erofs";
const PARTIAL: &str = "partial";

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;
    use crate::tree::{Limits, Tree};

    /// The smallest thing that looks whole: one block.
    fn write_disk(target: &Target<'_>) -> Result<(), ImageError> {
        let spool = tempfile::tempfile().unwrap();
        let bodies = erofs::body::Bodies::new(target.file.try_clone().unwrap(), spool);
        let (first, tails) = bodies.finish().unwrap();
        let tree = Tree::new(&Limits::DEFAULT);
        erofs::write(&tree, first, &tails, target.file).unwrap();
        Ok(())
    }

    fn names(store: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(store)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn concurrent_callers_write_once() {
        let store = tempfile::tempdir().unwrap();
        let writes = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    publish(store.path(), "key", |target| {
                        writes.fetch_add(1, Ordering::SeqCst);
                        write_disk(target)
                    })
                    .unwrap();
                });
            }
        });
        assert_eq!(writes.load(Ordering::SeqCst), 1);
        assert_eq!(names(store.path()), ["key.erofs"]);
        let mode = fs::metadata(store.path().join("key.erofs")).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o644);
    }

    #[test]
    fn a_failure_leaves_nothing_and_the_next_caller_tries_again() {
        let store = tempfile::tempdir().unwrap();
        let failed = publish(store.path(), "key", |_| Err(ImageError::MkfsMissing));
        assert!(matches!(failed, Err(ImageError::MkfsMissing)));
        assert_eq!(names(store.path()), [""; 0]);
        let (_, made) = publish(store.path(), "key", write_disk).unwrap();
        assert!(made);
        let (_, made) = publish(store.path(), "key", write_disk).unwrap();
        assert!(!made);
    }

    #[test]
    fn leftovers_of_a_crash_go_and_locked_files_stay() {
        let store = tempfile::tempdir().unwrap();
        for name in ["crashed.partial", "busy.partial", "other.txt"] {
            fs::write(store.path().join(name), "x").unwrap();
        }
        let busy = File::open(store.path().join("busy.partial")).unwrap();
        busy.lock().unwrap();
        // A crash in the middle of the same key.
        fs::write(store.path().join("key.partial"), vec![1; 100_000]).unwrap();
        publish(store.path(), "key", write_disk).unwrap();
        assert_eq!(
            names(store.path()),
            ["busy.partial", "key.erofs", "other.txt"]
        );
    }

    #[test]
    fn a_damaged_disk_is_made_again() {
        let store = tempfile::tempdir().unwrap();
        let (path, _) = publish(store.path(), "key", write_disk).unwrap();
        for damage in [0, 2000, 4096] {
            OpenOptions::new()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(damage)
                .unwrap();
            let (_, made) = publish(store.path(), "key", write_disk).unwrap();
            assert!(made, "{damage}");
        }
    }
}
