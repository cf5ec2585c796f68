//! What shim, warden and vmm say to each other. They may be different builds (a named helper), so
//! the order carries a version.

use std::path::{Path, PathBuf};

use bottle_core::id::BottleId;
use bottle_core::units::{MiB, Vcpus};
use serde::{Deserialize, Serialize};

use crate::jail::identity::Identity;
use crate::jail::{Failure, Step};

/// The version of this protocol; a helper of another one refuses the order.
pub(crate) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "/2");

/// Shim to warden, and by it to the vmm: the machine to make.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// [`VERSION`].
    pub(crate) version: String,
    /// The bottle.
    pub(crate) id: BottleId,
    /// Whose rights the two processes keep.
    pub(crate) identity: Identity,
    /// The guest kernel's library, absolute.
    pub(crate) kernel: PathBuf,
    /// The image's disk.
    pub(crate) image: Image,
    /// The overlay's disk, absolute, if there is one.
    pub(crate) overlay: Option<PathBuf>,
    /// The directory with the control socket, absolute.
    pub(crate) sockets: PathBuf,
    /// The console's FIFO, absolute.
    pub(crate) console: PathBuf,
    /// Virtual CPUs.
    pub(crate) vcpus: Vcpus,
    /// Memory.
    pub(crate) memory: MiB,
    /// What init proves itself with.
    pub(crate) nonce: [u8; 32],
}

impl Order {
    /// Refuses an order of another version.
    pub(crate) fn check(&self, step: Step) -> Result<(), Failure> {
        if self.version == VERSION {
            return Ok(());
        }
        Err(Failure::new(
            step,
            format!(
                "the helper program speaks {VERSION}, the program that started it {}",
                self.version
            ),
        )
        .hint("install both from the same release"))
    }
}

/// The image's disk: a descriptor and the files that it joins by their names.
///
/// There may be hundreds, in one or two directories; an order has to fit into one packet, so a
/// directory stands once for the files in it that follow each other.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Image {
    descriptor: PathBuf,
    parts: Vec<Files>,
}

#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
struct Files {
    dir: PathBuf,
    names: Vec<String>,
}

impl Image {
    /// `None` if a part has no name that is text.
    pub(crate) fn new(descriptor: PathBuf, parts: Vec<PathBuf>) -> Option<Self> {
        let mut grouped: Vec<Files> = Vec::new();
        for part in parts {
            let dir = part.parent()?;
            let name = part.file_name()?.to_str()?.to_owned();
            match grouped.last_mut() {
                Some(last) if last.dir == dir => last.names.push(name),
                _ => grouped.push(Files {
                    dir: dir.to_owned(),
                    names: vec![name],
                }),
            }
        }
        Some(Self {
            descriptor,
            parts: grouped,
        })
    }

    /// The descriptor, absolute.
    pub(crate) fn descriptor(&self) -> &Path {
        &self.descriptor
    }

    /// The parts, absolute.
    pub(crate) fn parts(&self) -> impl Iterator<Item = PathBuf> {
        self.parts
            .iter()
            .flat_map(|Files { dir, names }| names.iter().map(|name| dir.join(name)))
    }
}

/// Vmm to warden, warden to shim. The vmm may be taken over: what it says is text to be shown and
/// nothing is decided by it but when to stop waiting.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// A step is about to be taken.
    Step(Step),
    /// The step is not in this form of the jail yet.
    NotYet(Step),
    /// A step failed; the process ends.
    Failed(Failure),
    /// The vmm exists; carries a pidfd. Warden only.
    Vmm,
    /// The jail is complete and tried; the next thing is to start the machine.
    Ready,
    /// The vmm panicked and ends.
    Panicked(String),
    /// The vmm has ended; the last report. Warden only.
    Ended(WaitStatus),
}

/// How the vmm's process ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) enum WaitStatus {
    /// It exited with this code. libkrun's says nothing about the guest.
    Exited(i32),
    /// A signal ended it.
    Signaled(i32),
}

/// Warden to vmm: start the machine.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Go;

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;
    use crate::vmm::channel::{Channel, MAX_PACKET};

    #[test]
    fn parts_of_a_disk_are_what_they_were() {
        let parts: Vec<PathBuf> = ["/s/images/m", "/s/layers/a", "/s/layers/b", "/s/images/c"]
            .map(PathBuf::from)
            .into();
        let image = Image::new("/s/images/d".into(), parts.clone()).unwrap();
        assert_eq!(image.parts().collect::<Vec<_>>(), parts);
        assert_eq!(image.descriptor(), Path::new("/s/images/d"));
        for nameless in ["/", "/x/.."] {
            assert_eq!(Image::new("/d".into(), vec![nameless.into()]), None);
        }
    }

    #[test]
    fn an_order_with_every_layer_there_can_be_fits_into_a_packet() {
        let dir = Path::new("/").join(["d".repeat(250).as_str(); 12].join("/"));
        let name = |number| dir.join(format!("{number:064}-w9999.erofs"));
        let parts = (0..513).map(name).collect();
        let image = Image::new(dir.join("disk.vmdk"), parts).unwrap();
        let (ours, theirs) = Channel::pair().unwrap();
        ours.send(&image).unwrap();
        assert_eq!(theirs.receive::<Image>().unwrap(), Some(image));
        let too_long = ours.send(&"x".repeat(MAX_PACKET)).unwrap_err();
        assert_eq!(too_long.kind(), ErrorKind::InvalidInput);
    }
}
