//! The workload's files, by the paths that the workload would use.
//!
//! # Security
//!
//! Init sees the same files as the workload, so a path leads nowhere that the workload could not
//! go as root; what must not happen is that one leads out of what the host named. Every step goes
//! through `openat2`: absolute links and `..` stay below the root, links of `/proc` are not
//! followed, and below the place that was named no symbolic link is followed at all, however the
//! workload changes its directories meanwhile.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};

/// Symbolic links that are followed one by one; the kernel's own limit.
const MAX_LINKS: usize = 40;

/// A directory that is the root of all paths.
#[derive(Debug)]
pub(crate) struct Root(File);

/// Where something is to be put.
#[derive(Debug)]
pub(crate) enum Destination {
    /// The directory is there: below it.
    Below(OwnedFd),
    /// Its parent is there: beside whatever else is in it, by this name, which no directory has.
    Named(OwnedFd, Vec<u8>),
}

impl Root {
    /// Opens a root.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(path)
            .map(Self)
    }

    /// Opens a path as if this were the root; a last symbolic link is followed unless `flags` say
    /// otherwise.
    pub(crate) fn resolve(&self, path: &[u8], flags: OFlag) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&self.0, path, how)
    }

    /// Finds where something goes that is to be called `path`, by the rules of `cp`: below it if
    /// it is a directory, else in its place.
    pub(crate) fn destination(&self, path: &[u8]) -> nix::Result<Destination> {
        let mut path = path.to_vec();
        for _ in 0..MAX_LINKS {
            match self.resolve(&path, DIRECTORY) {
                Ok(directory) => return Ok(Destination::Below(directory)),
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(error) => return Err(error),
            }
            let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
                Some(slash) => (&path[..=slash], &path[slash + 1..]),
                None => (&b"/"[..], &path[..]),
            };
            if matches!(name, b"" | b"." | b"..") {
                // Said to be a directory, and none.
                return Err(self
                    .resolve(&path, OFlag::O_PATH)
                    .err()
                    .unwrap_or(Errno::ENOTDIR));
            }
            let directory = self.resolve(parent, DIRECTORY)?;
            match readlinkat(&directory, OsStr::from_bytes(name)) {
                // To nothing or to a file: that is what is meant.
                Ok(target) if target.as_bytes().starts_with(b"/") => {
                    path = target.as_bytes().to_vec();
                }
                Ok(target) => path = [parent, target.as_bytes()].concat(),
                Err(Errno::EINVAL | Errno::ENOENT) => {
                    return Ok(Destination::Named(directory, name.to_vec()));
                }
                Err(error) => return Err(error),
            }
        }
        Err(Errno::ELOOP)
    }
}

/// How directories are opened that are only gone through.
pub(crate) const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY);

/// Opens an entry of a directory, itself and never what it links to.
pub(crate) fn open_entry(dir: BorrowedFd<'_>, name: &[u8], flags: OFlag) -> nix::Result<OwnedFd> {
    open_or_make(dir, name, flags, Mode::empty())
}

/// Makes a file where nothing is.
pub(crate) fn make_file(dir: BorrowedFd<'_>, name: &[u8]) -> nix::Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
    open_or_make(dir, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map(File::from)
}

fn open_or_make(
    dir: BorrowedFd<'_>,
    name: &[u8],
    flags: OFlag,
    mode: Mode,
) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .mode(mode)
        .resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_MAGICLINKS,
        );
    openat2(dir, name, how)
}

/// What an entry of a directory is; `None` if there is none.
pub(crate) fn look(dir: impl AsFd, name: &[u8]) -> nix::Result<Option<FileStat>> {
    match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The type of a file.
pub(crate) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}
