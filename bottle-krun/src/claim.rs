//! From a plan to a shim: a bottle's directories, its writable disk, and the process that takes both.

use std::env;
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::process::Stdio;

use bottle_core::backend::{BackendError, Blame};
use bottle_core::id::BottleId;
use bottle_core::reporter::Stage;
use bottle_core::spec::{Overlay, Spec};
use bottle_core::units::MiB;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::task::spawn_blocking;

use crate::error::start_failed;
use crate::options::KrunOptions;
use crate::plan::new_id;
use crate::reexec::Role;
use crate::shim::room::Room;
use crate::state::{Dirs, StateError};
use crate::stored::Stored;

/// How often another id is tried if one is taken: five base32 characters collide once in 33 million.
const ID_ATTEMPTS: usize = 4;

/// Variables that the shim needs of its client: where tools and roots are, and how to log.
const SHIM_ENV: [&str; 6] = [
    "HOME",
    "PATH",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "BOTTLE_LOG",
    "XDG_DATA_HOME",
];

/// Directories of a bottle whose shim does not run yet; removed again unless handed to one. Of a
/// bottle that was kept, only what is made for a run is removed.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) dirs: Dirs,
    lock: Option<File>,
    again: bool,
}

impl Claim {
    /// Creates and locks the directories of a new bottle, under another id if this one is taken.
    pub(crate) fn new(
        options: &KrunOptions,
        spec: &Spec,
        id: &mut BottleId,
    ) -> Result<Self, BackendError> {
        for _ in 0..ID_ATTEMPTS {
            let dirs = Dirs::of(options, id);
            match dirs.claim() {
                Ok(lock) => {
                    return Ok(Self {
                        dirs,
                        lock: Some(lock),
                        again: false,
                    });
                }
                Err(StateError::Taken { .. }) => {
                    *id = new_id(&spec.name)
                        .map_err(|error| start_failed(id, Stage::Disks, Blame::Bug, error))?;
                }
                Err(error) => {
                    return Err(start_failed(id, Stage::Disks, Blame::Environment, error));
                }
            }
        }
        let path = Dirs::of(options, id).lock();
        let taken = StateError::Taken { path };
        Err(start_failed(id, Stage::Disks, Blame::Environment, taken))
    }

    /// Locks the directories of a bottle that was kept.
    pub(crate) fn again(options: &KrunOptions, id: &BottleId) -> Result<Self, BackendError> {
        let dirs = Dirs::of(options, id);
        match dirs.claim_again() {
            Ok(lock) => Ok(Self {
                dirs,
                lock: Some(lock),
                again: true,
            }),
            Err(StateError::Taken { .. }) => Err(BackendError::Running { id: id.clone() }),
            Err(error) => Err(start_failed(id, Stage::Disks, Blame::User, error)),
        }
    }

    /// Makes what a new bottle needs on the disk: its description, and the disk that it writes to.
    pub(crate) async fn furnish(
        &self,
        id: &BottleId,
        spec: &Spec,
        stored: &Stored,
    ) -> Result<(), BackendError> {
        let failed = |error| start_failed(id, Stage::Disks, Blame::Environment, error);
        if !self.again {
            stored.write(&self.dirs.spec()).map_err(failed)?;
        }
        match spec.resources.overlay {
            Overlay::Disk(_) if self.again => check_room(id, &self.dirs),
            Overlay::Disk(size) => make_overlay(id, &self.dirs, size).await,
            Overlay::Memory => Ok(()),
        }
    }

    /// Starts the shim and hands it the lock.
    ///
    /// The shim finds its client on descriptor 0, the lock on 1 and its log on 2, so that no
    /// descriptor has to be inherited by number.
    pub(crate) fn spawn_shim(mut self, helper: &Path) -> io::Result<(UnixStream, Child)> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(self.dirs.log())?;
        let lock = self.lock.take().expect("the lock is handed over once");
        let mut command = Command::from(Role::Shim.command(helper));
        command
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(lock))
            .stderr(Stdio::from(log));
        for name in SHIM_ENV {
            if let Some(value) = env::var_os(name) {
                command.env(name, value);
            }
        }
        match command.spawn() {
            Ok(child) => Ok((UnixStream::from_std(ours)?, child)),
            Err(error) => {
                self.remove();
                Err(error)
            }
        }
    }

    fn remove(&self) {
        if let Err(error) = self.dirs.leave(self.again) {
            tracing::warn!(%error, "cannot undo a start");
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.lock.is_some() {
            self.remove();
        }
    }
}

/// Makes the writable disk, if the host has room for what will be written to it.
async fn make_overlay(id: &BottleId, dirs: &Dirs, size: MiB) -> Result<(), BackendError> {
    check_room(id, dirs)?;
    let path = dirs.overlay();
    spawn_blocking(move || bottle_image::make_overlay(&path, size.bytes()))
        .await
        .expect("making a file system does not panic")
        .map_err(|error| start_failed(id, Stage::Disks, Blame::Environment, error))
}

fn check_room(id: &BottleId, dirs: &Dirs) -> Result<(), BackendError> {
    let failed = |error: Box<dyn Error + Send + Sync>| {
        start_failed(id, Stage::Disks, Blame::Environment, error)
    };
    let shortage = Room::of(&dirs.state).and_then(|room| room.shortage());
    match shortage.map_err(|error| failed(error.into()))? {
        Some(why) => Err(failed(
            io::Error::new(io::ErrorKind::StorageFull, why).into(),
        )),
        None => Ok(()),
    }
}
