//! Where an image comes from, as one word: what docker's and skopeo's users write.
//!
//! ```text
//! debian:12                       docker.io/library/debian, tag 12
//! ghcr.io/x/y@sha256:…            that registry, that very manifest
//! localhost:5000/x:tag            a first part with `.` or `:`, or `localhost`, is a host
//! docker://debian                 the same as without `docker://`; tag `latest`
//! oci:DIR[:TAG|@sha256:…]         an OCI image layout in a directory
//! oci-archive:FILE[:TAG|@…]       the same as one tar file
//! docker-archive:FILE[:NAME:TAG]  what `docker save` writes
//! -                               either kind of archive on standard input
//! ```
//!
//! The text alone decides: no file is looked for, so that a directory which somebody put there
//! never takes the place of an image in a registry, nor the other way round.
//!
//! The rules for names are those of docker's registry ("distribution"): see [`RegistryReference`].

use std::fmt::{self, Display, Formatter};
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// The longest name of a registry and repository, in bytes.
pub const MAX_NAME_LEN: usize = 255;
/// The longest tag, in bytes.
pub const MAX_TAG_LEN: usize = 128;

/// Where an image comes from.
///
/// What [`FromStr`] accepts, [`Display`] prints so that it reads back as the same value.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum ImageSource {
    /// A file as `docker save` writes it.
    DockerArchive {
        /// The file; a `:` in its name cannot be written in a reference.
        path: PathBuf,
        /// Which image of the archive; absent means the only one.
        reference: Option<RegistryReference>,
    },
    /// An OCI image layout in a tar file.
    OciArchive {
        /// The file.
        path: PathBuf,
        /// As in [`OciLayout`](Self::OciLayout).
        reference: Option<String>,
    },
    /// An OCI image layout in a directory of the host.
    OciLayout {
        /// The directory that holds `oci-layout` and `index.json`.
        dir: PathBuf,
        /// The reference name (`org.opencontainers.image.ref.name`) or the digest
        /// (`sha256:…`) of a manifest; absent means the only one.
        reference: Option<String>,
    },
    /// A registry.
    Registry(RegistryReference),
    /// A tar stream on standard input: an OCI layout or what `docker save` writes.
    Stdin,
}

/// Parses what the module's documentation lists. A directory whose last component holds a `:`
/// needs its tag written out, or a `/` behind it.
impl FromStr for ImageSource {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|problem| ReferenceError {
            text: text.to_owned(),
            problem,
        })
    }
}

fn parse(text: &str) -> Result<ImageSource, ReferenceProblem> {
    if text == "-" {
        return Ok(ImageSource::Stdin);
    }
    if let Some(rest) = text.strip_prefix("docker://") {
        return Ok(ImageSource::Registry(RegistryReference::read(rest)?));
    }
    if let Some(rest) = text.strip_prefix("oci:") {
        let (dir, reference) = place_and_tag(rest, "oci:DIR")?;
        return Ok(ImageSource::OciLayout { dir, reference });
    }
    if let Some(rest) = text.strip_prefix("oci-archive:") {
        let (path, reference) = place_and_tag(rest, "oci-archive:FILE")?;
        return Ok(ImageSource::OciArchive { path, reference });
    }
    if let Some(rest) = text.strip_prefix("docker-archive:") {
        let (path, reference) = match rest.split_once(':') {
            None => (rest, None),
            Some((path, name)) => (path, Some(RegistryReference::read(name)?)),
        };
        if path.is_empty() || path.contains('\0') {
            return Err(ReferenceProblem::Place {
                form: "docker-archive:FILE",
            });
        }
        if reference.as_ref().is_some_and(|r| r.digest().is_some()) {
            return Err(ReferenceProblem::ArchiveDigest);
        }
        let path = PathBuf::from(path);
        return Ok(ImageSource::DockerArchive { path, reference });
    }
    for transport in OTHER_TRANSPORTS {
        if text
            .strip_prefix(transport)
            .is_some_and(|rest| rest.starts_with(':'))
        {
            return Err(ReferenceProblem::Transport { transport });
        }
    }
    if text.starts_with(['/', '.', '~']) {
        return Err(ReferenceProblem::Path {
            path: text.to_owned(),
        });
    }
    Ok(ImageSource::Registry(RegistryReference::read(text)?))
}

/// Splits `PLACE[:TAG|@sha256:…]`.
fn place_and_tag(
    text: &str,
    form: &'static str,
) -> Result<(PathBuf, Option<String>), ReferenceProblem> {
    let (place, reference) = if let Some((place, digest)) = text.rsplit_once("@sha256:") {
        let digest = format!("sha256:{digest}");
        check_digest(&digest)?;
        (place, Some(digest))
    } else {
        match text.rsplit_once(':') {
            Some((place, tag)) if !tag.contains('/') => {
                // The grammar of names in layouts is wider (OCI image specification,
                // annotations); tools write and read this much.
                let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
                if tag.is_empty() || tag.len() > MAX_TAG_LEN || !tag.bytes().all(legal) {
                    return Err(ReferenceProblem::Tag {
                        tag: tag.to_owned(),
                    });
                }
                (place, Some(tag.to_owned()))
            }
            Some(_) | None => (text, None),
        }
    };
    if place.is_empty() || place.contains('\0') {
        return Err(ReferenceProblem::Place { form });
    }
    Ok((PathBuf::from(place), reference))
}

impl Display for ImageSource {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (transport, path, reference) = match self {
            Self::DockerArchive { path, reference } => {
                write!(f, "docker-archive:{}", path.display())?;
                return match reference {
                    Some(reference) => write!(f, ":{reference}"),
                    None => Ok(()),
                };
            }
            Self::OciArchive { path, reference } => ("oci-archive", path, reference),
            Self::OciLayout { dir, reference } => ("oci", dir, reference),
            Self::Registry(reference) => return reference.fmt(f),
            Self::Stdin => return f.write_str("-"),
        };
        write!(f, "{transport}:{}", path.display())?;
        match reference {
            Some(digest) if digest.starts_with("sha256:") => write!(f, "@{digest}"),
            Some(tag) => write!(f, ":{tag}"),
            None => Ok(()),
        }
    }
}

/// An image in a registry: `HOST/REPOSITORY[:TAG][@sha256:…]`, every part spelled out.
///
/// * Host: labels of letters, digits and `-`, or an IPv6 address in brackets; perhaps a port.
///   Without one it is `docker.io`, and a repository of one component is below `library/`.
/// * Repository: components of `a-z0-9`, joined by `.`, `_`, `__` or hyphens; no upper case.
/// * Tag: letters, digits, `_`, `.` and `-`, not beginning with `.` or `-`. Without tag and
///   digest it is `latest`. With both, the digest decides.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct RegistryReference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl RegistryReference {
    /// Returns the registry's host, in lower case, with its port if one was written.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the repository: `library/debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the tag; with a digest it is a remark only.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest of the manifest or index: `sha256:…`.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// Returns what the registry is asked for: the digest, else the tag.
    pub fn wanted(&self) -> &str {
        // One of them is always there; if none were, this is what it would mean.
        let wanted = self.digest.as_deref().or(self.tag.as_deref());
        wanted.unwrap_or(DEFAULT_TAG)
    }

    fn read(text: &str) -> Result<Self, ReferenceProblem> {
        if text.is_empty() {
            return Err(ReferenceProblem::Empty);
        }
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                check_digest(digest)?;
                (rest, Some(digest.to_owned()))
            }
        };
        // A `:` before a `/` is a port's.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => {
                check_tag(tag)?;
                (name, Some(tag.to_owned()))
            }
            Some(_) | None => (rest, None),
        };
        let (host, path) = match name.split_once('/') {
            Some((first, path)) if is_host(first) => (first.to_ascii_lowercase(), path),
            Some(_) | None => (DEFAULT_HOST.to_owned(), name),
        };
        let host = match host.as_str() {
            "index.docker.io" => DEFAULT_HOST.to_owned(),
            _ => host,
        };
        check_host(&host)?;
        check_repository(path)?;
        if path == name && is_image_id(path) {
            return Err(ReferenceProblem::ImageId);
        }
        let repository = if host == DEFAULT_HOST && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if host.len() + 1 + repository.len() > MAX_NAME_LEN {
            return Err(ReferenceProblem::NameTooLong);
        }
        let tag = match (&tag, &digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (None | Some(_), Some(_)) | (Some(_), None) => tag,
        };
        Ok(Self {
            host,
            repository,
            tag,
            digest,
        })
    }
}

impl FromStr for RegistryReference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::read(text).map_err(|problem| ReferenceError {
            text: text.to_owned(),
            problem,
        })
    }
}

impl Display for RegistryReference {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            host,
            repository,
            tag,
            digest,
        } = self;
        write!(f, "{host}/{repository}")?;
        if let Some(tag) = tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// True for what docker takes for a host: it cannot be a component of a repository by itself.
fn is_host(first: &str) -> bool {
    first.contains(['.', ':'])
        || first == "localhost"
        || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn check_host(host: &str) -> Result<(), ReferenceProblem> {
    let wrong = || ReferenceProblem::Host {
        host: host.to_owned(),
    };
    let (name, port) = if let Some(rest) = host.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or_else(wrong)?;
        address.parse::<Ipv6Addr>().map_err(|_| wrong())?;
        let port = match rest {
            "" => None,
            _ => Some(rest.strip_prefix(':').ok_or_else(wrong)?),
        };
        ("", port)
    } else {
        match host.split_once(':') {
            None => (host, None),
            Some((name, port)) => (name, Some(port)),
        }
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let digits = |port: &str| {
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    if (host.starts_with('[') || name.split('.').all(label)) && port.is_none_or(digits) {
        Ok(())
    } else {
        Err(wrong())
    }
}

fn check_repository(path: &str) -> Result<(), ReferenceProblem> {
    for component in path.split('/') {
        if let Some(wrong) = component.chars().find(|c| c.is_ascii_uppercase()) {
            return Err(ReferenceProblem::UpperCase { found: wrong });
        }
        if !is_component(component) {
            return Err(ReferenceProblem::Component {
                component: component.to_owned(),
            });
        }
    }
    Ok(())
}

/// Runs of `a-z0-9` with one separator between two: `.`, `_`, `__` or any number of `-`.
fn is_component(text: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut rest = text.as_bytes();
    loop {
        let run = rest.iter().take_while(|b| alphanumeric(b)).count();
        if run == 0 {
            return false;
        }
        rest = &rest[run..];
        if rest.is_empty() {
            return true;
        }
        let separator = rest.iter().take_while(|b| !alphanumeric(b)).count();
        let (gap, after) = rest.split_at(separator);
        if !(matches!(gap, b"." | b"_" | b"__") || gap.iter().all(|b| *b == b'-')) {
            return false;
        }
        rest = after;
    }
}

/// Docker refuses these as names, since its commands take them for images by their id.
fn is_image_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn check_tag(tag: &str) -> Result<(), ReferenceProblem> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let legal = |b: u8| word(b) || matches!(b, b'.' | b'-');
    let starts = tag.bytes().next().is_some_and(word);
    if starts && tag.len() <= MAX_TAG_LEN && tag.bytes().all(legal) {
        Ok(())
    } else {
        Err(ReferenceProblem::Tag {
            tag: tag.to_owned(),
        })
    }
}

fn check_digest(digest: &str) -> Result<(), ReferenceProblem> {
    let hex = digest.strip_prefix("sha256:");
    if hex.is_some_and(is_image_id) {
        Ok(())
    } else {
        Err(ReferenceProblem::Digest {
            digest: digest.to_owned(),
        })
    }
}

/// Why a text is no [`ImageSource`], and what to write instead.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("{text:?} is not an image: {problem}")]
pub struct ReferenceError {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub problem: ReferenceProblem,
}

/// What is wrong with a reference.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum ReferenceProblem {
    /// `docker-archive:FILE` with a digest.
    #[error("an archive's images are chosen by `NAME:TAG`, not by digest")]
    ArchiveDigest,
    /// A component of the repository has an illegal character or form.
    #[error(
        "{component:?} cannot be part of a repository's name (use `a-z`, `0-9`, and single `.`, \
         `_` or `-` between them)"
    )]
    Component {
        /// The component.
        component: String,
    },
    /// Not `sha256:` and 64 lower-case hexadecimal digits.
    #[error("{digest:?} is not `sha256:` and 64 digits of `0-9a-f`")]
    Digest {
        /// What stands for it.
        digest: String,
    },
    /// Nothing at all.
    #[error("write `NAME[:TAG]`, `oci:DIR` or `docker-archive:FILE`")]
    Empty,
    /// The registry is no host name, address or port.
    #[error("{host:?} is not `HOST` or `HOST:PORT` of a registry")]
    Host {
        /// What stands for it.
        host: String,
    },
    /// 64 hexadecimal digits: an image's id on some machine.
    #[error("this is an id, which means something to one machine only; write `NAME@sha256:…`")]
    ImageId,
    /// Registry and repository together are too long.
    #[error("the name of registry and repository is longer than {MAX_NAME_LEN} bytes")]
    NameTooLong,
    /// It looks like a path.
    #[error(
        "a file or directory is named with its kind: write `oci:{path}` for an OCI layout, \
         `oci-archive:{path}` or `docker-archive:{path}` for a tar file"
    )]
    Path {
        /// The path.
        path: String,
    },
    /// No path, or one with a NUL.
    #[error("it names no place; write `{form}`")]
    Place {
        /// What to write.
        form: &'static str,
    },
    /// The tag is empty, too long, or has an illegal character.
    #[error(
        "{tag:?} is not a tag (up to {MAX_TAG_LEN} letters, digits, `_`, `.` and `-`, not \
         beginning with `.` or `-`)"
    )]
    Tag {
        /// The tag.
        tag: String,
    },
    /// A kind of place that skopeo knows and this program does not.
    #[error(
        "`{transport}:` is not supported; copy the image with `skopeo copy` to `oci:DIR`, or name \
         its registry"
    )]
    Transport {
        /// Its name.
        transport: &'static str,
    },
    /// An upper-case letter in the repository.
    #[error("a repository's name has no upper-case letters (found {found:?})")]
    UpperCase {
        /// The first one.
        found: char,
    },
}

/// Docker Hub, as references spell it.
pub const DEFAULT_HOST: &str = "docker.io";

const DEFAULT_TAG: &str = "latest";

/// Of skopeo. An image called `docker` exists, so `docker:TAG` is one.
const OTHER_TRANSPORTS: [&str; 6] = [
    "containers-storage",
    "dir",
    "docker-daemon",
    "ostree",
    "sif",
    "tarball",
];

#[cfg(test)]
mod tests;
