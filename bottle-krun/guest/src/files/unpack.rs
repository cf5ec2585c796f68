//! A tar stream -> files of the bottle.
//!
//! # Security
//!
//! The archive is hostile, and so is the workload, which may change directories meanwhile. Nothing
//! is written outside of the destination: names with `..` are refused, absolute ones are taken as
//! relative, and no symbolic link below the destination is ever followed, be it of the archive or
//! of the workload. What is replaced is removed first and made anew, so that nothing is written
//! through a link of either kind. No device is made. Extended headers have a limit.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fchmod, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{
    Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, mkfifoat, symlinkat, unlinkat,
};
use tar::{Archive, Entry, EntryType};

use super::root::{DIRECTORY, Destination, kind, look, make_file, open_entry};
use super::{Counts, Problem};

/// Bytes that may describe an entry before it comes: long names and PAX records.
const MAX_DESCRIPTION: u64 = 1 << 20;

/// What is left out of a file if it is all zeros, in bytes.
const HOLE: usize = 4096;

/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// Whose the files become.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owner {
    /// This user's, without set-id bits.
    User { uid: u32, gid: u32 },
    /// The archive's numbers, with all bits.
    Archive,
}

/// Takes an archive apart.
pub(super) struct Unpacker {
    base: OwnedFd,
    place: Place,
    owner: Owner,
    /// Directories that were made and may yet get entries: their times come last.
    open: Vec<(Vec<Vec<u8>>, TimeSpec)>,
    pub(super) counts: Counts,
}

/// What becomes of the first component of names.
enum Place {
    /// It stays.
    Below,
    /// It becomes this one; once there was an entry, it has to be the same in all of them.
    Named { name: Vec<u8>, top: Option<Top> },
}

enum Top {
    /// Names begin with it.
    Name(Vec<u8>),
    /// The archive is of the current directory: `.` and `./…`.
    Dot,
}

/// What an entry's header says.
struct Meta {
    mode: Mode,
    uid: u32,
    gid: u32,
    mtime: TimeSpec,
}

impl Unpacker {
    pub(super) fn new(destination: Destination, owner: Owner) -> Self {
        let (base, place) = match destination {
            Destination::Below(base) => (base, Place::Below),
            Destination::Named(base, name) => (base, Place::Named { name, top: None }),
        };
        Self {
            base,
            place,
            owner,
            open: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Takes all of it, and what follows its end.
    pub(super) fn all(&mut self, input: impl Read) -> Result<(), Problem> {
        let allowance = Cell::new(MAX_DESCRIPTION);
        let input = Measured {
            input,
            allowance: &allowance,
        };
        let mut archive = Archive::new(input);
        let taken = self.entries(&mut archive, &allowance);
        // Also if something went wrong: what is there is to look as it would have.
        let settled = self.settle(&[]);
        taken.and(settled)?;
        allowance.set(u64::MAX);
        io::copy(&mut archive.into_inner(), &mut io::sink())
            .map(drop)
            .map_err(|error| Problem::archive(b"", &error.to_string()))
    }

    fn entries<R: Read>(
        &mut self,
        archive: &mut Archive<R>,
        allowance: &Cell<u64>,
    ) -> Result<(), Problem> {
        let unreadable = |error: io::Error| Problem::archive(b"", &error.to_string());
        let mut entries = archive.entries().map_err(unreadable)?;
        loop {
            allowance.set(MAX_DESCRIPTION);
            let Some(entry) = entries.next() else {
                return Ok(());
            };
            let mut entry = entry.map_err(unreadable)?;
            allowance.set(u64::MAX);
            let name = entry.path_bytes().into_owned();
            if entry.header().entry_type() != EntryType::XGlobalHeader {
                self.entry(&name, &mut entry)?;
                self.counts.entries += 1;
            }
            io::copy(&mut entry, &mut io::sink())
                .map_err(|error| Problem::archive(&name, &error.to_string()))?;
        }
    }

    fn entry<R: Read>(&mut self, name: &[u8], entry: &mut Entry<'_, R>) -> Result<(), Problem> {
        let meta = meta(entry).ok_or_else(|| {
            Problem::archive(
                name,
                "its header is damaged, or of a form that is not understood",
            )
        })?;
        let mut kind = entry.header().entry_type();
        if kind == EntryType::Regular && name.ends_with(b"/") {
            kind = EntryType::Directory; // as the oldest archives have it
        }
        let path = self.place(name)?;
        self.settle(&path)?;
        let Some((last, parents)) = path.split_last() else {
            // The destination itself, which stays as it is.
            return Ok(());
        };
        let parent = self.parent(parents, name)?;
        let failed = |error| Problem::system(name, error);
        self.make_room(&parent, last, kind, name)?;
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "foreign enum; nothing else is made"
        )]
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mut file = make_file(parent.as_fd(), last).map_err(failed)?;
                // A length that is impossible is found out before anything is read.
                file.set_len(entry.size())
                    .map_err(|error| Problem::system(name, error))?;
                let bytes = fill(entry, &mut file)
                    .map_err(|error| Problem::archive(name, &error.to_string()))?;
                self.counts.bytes += bytes;
                if bytes < entry.size() {
                    return Err(Problem::archive(name, "it ends too early"));
                }
                self.dress(&file, &meta).map_err(failed)
            }
            EntryType::Directory => self.directory(&parent, path, &meta).map_err(failed),
            EntryType::Symlink => {
                let target = link(entry, name)?;
                symlinkat(&*target, &parent, &**last).map_err(failed)?;
                self.dress_link(&parent, last, &meta).map_err(failed)
            }
            EntryType::Link => {
                let target = link(entry, name)?;
                let to = self.place(&target)?;
                let Some((to, dirs)) = to.split_last() else {
                    return Err(Problem::refused(name, "it links to a directory"));
                };
                let dir = self.parent(dirs, name)?;
                linkat(&dir, &**to, &parent, &**last, AtFlags::empty()).map_err(failed)
            }
            EntryType::Fifo => {
                mkfifoat(&parent, &**last, Mode::S_IRUSR).map_err(failed)?;
                let pipe = open_entry(parent.as_fd(), last, OFlag::O_RDONLY | OFlag::O_NONBLOCK);
                self.dress(&pipe.map_err(failed)?, &meta).map_err(failed)
            }
            _ => Err(Problem::refused(
                name,
                "it is neither a file, a directory, a link nor a pipe",
            )),
        }
    }

    /// The components of a name below the destination.
    fn place(&mut self, name: &[u8]) -> Result<Vec<Vec<u8>>, Problem> {
        let mut path: Vec<Vec<u8>> = Vec::new();
        for component in name.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err(Problem::refused(name, "its name leads upwards")),
                _ if component.contains(&0) => {
                    return Err(Problem::archive(name, "its name contains a zero byte"));
                }
                _ => path.push(component.to_vec()),
            }
        }
        let Place::Named { name: own, top } = &mut self.place else {
            return Ok(path);
        };
        let dot = path.is_empty() || name.starts_with(b"./");
        let top = top.get_or_insert_with(|| match path.first() {
            Some(first) if !dot => Top::Name(first.clone()),
            _ => Top::Dot,
        });
        match (top, path.first_mut()) {
            (Top::Dot, _) => path.insert(0, own.clone()),
            (Top::Name(top), Some(first)) if first == top => first.clone_from(own),
            (Top::Name(_), _) => {
                let why = "the archive has several files, and their destination is no directory";
                return Err(Problem::refused(name, why));
            }
        }
        Ok(path)
    }

    /// Opens a directory below the destination; makes what is missing.
    fn parent(&self, path: &[Vec<u8>], entry: &[u8]) -> Result<OwnedFd, Problem> {
        let failed = |error| {
            if matches!(error, Errno::ELOOP | Errno::ENOTDIR | Errno::EXDEV) {
                Problem::refused(entry, "a directory of its name is no directory here")
            } else {
                Problem::system(entry, error)
            }
        };
        let mut dir = self
            .base
            .try_clone()
            .map_err(|e| Problem::system(entry, e))?;
        for component in path {
            let opened = match open_entry(dir.as_fd(), component, DIRECTORY) {
                Err(Errno::ENOENT) => {
                    mkdirat(&dir, &**component, MISSING).map_err(failed)?;
                    if let Owner::User { uid, gid } = self.owner {
                        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
                        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
                        fchownat(&dir, &**component, Some(uid), Some(gid), flags)
                            .map_err(failed)?;
                    }
                    open_entry(dir.as_fd(), component, DIRECTORY)
                }
                other => other,
            };
            dir = opened.map_err(failed)?;
        }
        Ok(dir)
    }

    /// Removes what is in the way; a directory is in nobody's way but a file's, and stays.
    fn make_room(
        &self,
        parent: &OwnedFd,
        name: &[u8],
        new: EntryType,
        entry: &[u8],
    ) -> Result<(), Problem> {
        let there = look(parent, name).map_err(|error| Problem::system(entry, error))?;
        let is_dir = there.map(|stat| kind(&stat) == SFlag::S_IFDIR);
        match (is_dir, new) {
            (None, _) | (Some(true), EntryType::Directory) => Ok(()),
            (Some(true), _) => Err(Problem::refused(entry, "there is a directory in its place")),
            (Some(false), EntryType::Directory) => Err(Problem::refused(
                entry,
                "there is no directory in its place",
            )),
            (Some(false), _) => unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)
                .map_err(|error| Problem::system(entry, error)),
        }
    }

    /// Makes a directory; one that is there keeps what it has, unless the archive's own is wanted.
    fn directory(&mut self, parent: &OwnedFd, path: Vec<Vec<u8>>, meta: &Meta) -> nix::Result<()> {
        let Some(name) = path.last() else {
            return Ok(());
        };
        match mkdirat(parent, &**name, Mode::S_IRWXU) {
            Err(Errno::EEXIST) if matches!(self.owner, Owner::User { .. }) => return Ok(()),
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error),
        }
        let dir = open_entry(parent.as_fd(), name, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        self.dress(&dir, meta)?;
        self.open.push((path, meta.mtime));
        Ok(())
    }

    /// Gives their times to directories that are done, now that the next entry is `path`.
    fn settle(&mut self, path: &[Vec<u8>]) -> Result<(), Problem> {
        while let Some((dir, mtime)) = self.open.pop_if(|(dir, _)| !path.starts_with(dir)) {
            let name = dir.join(&b'/');
            let fd = self.parent(&dir, &name)?;
            // It may be without any permission, and is only known by a path-only descriptor.
            utimensat(
                &fd,
                ".",
                &TimeSpec::UTIME_OMIT,
                &mtime,
                UtimensatFlags::NoFollowSymlink,
            )
            .map_err(|error| Problem::system(&name, error))?;
        }
        Ok(())
    }

    fn rights(&self, meta: &Meta) -> (Uid, Gid, Mode) {
        match self.owner {
            Owner::User { uid, gid } => (
                Uid::from_raw(uid),
                Gid::from_raw(gid),
                meta.mode & !(Mode::S_ISUID | Mode::S_ISGID),
            ),
            Owner::Archive => (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid), meta.mode),
        }
    }

    /// Gives owner, mode and time to what was just made.
    fn dress(&self, made: impl AsFd, meta: &Meta) -> nix::Result<()> {
        let (uid, gid, mode) = self.rights(meta);
        fchown(&made, Some(uid), Some(gid))?;
        fchmod(&made, mode)?;
        futimens(&made, &TimeSpec::UTIME_OMIT, &meta.mtime)
    }

    /// Gives owner and time to a symbolic link.
    fn dress_link(&self, parent: &OwnedFd, name: &[u8], meta: &Meta) -> nix::Result<()> {
        let (uid, gid, _) = self.rights(meta);
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        fchownat(parent, name, Some(uid), Some(gid), flags)?;
        let flags = UtimensatFlags::NoFollowSymlink;
        utimensat(parent, name, &TimeSpec::UTIME_OMIT, &meta.mtime, flags)
    }
}

/// The mode of directories that are in names only.
const MISSING: Mode = Mode::S_IRWXU
    .union(Mode::S_IRGRP)
    .union(Mode::S_IXGRP)
    .union(Mode::S_IROTH)
    .union(Mode::S_IXOTH);

fn link<R: Read>(entry: &Entry<'_, R>, name: &[u8]) -> Result<Vec<u8>, Problem> {
    entry
        .link_name_bytes()
        .map(|target| target.into_owned())
        .filter(|target| !target.is_empty() && !target.contains(&0))
        .ok_or_else(|| Problem::archive(name, "it links to nothing"))
}

/// `None` if any of it makes no sense, or says that the body is something else than a file's bytes.
fn meta<R: Read>(entry: &mut Entry<'_, R>) -> Option<Meta> {
    let mut mtime = None;
    for record in entry.pax_extensions().ok()?.into_iter().flatten() {
        let record = record.ok()?;
        if record.key_bytes() == b"mtime" {
            mtime = Some(time(record.value().ok()?)?);
        } else if record.key_bytes().starts_with(b"GNU.sparse.") {
            return None;
        }
    }
    let header = entry.header();
    let own = match header.as_old().mtime {
        // GNU's way with times before the epoch, which the library takes for numbers without sign.
        [0xff, _, _, _, bytes @ ..] => i64::from_be_bytes(bytes),
        _ => i64::try_from(header.mtime().ok()?).ok()?,
    };
    let own = TimeSpec::new(own, 0);
    let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
    Some(Meta {
        mode: Mode::from_bits_truncate(header.mode().ok()? & 0o7777),
        uid: id(header.uid().ok()?)?,
        gid: id(header.gid().ok()?)?,
        mtime: mtime.unwrap_or(own),
    })
}

/// `-1.5` is one and a half seconds before the epoch; the kernel rounds seconds down.
fn time(text: &str) -> Option<TimeSpec> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |part: &str| part.bytes().all(|digit| digit.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    // Digits beyond nanoseconds are cut.
    let nanos = fraction
        .bytes()
        .chain([b'0'; 9])
        .take(9)
        .fold(0, |nanos, digit| nanos * 10 + i64::from(digit - b'0'));
    Some(match (negative, nanos) {
        (false, _) => TimeSpec::new(seconds, nanos),
        (true, 0) => TimeSpec::new(-seconds, 0),
        (true, _) => TimeSpec::new(-seconds - 1, 1_000_000_000 - nanos),
    })
}

/// Writes a body, leaving holes where it is zero; returns its length.
fn fill(body: &mut impl Read, file: &mut File) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut length = 0;
    loop {
        let mut filled = 0;
        while filled < CHUNK {
            match body.read(&mut buffer[filled..])? {
                0 => break,
                bytes => filled += bytes,
            }
        }
        for piece in buffer[..filled].chunks(HOLE) {
            if piece.iter().all(|byte| *byte == 0) {
                file.seek(SeekFrom::Current(i64::try_from(piece.len()).unwrap_or(0)))?;
            } else {
                file.write_all(piece)?;
            }
        }
        length += filled as u64;
        if filled < CHUNK {
            file.set_len(length)?;
            return Ok(length);
        }
    }
}

/// Ends an input that has more to say than it may.
struct Measured<'a, R> {
    input: R,
    allowance: &'a Cell<u64>,
}

impl<R: Read> Read for Measured<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.input.read(into)?;
        match self.allowance.get().checked_sub(bytes as u64) {
            Some(left) => self.allowance.set(left),
            None => {
                let why = "an entry has a description that is too long";
                return Err(io::Error::new(ErrorKind::InvalidData, why));
            }
        }
        Ok(bytes)
    }
}
