//! The host's disk: a bottle is frozen before there is no room left for what it writes.
//!
//! A write to the overlay's file that fails for want of room would be an I/O error in the guest,
//! upon which ext4 gives up its journal and the bottle is lost. A VMM that is stopped in time goes
//! on where it was as soon as there is room again.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bottle_core::event::{EventSink, Happening};
use bottle_wire::client::Condition;
use nix::sys::statvfs::statvfs;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::record::Record;
use crate::vmm::launch::Brake;

/// How often the host is asked. What a guest may write meanwhile has to fit into what is kept.
const PERIOD: Duration = Duration::from_millis(250);
/// The least and the most that is kept free, in bytes; between them a twentieth of the file system.
const KEPT: [u64; 2] = [64 << 20, 512 << 20];

/// The file system that an overlay lies on.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    dir: PathBuf,
    /// Bytes that are kept free.
    kept: u64,
}

impl Room {
    /// Looks at the file system of a directory.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub(crate) fn of(dir: &Path) -> io::Result<Self> {
        let found = statvfs(dir)?;
        let size = found.blocks().saturating_mul(found.fragment_size());
        let [least, most] = KEPT;
        Ok(Self {
            dir: dir.to_owned(),
            kept: (size / 20).clamp(least, most),
        })
    }

    /// Says why a bottle can't go on, if it can't: there are fewer bytes free than are kept.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub(crate) fn shortage(&self) -> io::Result<Option<String>> {
        Ok(self.lacks(self.kept)?.then(|| self.words()))
    }

    fn lacks(&self, wanted: u64) -> io::Result<bool> {
        let found = statvfs(&self.dir)?;
        Ok(found
            .blocks_available()
            .saturating_mul(found.fragment_size())
            < wanted)
    }

    fn words(&self) -> String {
        let Self { dir, kept } = self;
        let mib = kept >> 20;
        format!(
            "the host has less than {mib} MiB free for `{}`; make room there",
            dir.display()
        )
    }

    /// Freezes the machine while there is too little room, and tells of it.
    pub(super) async fn watch(
        self,
        brake: Brake,
        condition: watch::Sender<Condition>,
        record: Arc<Record>,
    ) -> Infallible {
        loop {
            sleep(PERIOD).await;
            let frozen = matches!(*condition.borrow(), Condition::Frozen { .. });
            // A little more than what was lacking, or the next write would freeze it again.
            let wanted = if frozen { self.kept / 2 * 3 } else { self.kept };
            // A file system that can't be asked any more will show in the writes.
            let Ok(lacks) = self.lacks(wanted) else {
                continue;
            };
            if lacks == frozen || brake.set(lacks).is_err() {
                continue;
            }
            let next = if lacks {
                let why = self.words();
                record.record(Happening::Frozen { why: why.clone() });
                Condition::Frozen { why }
            } else {
                record.record(Happening::Thawed {});
                Condition::Running
            };
            condition.send_replace(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_free_follows_the_size_of_the_file_system_within_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let mut room = Room::of(dir.path()).unwrap();
        let [least, most] = KEPT;
        assert!((least..=most).contains(&room.kept));
        room.kept = 0;
        assert_eq!(room.shortage().unwrap(), None);
        room.kept = u64::MAX;
        let why = room.shortage().unwrap().unwrap();
        assert!(why.contains(&*dir.path().to_string_lossy()), "{why}");
    }
}
