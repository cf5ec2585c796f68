//! The store: files that are published whole or not at all, on two shelves.
//!
//! ```text
//! layers/DIFF_ID-wV.entries   what the layer's archive said, in its order (see `journal`)
//! layers/DIFF_ID-wV.erofs     the layer's own image: bodies, and its tree; published after it
//! images/KEY-wV.meta          the merged tree of an image
//! images/KEY-wV.vmdk          the descriptor that joins it and its layers; published after it
//! …/NAME.partial              being written, under an exclusive lock; without one, left over
//! ```
//!
//! `V` is the writer's version, `KEY` the hash of the layers' diff ids: what the names stand for
//! never changes, so a file that is there and whole is never written again.
//!
//! A temporary file is its own lock: who waited for it looks again whether the file that it is
//! for is there by now, and whether the file it locked still has its name. No other lock file
//! stays behind.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tracing::{debug, warn};

use crate::WRITER_VERSION;
use crate::error::{ImageError, io_at};

/// A directory of the store.
#[derive(Debug)]
pub(crate) struct Shelf {
    dir: PathBuf,
}

impl Shelf {
    /// Where layers are.
    pub(crate) fn layers(store: &Path) -> Result<Self, ImageError> {
        Self::open(store.join("layers"))
    }

    /// Where whole images are.
    pub(crate) fn images(store: &Path) -> Result<Self, ImageError> {
        Self::open(store.join("images"))
    }

    fn open(dir: PathBuf) -> Result<Self, ImageError> {
        fs::create_dir_all(&dir).map_err(io_at("make the directory", &dir))?;
        Ok(Self { dir })
    }

    /// Where files without a name can be made.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the file `extension` of `key` is once it is published.
    pub(crate) fn path(&self, key: &str, extension: &str) -> PathBuf {
        self.dir
            .join(format!("{key}-w{WRITER_VERSION}.{extension}"))
    }

    /// Waits for the right to make the file `extension` of `key`.
    pub(crate) fn lock(&self, key: &str, extension: &str) -> Result<Partial, ImageError> {
        Partial::lock(self.path(key, extension))
    }

    /// Gives finished files their names, one after the other, for good.
    pub(crate) fn publish<const N: usize>(&self, partials: [Partial; N]) -> Result<(), ImageError> {
        for partial in partials {
            partial.publish()?;
        }
        let directory = File::open(&self.dir).map_err(io_at("open", &self.dir))?;
        directory.sync_all().map_err(io_at("write", &self.dir))
    }

    /// Removes temporary files that nobody has locked. Failures only cost space.
    pub(crate) fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|found| found != PARTIAL) {
                continue;
            }
            if let Err(error) = remove_if_unlocked(&path) {
                debug!(path = %path.display(), %error, "temporary file stays");
            }
        }
    }
}

/// A locked temporary file; removed unless it is published.
#[derive(Debug)]
pub(crate) struct Partial {
    file: File,
    path: PathBuf,
    /// The name that it is for.
    target: PathBuf,
    published: bool,
}

impl Partial {
    fn lock(target: PathBuf) -> Result<Self, ImageError> {
        let mut path = target.clone().into_os_string();
        path.push(".");
        path.push(PARTIAL);
        let path = PathBuf::from(path);
        let file = lock_named(&path)?;
        file.set_len(0).map_err(io_at("write", &path))?;
        Ok(Self {
            file,
            path,
            target,
            published: false,
        })
    }

    /// The file to write, empty at first.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Its name for error messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn publish(mut self) -> Result<(), ImageError> {
        self.file
            .set_permissions(Permissions::from_mode(0o644))
            .map_err(io_at("write", &self.path))?;
        self.file.sync_all().map_err(io_at("write", &self.path))?;
        fs::rename(&self.path, &self.target).map_err(io_at("make", &self.target))?;
        self.published = true;
        Ok(())
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

/// Makes or opens a temporary file and locks it, waiting for whoever has the lock.
pub(crate) fn lock_named(path: &Path) -> Result<File, ImageError> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io_at("make", path))?;
        file.lock().map_err(io_at("lock", path))?;
        // Whoever had the lock before may have published or removed the file.
        if has_name(&file, path).map_err(io_at("read", path))? {
            return Ok(file);
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

/// The extension of what is being written.
pub(crate) const PARTIAL: &str = "partial";

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    fn names(store: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(store.join("layers"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn name(extension: &str) -> String {
        format!("key-w{WRITER_VERSION}.{extension}")
    }

    #[test]
    fn concurrent_callers_write_once() {
        let store = tempfile::tempdir().unwrap();
        let writes = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let shelf = Shelf::layers(store.path()).unwrap();
                    let partial = shelf.lock("key", "erofs").unwrap();
                    if !shelf.path("key", "erofs").exists() {
                        writes.fetch_add(1, Ordering::SeqCst);
                        partial.file().write_all(b"whole").unwrap();
                        shelf.publish([partial]).unwrap();
                    }
                });
            }
        });
        assert_eq!(writes.load(Ordering::SeqCst), 1);
        assert_eq!(names(store.path()), [name("erofs")]);
        let path = Shelf::layers(store.path()).unwrap().path("key", "erofs");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
        assert_eq!(fs::read(path).unwrap(), b"whole");
    }

    #[test]
    fn what_is_not_published_goes_and_the_next_writer_starts_empty() {
        let store = tempfile::tempdir().unwrap();
        let shelf = Shelf::layers(store.path()).unwrap();
        let partial = shelf.lock("key", "erofs").unwrap();
        partial.file().write_all(b"half").unwrap();
        drop(partial);
        assert_eq!(names(store.path()), [""; 0]);
        // A crash in the middle of the same file.
        fs::write(store.path().join("layers").join(name("erofs.partial")), "x").unwrap();
        let partial = shelf.lock("key", "erofs").unwrap();
        assert_eq!(partial.file().metadata().unwrap().len(), 0);
    }

    #[test]
    fn leftovers_of_a_crash_go_and_locked_files_stay() {
        let store = tempfile::tempdir().unwrap();
        let shelf = Shelf::layers(store.path()).unwrap();
        let dir = store.path().join("layers");
        for name in ["crashed.partial", "busy.partial", "other.txt"] {
            fs::write(dir.join(name), "x").unwrap();
        }
        let busy = File::open(dir.join("busy.partial")).unwrap();
        busy.lock().unwrap();
        let ours = shelf.lock("key", "entries").unwrap();
        shelf.sweep();
        assert_eq!(
            names(store.path()),
            ["busy.partial", &name("entries.partial"), "other.txt"]
        );
        shelf.publish([ours]).unwrap();
        assert_eq!(
            names(store.path()),
            ["busy.partial", &name("entries"), "other.txt"]
        );
    }
}
