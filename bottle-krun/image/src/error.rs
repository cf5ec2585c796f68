//! Why an image could not become a disk.

use std::io;
use std::path::{Path, PathBuf};

use bottle_core::text::Escaped;
use thiserror::Error;

use crate::source::registry::error::RegistryError;

/// Why an image could not become a disk, or an overlay could not be made.
///
/// Text that comes from the image is printed escaped.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The layout holds several images and no reference chose one.
    #[error(
        "`{}` holds several images; name one of them: {}",
        dir.display(), Escaped(known)
    )]
    Ambiguous {
        /// The layout.
        dir: PathBuf,
        /// The names it has, separated by commas.
        known: String,
    },
    /// A tar file is no archive of an image, or a damaged one.
    #[error(
        "`{}` is not a usable archive of an image: {}{}{}",
        path.display(), Escaped(member), if member.is_empty() { "" } else { ": " }, Escaped(reason)
    )]
    BadArchive {
        /// The archive.
        path: PathBuf,
        /// Which member is at fault; empty if it is the whole.
        member: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An entry of a layer cannot be part of a disk.
    #[error("layer {layer} has a bad entry `{}`", Escaped(path))]
    BadEntry {
        /// Digest of the layer.
        layer: String,
        /// The entry's path, as the layer gives it.
        path: String,
        /// What is wrong with it.
        source: EntryProblem,
    },
    /// The bytes of a blob do not hash to the digest that names it.
    ///
    /// The layout is damaged or was altered; trying again will not help, copying it again may.
    #[error("{what} has digest {found}, expected {expected}; copy or build the image again")]
    DigestMismatch {
        /// Which blob, and whether compressed or not.
        what: &'static str,
        /// What names it.
        expected: String,
        /// What the bytes are.
        found: String,
    },
    /// The archive of an image could not be written to where it was to go.
    #[error("cannot write the archive")]
    Export {
        /// What stopped it.
        source: io::Error,
    },
    /// The image is known, but some of its files are gone or damaged.
    #[error(
        "image `{}` is not whole any more; `bottle image pull` makes it whole again",
        Escaped(name)
    )]
    Incomplete {
        /// The image.
        name: String,
    },
    /// A bottle runs from the image that was to be removed.
    #[error(
        "cannot remove image `{}`: a bottle runs from it; stop it first",
        Escaped(name)
    )]
    InUse {
        /// The image.
        name: String,
    },
    /// A file of the layout, the store or the overlay could not be used.
    #[error("cannot {op} `{}`", path.display())]
    Io {
        /// The operation: a verb.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// What stopped it.
        source: io::Error,
    },
    /// The image is larger than what this program is willing to convert.
    #[error("the image exceeds a limit: {what} (at most {limit})")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// A document of the image is not what it should be.
    #[error("{what} {digest} is malformed: {}", Escaped(reason))]
    Malformed {
        /// Which document.
        what: &'static str,
        /// Its digest, or its file name.
        digest: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A blob that the image refers to is not in the layout.
    #[error("`{}` lacks {what} {digest}; copy or build the image again", dir.display())]
    MissingBlob {
        /// The layout.
        dir: PathBuf,
        /// Which blob.
        what: &'static str,
        /// Its digest.
        digest: String,
    },
    /// `mkfs.ext4` refused.
    #[error("`{}` failed on `{}`: {}", program.display(), path.display(), Escaped(message))]
    MkfsFailed {
        /// The program.
        program: PathBuf,
        /// The file it was to format; removed.
        path: PathBuf,
        /// What it said, or how it ended.
        message: String,
    },
    /// `mkfs.ext4` is not installed.
    #[error(
        "cannot make the overlay: `mkfs.ext4` is neither in PATH nor in /sbin or /usr/sbin; \
         install the package `e2fsprogs`"
    )]
    MkfsMissing,
    /// The directory is not an OCI layout.
    #[error("`{}` is not an OCI image layout: {missing}", dir.display())]
    NotALayout {
        /// The directory.
        dir: PathBuf,
        /// What it lacks.
        missing: String,
    },
    /// The store has no image of that name.
    #[error(
        "there is no image `{}` here; `bottle image ls` lists those there are",
        Escaped(name)
    )]
    NotStored {
        /// The name, in full.
        name: String,
    },
    /// The image exists, but for other processors or systems only.
    #[error(
        "the image has nothing for {wanted}; it exists for {}",
        Escaped(available)
    )]
    NoPlatform {
        /// This host: `linux/amd64`.
        wanted: String,
        /// What the image has, separated by commas.
        available: String,
    },
    /// A registry, or what stands between here and it, did not give what was asked for.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A blob has another size than its descriptor says.
    #[error(
        "{what} {digest} has {found} bytes, expected {expected}; copy or build the image again"
    )]
    SizeMismatch {
        /// Which blob.
        what: &'static str,
        /// Its digest.
        digest: String,
        /// What the descriptor says.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// The layout has no image of that name.
    #[error(
        "`{}` has no image `{}`; it has: {}",
        dir.display(), Escaped(reference), Escaped(known)
    )]
    UnknownReference {
        /// The layout.
        dir: PathBuf,
        /// What was asked for.
        reference: String,
        /// The names it has, separated by commas.
        known: String,
    },
    /// A layer could not be decompressed or read.
    #[error("cannot read layer {layer}")]
    UnreadableLayer {
        /// Digest of the layer.
        layer: String,
        /// What stopped it.
        source: io::Error,
    },
    /// Images cannot be read from there.
    #[error("images cannot be read from `{}`", Escaped(place))]
    UnsupportedSource {
        /// Where it should come from.
        place: String,
    },
    /// The image has more entries than are kept in memory, and the temporary file in the store for
    /// the others failed.
    #[error("cannot use a temporary file of the store for the image's entries")]
    Spill {
        /// What stopped it.
        source: io::Error,
    },
    /// A part of the image is of a kind that this program does not know.
    #[error("{what} has the unsupported media type `{}`", Escaped(media_type))]
    UnsupportedMediaType {
        /// Which part.
        what: &'static str,
        /// What it says it is.
        media_type: String,
    },
}

impl ImageError {
    /// True if the image is at fault and no other host could use it either.
    ///
    /// False for what the user asked for (a wrong name or directory) and for this machine (a
    /// full disk, a missing program).
    #[must_use]
    pub fn is_bad_image(&self) -> bool {
        match self {
            Self::UnreadableLayer { source, .. } => {
                // A connection that broke within a layer says nothing about the image.
                let inner = source.get_ref().and_then(|inner| inner.downcast_ref());
                !matches!(inner, Some(Self::Registry(_)))
            }
            Self::BadArchive { .. }
            | Self::BadEntry { .. }
            | Self::DigestMismatch { .. }
            | Self::Limit { .. }
            | Self::Malformed { .. }
            | Self::MissingBlob { .. }
            | Self::SizeMismatch { .. }
            | Self::UnsupportedMediaType { .. } => true,
            Self::Ambiguous { .. }
            | Self::Export { .. }
            | Self::Incomplete { .. }
            | Self::InUse { .. }
            | Self::Io { .. }
            | Self::MkfsFailed { .. }
            | Self::MkfsMissing
            | Self::NoPlatform { .. }
            | Self::NotALayout { .. }
            | Self::NotStored { .. }
            | Self::Registry(_)
            | Self::Spill { .. }
            | Self::UnknownReference { .. }
            | Self::UnsupportedSource { .. } => false,
        }
    }
}

/// What is wrong with one entry of a layer.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum EntryProblem {
    /// The header's checksum is wrong: not a tar file, or a damaged one.
    #[error("the header's checksum is wrong: this is not a tar archive, or it is damaged")]
    Checksum,
    /// A path component or the whole path is too deep or too long.
    #[error("the path is too long: {what} (at most {limit})")]
    PathTooLong {
        /// What is too long.
        what: &'static str,
        /// How much is allowed.
        limit: usize,
    },
    /// The path, or a hard link's target, has a component `..` or a NUL.
    #[error("the path or link target leaves the image's root or contains a NUL byte")]
    EscapingPath,
    /// Something other than a directory claims to be the root directory.
    #[error("only a directory can be the root")]
    NotTheRoot,
    /// A parent of the path is a file of the same layer.
    #[error("a parent of the path is not a directory")]
    BelowNonDirectory,
    /// Too many symbolic links, in a circle perhaps, lead to the path.
    #[error("too many symbolic links lead to the path")]
    LinkLoop,
    /// A hard link's target does not exist at this point.
    #[error("the hard link's target does not exist")]
    LinkToNothing,
    /// A hard link's target is a directory.
    #[error("the hard link's target is a directory")]
    LinkToDirectory,
    /// A symbolic or hard link has no target, or one that is too long.
    #[error("the link's target is empty or longer than 4095 bytes")]
    LinkTarget,
    /// A file whose holes are described by the archive.
    #[error("sparse entries are not supported; write the layer without `--sparse`")]
    Sparse,
    /// An entry of a type that file systems do not have.
    #[error("the entry's type {0:#04x} is not supported")]
    Type(u8),
    /// A number of the header or of an extended header cannot be read.
    #[error("the field `{0}` cannot be read")]
    Field(&'static str),
    /// An extended header cannot be read or is too large.
    #[error("the extended header is malformed or too large")]
    ExtendedHeader,
    /// Extended attributes that no file system could hold.
    #[error("the extended attributes exceed {limit} bytes, or a name is malformed")]
    Xattrs {
        /// How much is allowed.
        limit: usize,
    },
    /// A whiteout that names nothing.
    #[error("the whiteout names nothing")]
    Whiteout,
    /// The archive ends within this entry.
    #[error("the layer ends within this entry")]
    Truncated,
}

/// For `map_err`: an I/O error with what was done to which file.
pub(crate) fn io_at(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::Io { op, path, source }
}
