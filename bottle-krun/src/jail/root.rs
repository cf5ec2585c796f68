//! The private root: the few names that libkrun opens, and nothing else.
//!
//! ```text
//! /dev/kvm     the device                         (the path is fixed in libkrun)
//! /d/image/…   the image's disk: `disk.vmdk` and the files that it joins, read-only mounts
//! /d/overlay   the writable disk, if there is one
//! /s           the directory of the control socket, read-only mount: connecting still works
//! /console     a FIFO that the shim drains
//! ```
//!
//! The warden builds it over the sockets' directory (a place that is ours and that exists), and
//! the vmm moves into it. There is no procfs.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::{chdir, pivot_root};

use super::{Failure, OrFailure, Step};

/// Where the console's FIFO is in the jail.
pub(crate) const CONSOLE: &str = "/console";
/// Where the descriptor of the image's disk is in the jail; its parts are beside it.
pub(crate) const IMAGE: &str = "/d/image/disk.vmdk";
const PARTS: &str = "/d/image";
/// Where the overlay's disk is in the jail.
pub(crate) const OVERLAY: &str = "/d/overlay";
/// Where the sockets' directory is in the jail.
pub(crate) const SOCKETS: &str = "/s";
const KVM: &str = "/dev/kvm";

/// The root itself, its directories, and some to spare.
const OWN_INODES: usize = 16;

/// All names in the jail's root.
pub(crate) const NAMES: [&str; 4] = ["console", "d", "dev", "s"];

/// What of the host appears in the root.
#[derive(Debug)]
pub(crate) struct Sources<'a> {
    /// The descriptor of the image's disk.
    pub(crate) descriptor: &'a Path,
    /// The files that it names by their file names.
    pub(crate) parts: &'a [PathBuf],
    /// The overlay's disk, if there is one.
    pub(crate) overlay: Option<&'a Path>,
    /// The directory with the control socket; the root is built over it.
    pub(crate) sockets: &'a Path,
    /// The console's FIFO.
    pub(crate) console: &'a Path,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Access {
    ReadOnly,
    ReadWrite,
}

struct Entry<'a> {
    source: &'a Path,
    target: PathBuf,
    kind: SFlag,
    access: Access,
}

/// A root that is built and not yet entered.
#[derive(Debug)]
pub(crate) struct PrivateRoot {
    at: PathBuf,
}

impl PrivateRoot {
    /// Builds the root in the mount namespace of this process, which must be its own.
    ///
    /// # Errors
    ///
    /// [`Failure`] naming the file that cannot be handed over.
    pub(crate) fn build(sources: &Sources<'_>) -> Result<Self, Failure> {
        let step = Step::Root;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .or_failure(step, "make the mounts private")?;

        let entries = entries(sources)?;
        // Opened before the new root covers one of them; a mount takes its source from the
        // descriptor, whatever the path means by then.
        let opened = entries
            .iter()
            .map(open_source)
            .collect::<Result<Vec<_>, _>>()?;

        let at = sources.sockets;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        let inodes = entries.len() + OWN_INODES;
        let options = format!("size=64k,nr_inodes={inodes},mode=0755");
        mount(Some("bottle"), at, Some("tmpfs"), flags, Some(&*options))
            .or_failure(step, format!("mount a tmpfs over `{}`", at.display()))?;
        for (entry, source) in entries.iter().zip(&opened) {
            bind(at, entry, source)?;
        }
        mount(
            none,
            at,
            none,
            flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
            none,
        )
        .or_failure(step, "make the private root read-only")?;
        Ok(Self { at: at.into() })
    }

    /// Names a root that the parent has built, from inside its mount namespace.
    pub(crate) fn built(at: &Path) -> Self {
        Self { at: at.into() }
    }

    /// Makes it the root of every process in this mount namespace and detaches the old one.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    pub(crate) fn pivot(self) -> Result<(), Failure> {
        let step = Step::Pivot;
        chdir(&self.at).or_failure(step, format!("enter `{}`", self.at.display()))?;
        // Both at one place: the old root ends up on top of the new one, and is detached there.
        pivot_root(".", ".").map_err(|errno| {
            Failure::of(step, "exchange the roots", &errno).hint(
                "the root file system must be a mount of its own (not an initramfs or a chroot)",
            )
        })?;
        umount2(".", MntFlags::MNT_DETACH).or_failure(step, "detach the old root")?;
        chdir("/").or_failure(step, "enter the new root")
    }
}

fn entries<'a>(sources: &Sources<'a>) -> Result<Vec<Entry<'a>>, Failure> {
    let Sources {
        descriptor,
        parts,
        overlay,
        sockets,
        console,
    } = *sources;
    let entry = |source, target: &str, kind, access| Entry {
        source,
        target: target.into(),
        kind,
        access,
    };
    let mut entries = vec![
        entry(Path::new(KVM), KVM, SFlag::S_IFCHR, Access::ReadWrite),
        entry(descriptor, IMAGE, SFlag::S_IFREG, Access::ReadOnly),
        entry(sockets, SOCKETS, SFlag::S_IFDIR, Access::ReadOnly),
        entry(console, CONSOLE, SFlag::S_IFIFO, Access::ReadWrite),
    ];
    if let Some(overlay) = overlay {
        let overlay = entry(overlay, OVERLAY, SFlag::S_IFREG, Access::ReadWrite);
        entries.push(overlay);
    }
    for part in parts {
        let name = part.file_name().ok_or_else(|| {
            let what = format!("`{}` is not the name of a file", part.display());
            Failure::new(Step::Root, what)
        })?;
        entries.push(Entry {
            source: part,
            target: Path::new(PARTS).join(name),
            kind: SFlag::S_IFREG,
            access: Access::ReadOnly,
        });
    }
    Ok(entries)
}

/// Opens a source without following a last symbolic link, and refuses one of another kind: a
/// console that is a regular file would be truncated and grow, say.
fn open_source(entry: &Entry<'_>) -> Result<OwnedFd, Failure> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let shown = entry.source.display();
    let fd = open(entry.source, flags, Mode::empty())
        .or_failure(Step::Root, format!("open `{shown}`"))?;
    let stat = fstat(&fd).or_failure(Step::Root, format!("stat `{shown}`"))?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != entry.kind {
        let wanted = match entry.kind {
            SFlag::S_IFCHR => "a device",
            SFlag::S_IFDIR => "a directory",
            SFlag::S_IFIFO => "a FIFO",
            _ => "a regular file",
        };
        return Err(Failure::new(
            Step::Root,
            format!("`{shown}` is not {wanted}"),
        ));
    }
    Ok(fd)
}

fn bind(at: &Path, entry: &Entry<'_>, source: &OwnedFd) -> Result<(), Failure> {
    let step = Step::Root;
    let target = at.join(entry.target.strip_prefix("/").unwrap_or(&entry.target));
    let shown = entry.source.display();
    let make = || {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        match entry.kind {
            SFlag::S_IFDIR => fs::create_dir(&target),
            // A name that is there would be what another source was mounted on.
            _ => File::create_new(&target).map(drop),
        }
    };
    let inside = entry.target.display();
    make().or_failure(step, format!("make `{inside}` in the private root"))?;

    let none: Option<&str> = None;
    let magic = format!("/proc/self/fd/{}", source.as_raw_fd());
    mount(Some(magic.as_str()), &target, none, MsFlags::MS_BIND, none)
        .or_failure(step, format!("bind `{shown}`"))?;
    let flags = restricted(source, entry).or_failure(step, format!("statvfs `{shown}`"))?;
    mount(none, &target, none, flags, none).or_failure(step, format!("restrict `{shown}`"))
}

/// The flags of a restricting remount. Those that the source's mount has must be repeated: in a
/// user namespace they are locked, and leaving one out is refused. (How access times are kept is
/// preserved by itself.)
fn restricted(source: &OwnedFd, entry: &Entry<'_>) -> Result<MsFlags, Errno> {
    let mut flags =
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    if entry.kind != SFlag::S_IFCHR {
        flags |= MsFlags::MS_NODEV;
    }
    if entry.access == Access::ReadOnly {
        flags |= MsFlags::MS_RDONLY;
    }
    let locked = [
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
    ];
    let found = fstatvfs(source)?.flags();
    for (is, keep) in locked {
        if found.contains(is) {
            flags |= keep;
        }
    }
    Ok(flags)
}
