//! What of a bottle lies in the host's file system, and who may remove it.
//!
//! ```text
//! STATE/bottles/<id>/    lock            held (flock) by the shim alone: held = the bottle lives
//!                        overlay.ext4    the writable disk
//!                        shim.log        what the shim and libkrun had to say
//!                        spec.json       what it is, and what starts it again if it is kept
//!                        log.<n>         what its main process said
//!                        record.jsonl    stays when all else is removed
//! RUNTIME/<id>/          shim.sock       clients
//!                        console         FIFO of the guest's console
//!                        s/control       the one vsock port; `s` is what the jail sees
//! ```
//!
//! The client creates and locks, hands the lock to the shim, and keeps none. Whoever can take the
//! lock of a bottle may remove it, and nobody else.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bottle_core::event::Happening;
use bottle_core::id::BottleId;
use nix::libc::O_NOFOLLOW;
use nix::unistd::Uid;
use thiserror::Error;

use crate::main_log;
use crate::options::KrunOptions;
use crate::record;
use crate::stored::Stored;
use crate::vmm::launch::CONTROL_SOCKET;

/// The name of the socket for clients, below a bottle's directory of sockets.
pub(crate) const CLIENT_SOCKET: &str = "shim.sock";

/// The paths of one bottle.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Dirs {
    /// Its directory of state.
    pub(crate) state: PathBuf,
    /// Its directory of sockets.
    pub(crate) runtime: PathBuf,
}

impl Dirs {
    /// Names the paths of a bottle.
    pub(crate) fn of(options: &KrunOptions, id: &BottleId) -> Self {
        Self {
            state: options.state_dir.join("bottles").join(id.as_str()),
            runtime: options.runtime_dir.join(id.as_str()),
        }
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.state.join("lock")
    }

    pub(crate) fn overlay(&self) -> PathBuf {
        self.state.join("overlay.ext4")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.state.join("shim.log")
    }

    pub(crate) fn spec(&self) -> PathBuf {
        self.state.join("spec.json")
    }

    pub(crate) fn record(&self) -> PathBuf {
        self.state.join("record.jsonl")
    }

    pub(crate) fn console(&self) -> PathBuf {
        self.runtime.join("console")
    }

    pub(crate) fn jail_sockets(&self) -> PathBuf {
        self.runtime.join("s")
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.jail_sockets().join(CONTROL_SOCKET)
    }

    /// Creates the directories and takes the lock.
    ///
    /// # Errors
    ///
    /// [`StateError::Taken`] if the id is in use; nothing of ours is left then or on other errors.
    pub(crate) fn claim(&self) -> Result<File, StateError> {
        for dir in [&self.state, &self.runtime] {
            if let Some(parent) = dir.parent() {
                private_dir(parent)?;
            }
        }
        private_dir(&self.state)?;
        let path = self.lock();
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(O_NOFOLLOW)
            .open(&path)
            .map_err(|source| StateError::Io {
                op: "create",
                path: path.clone(),
                source,
            })?;
        lock_or_taken(&lock, &path)?;
        // Somebody may have removed the bottle between our open and our lock.
        let is_there = is_same(&lock, &path);
        if !is_there || self.record().exists() {
            return Err(StateError::Taken { path });
        }
        private_dir(&self.runtime).or_else(|error| {
            self.remove()?;
            Err(error)
        })?;
        Ok(lock)
    }

    /// Locks the directories of a bottle that was kept, and makes that of its sockets.
    ///
    /// # Errors
    ///
    /// [`StateError::Taken`] if it runs, or is about to; what is kept stays as it is on any error.
    pub(crate) fn claim_again(&self) -> Result<File, StateError> {
        let path = self.lock();
        let lock = OpenOptions::new()
            .write(true)
            .custom_flags(O_NOFOLLOW)
            .open(&path)
            .map_err(|source| StateError::Io {
                op: "open",
                path: path.clone(),
                source,
            })?;
        lock_or_taken(&lock, &path)?;
        if !is_same(&lock, &path) {
            return Err(StateError::Taken { path });
        }
        if let Some(parent) = self.runtime.parent() {
            private_dir(parent)?;
        }
        private_dir(&self.runtime)?;
        Ok(lock)
    }

    /// Leaves a bottle that has ended: with what it needs to start again if it is `kept`, else with
    /// its record alone. The caller holds the lock.
    ///
    /// # Errors
    ///
    /// As [`close`](Self::close) and [`remove`](Self::remove).
    pub(crate) fn leave(&self, kept: bool) -> Result<(), StateError> {
        if kept { self.close() } else { self.remove() }
    }

    /// Removes what a bottle that is kept needs only while it runs. May be repeated; the caller
    /// holds the lock.
    ///
    /// # Errors
    ///
    /// [`StateError::Io`] names the first thing that could not be removed; the others are.
    pub(crate) fn close(&self) -> Result<(), StateError> {
        let mut first = Ok(());
        for (removed, path) in [
            (fs::remove_dir_all(&self.runtime), self.runtime.clone()),
            (fs::remove_file(self.log()), self.log()),
        ] {
            if let Err(source) = removed
                && source.kind() != ErrorKind::NotFound
                && first.is_ok()
            {
                let op = "remove";
                first = Err(StateError::Io { op, path, source });
            }
        }
        first
    }

    /// Says whether a shim holds the bottle.
    pub(crate) fn lives(&self) -> bool {
        File::open(self.lock())
            .is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// Locks the bottle, and removes everything but the record; if it is gone that is no error.
    ///
    /// # Errors
    ///
    /// [`StateError::Taken`] if it runs; as [`remove`](Self::remove).
    pub(crate) fn remove_locked(&self) -> Result<(), StateError> {
        let path = self.lock();
        let lock = match File::open(&path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(source) => {
                let op = "open";
                return Err(StateError::Io { op, path, source });
            }
        };
        lock_or_taken(&lock, &path)?;
        self.remove()
    }

    /// Removes everything but the record. May be repeated; the caller holds the lock.
    ///
    /// # Errors
    ///
    /// [`StateError::Io`] names the first thing that could not be removed; the others are.
    pub(crate) fn remove(&self) -> Result<(), StateError> {
        let mut first = Ok(());
        let mut note = |result: io::Result<()>, path: PathBuf| match result {
            Err(source) if source.kind() != ErrorKind::NotFound && first.is_ok() => {
                first = Err(StateError::Io {
                    op: "remove",
                    path,
                    source,
                });
            }
            Err(_) | Ok(()) => {}
        };
        note(fs::remove_dir_all(&self.runtime), self.runtime.clone());
        for path in [self.overlay(), self.log(), self.spec()] {
            note(fs::remove_file(&path), path);
        }
        if let Err((path, error)) = main_log::remove(&self.state) {
            note(Err(error), path);
        }
        // Last: as long as it is there, the rest can be found and removed.
        note(fs::remove_file(self.lock()), self.lock());
        if !self.record().exists() {
            note(fs::remove_dir(&self.state), self.state.clone());
        }
        first
    }
}

fn lock_or_taken(lock: &File, path: &Path) -> Result<(), StateError> {
    let path = path.to_owned();
    match lock.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(StateError::Taken { path }),
        Err(TryLockError::Error(source)) => {
            let op = "lock";
            Err(StateError::Io { op, path, source })
        }
    }
}

/// Says whether an open file is the one that stands at a path now.
fn is_same(file: &File, path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|there| {
        file.metadata()
            .is_ok_and(|ours| (ours.dev(), ours.ino()) == (there.dev(), there.ino()))
    })
}

/// Lists the bottles that are not removed, with whether they live.
///
/// # Errors
///
/// [`StateError::Io`] if the directory is there and cannot be read.
pub(crate) fn list(options: &KrunOptions) -> Result<Vec<(BottleId, bool)>, StateError> {
    let dir = options.state_dir.join("bottles");
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(StateError::Io {
                op: "read",
                path: dir,
                source,
            });
        }
    };
    let mut found: Vec<_> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<BottleId>().ok())
        .filter_map(|id| {
            let dirs = Dirs::of(options, &id);
            let lives = dirs.lives();
            (lives || dirs.lock().exists()).then_some((id, lives))
        })
        .collect();
    found.sort();
    Ok(found)
}

/// Names the files of images that bottles which were kept need to start again.
pub(crate) fn disk_files(options: &KrunOptions) -> Vec<PathBuf> {
    let bottles = list(options).unwrap_or_default().into_iter();
    bottles
        .filter_map(|(id, _)| Stored::read(&Dirs::of(options, &id).spec()).ok())
        .flat_map(Stored::into_disk_files)
        .collect()
}

/// Removes what bottles left behind whose shim was killed; their records stay, and so does what
/// keeps a bottle.
///
/// A bottle that cannot be removed now is left for the next time.
pub(crate) fn sweep(options: &KrunOptions) {
    for (id, lives) in list(options).unwrap_or_default() {
        let dirs = Dirs::of(options, &id);
        if lives {
            continue;
        }
        let Ok(lock) = File::open(dirs.lock()) else {
            continue;
        };
        if lock.try_lock().is_err() {
            continue;
        }
        let end = Happening::End {
            how: "killed".to_owned(),
            code: None,
        };
        if let Err(error) = record::complete(&dirs.record(), end)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(bottle = %id, %error, "cannot complete a record");
        }
        // One that can't be read can still be removed by name.
        let removed = match Stored::read(&dirs.spec()) {
            Ok(stored) if stored.is_kept() => dirs.close(),
            Err(error) if !error.is_missing() => dirs.close(),
            Ok(_) | Err(_) => dirs.remove(),
        };
        if let Err(error) = removed {
            tracing::warn!(bottle = %id, %error, "cannot remove a dead bottle");
        }
    }
}

/// Creates a directory (and its parents) that is ours alone, or checks that it is.
///
/// # Errors
///
/// [`StateError::Io`], or [`StateError::NotPrivate`] if somebody else owns it or may write to it.
pub(crate) fn private_dir(path: &Path) -> Result<(), StateError> {
    let io = |op| {
        move |source| StateError::Io {
            op,
            path: path.to_owned(),
            source,
        }
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io("create"))?;
    let meta = fs::symlink_metadata(path).map_err(io("examine"))?;
    let owner = Uid::from_raw(meta.uid());
    if !meta.is_dir() || owner != Uid::effective() || meta.mode() & 0o022 != 0 {
        return Err(StateError::NotPrivate {
            path: path.to_owned(),
        });
    }
    Ok(())
}

/// Names a socket in an open directory by a path that fits into a socket address (108 bytes),
/// however deep the directory is. Valid in this process while the directory is open.
pub(crate) fn short_path(dir: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

/// Why a bottle's files cannot be made, read or removed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum StateError {
    /// The system refused an operation.
    #[error("cannot {op} `{}`", path.display())]
    Io {
        /// The operation.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A directory that must be ours alone is not.
    #[error(
        "`{}` must be a directory that belongs to this user and that nobody else may write to",
        path.display()
    )]
    NotPrivate {
        /// The directory.
        path: PathBuf,
    },
    /// Another bottle has this id.
    #[error("`{}` belongs to another bottle", path.display())]
    Taken {
        /// Its lock.
        path: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use bottle_core::spec::Spec;
    use bottle_image::{ImageConfig, ImageDisk, ImageRef, SourceOptions};

    use super::*;
    use crate::record::Record;

    fn options(dir: &Path) -> KrunOptions {
        KrunOptions {
            helper: None,
            kernel: None,
            data_home: None,
            state_dir: dir.join("state"),
            runtime_dir: dir.join("run"),
            image_store: dir.join("images"),
            sources: SourceOptions::default(),
            registries: None,
        }
    }

    #[test]
    fn a_locked_bottle_lives_and_a_dead_one_is_swept_except_for_its_record() {
        let temp = tempfile::tempdir().unwrap();
        let options = options(temp.path());
        let id: BottleId = "a".parse().unwrap();
        let dirs = Dirs::of(&options, &id);
        let lock = dirs.claim().unwrap();
        fs::write(dirs.overlay(), "x").unwrap();
        Record::open(&dirs.record()).unwrap();
        assert_eq!(list(&options).unwrap(), [(id.clone(), true)]);
        sweep(&options);
        assert!(dirs.overlay().exists());

        drop(lock);
        assert_eq!(list(&options).unwrap(), [(id, false)]);
        sweep(&options);
        assert!(!dirs.overlay().exists() && !dirs.runtime.exists() && !dirs.lock().exists());
        let last = record::last(&dirs.record()).unwrap().unwrap();
        assert!(matches!(last.what, Happening::End { .. }), "{last:?}");
        assert_eq!(list(&options).unwrap(), []);
    }

    #[test]
    fn what_keeps_a_dead_bottle_is_not_swept_and_can_be_locked_again() {
        let temp = tempfile::tempdir().unwrap();
        let options = options(temp.path());
        let id: BottleId = "a".parse().unwrap();
        let dirs = Dirs::of(&options, &id);
        let lock = dirs.claim().unwrap();
        assert!(matches!(dirs.claim_again(), Err(StateError::Taken { .. })));
        assert!(matches!(
            dirs.remove_locked(),
            Err(StateError::Taken { .. })
        ));
        let mut spec = Spec::new(id.clone(), "debian:12".parse().unwrap());
        spec.kept = true;
        let disk = ImageDisk {
            descriptor: temp.path().join("x.vmdk"),
            parts: Vec::new(),
            image: ImageRef {
                manifest: String::new(),
                config: ImageConfig::default(),
            },
            converted: false,
        };
        Stored::new(&id, &spec, &[], &disk)
            .write(&dirs.spec())
            .unwrap();
        fs::write(dirs.overlay(), "x").unwrap();
        drop(lock);
        sweep(&options);
        assert!(dirs.overlay().exists() && dirs.spec().exists() && !dirs.runtime.exists());
        let again = dirs.claim_again().unwrap();
        assert!(dirs.runtime.exists());
        drop(again);
        dirs.remove_locked().unwrap();
        assert!(!dirs.state.exists());
        dirs.remove_locked().unwrap();
    }

    #[test]
    fn an_id_whose_record_is_kept_is_not_claimed_again() {
        let temp = tempfile::tempdir().unwrap();
        let dirs = Dirs::of(&options(temp.path()), &"a".parse().unwrap());
        drop(dirs.claim().unwrap());
        fs::write(dirs.record(), "{}\n").unwrap();
        assert!(matches!(dirs.claim(), Err(StateError::Taken { .. })));
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("open");
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(
            private_dir(&dir),
            Err(StateError::NotPrivate { .. })
        ));
    }
}
