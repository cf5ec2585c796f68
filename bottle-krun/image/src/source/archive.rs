//! An image in a tar file: an OCI layout, or what `docker save` writes.
//!
//! The file's headers are read once, and blobs are read where they are. What cannot be read twice
//! or at any place (a pipe, a compressed file) is copied into an unlinked temporary file first.
//!
//! `docker save` knows no manifest and no digests of layers: the layers' digests are their diff
//! ids, and a manifest is made up, always the same one for the same image.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bottle_core::image::RegistryReference;
use flate2::bufread::MultiGzDecoder;
use serde::Deserialize;
use serde_json::json;

use crate::digest::{Digest, Hashed};
use crate::error::{ImageError, io_at};
use crate::layer::{Compression, LayerBlob};
use crate::source::layout::{self, Files, blob_name, open_regular};
use crate::source::resolve::{
    Config, Found, MAX_DOCUMENT, MAX_LAYERS, OCI_MANIFEST, Platform, parse, too_large,
};
use crate::source::{Blobs, Opened};
use crate::tar::{EntryKind, Tar, TarError, components};
use crate::{ImageConfig, ImageRef};

/// A tar file whose members are known.
#[derive(Clone, Debug)]
pub(crate) struct Archive(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: File,
    /// What errors call it.
    place: PathBuf,
    members: BTreeMap<Vec<u8>, Member>,
}

#[derive(Clone, Debug)]
enum Member {
    File(Part),
    /// To the name of another member.
    Link(Vec<u8>),
}

/// A part of the file.
#[derive(Clone, Copy, Debug)]
struct Part {
    start: u64,
    size: u64,
}

/// What an archive seems to hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Content {
    Docker,
    Neither,
    Oci,
}

impl Archive {
    /// Reads the headers of the file at `path`; a compressed one is unpacked below `work`.
    pub(crate) fn open(path: &Path, work: &Path) -> Result<Self, ImageError> {
        let Some(file) = open_regular(path)? else {
            let missing = io::Error::from(io::ErrorKind::NotFound);
            return Err(io_at("open", path)(missing));
        };
        let mut magic = [0; MAGIC];
        let known = file.read_at(&mut magic, 0).map_err(io_at("read", path))?;
        match Packing::of(&magic[..known]) {
            Compression::None => Self::index(file, path),
            Compression::Gzip | Compression::Zstd => Self::spool(file, path, work),
        }
    }

    /// Copies a stream, unpacked, into a temporary file without a name below `work`.
    pub(crate) fn spool(input: impl Read, place: &Path, work: &Path) -> Result<Self, ImageError> {
        let input = Packing::unpack(input).map_err(io_at("read", place))?;
        fs::create_dir_all(work).map_err(io_at("make the directory", work))?;
        let mut file =
            tempfile::tempfile_in(work).map_err(io_at("make a temporary file in", work))?;
        let copied = copy(&mut input.take(MAX_SPOOL + 1), &mut file, place, work)?;
        if copied > MAX_SPOOL {
            return Err(ImageError::Limit {
                what: "bytes of an archive",
                limit: MAX_SPOOL,
            });
        }
        Self::index(file, place)
    }

    fn index(mut file: File, place: &Path) -> Result<Self, ImageError> {
        let at = io_at("read", place);
        let malformed = |path: &[u8], reason: &str| ImageError::BadArchive {
            path: place.to_owned(),
            member: String::from_utf8_lossy(path).into_owned(),
            reason: reason.to_owned(),
        };
        let read_error = |error| match error {
            TarError::Entry { path, problem } => malformed(&path, &problem.to_string()),
            TarError::Read(source) => io_at("read", place)(source),
        };
        let length = (file.seek(SeekFrom::End(0)))
            .and_then(|length| file.rewind().map(|()| length))
            .map_err(at)?;
        let mut members = BTreeMap::new();
        let mut tar = Tar::new(&file);
        while let Some(entry) = tar.next().map_err(read_error)? {
            if members.len() >= MAX_MEMBERS {
                return Err(ImageError::Limit {
                    what: "members of an archive",
                    limit: MAX_MEMBERS as u64,
                });
            }
            let name = plain_name(&entry.path, &[])
                .ok_or_else(|| malformed(&entry.path, "its name leads out of the archive"))?;
            let member = match entry.kind {
                EntryKind::Directory => continue,
                EntryKind::File(size) => {
                    let start = tar.seek_past().map_err(io_at("read", place))?;
                    if start.checked_add(size).is_none_or(|end| end > length) {
                        return Err(malformed(&entry.path, "the archive ends within it"));
                    }
                    Member::File(Part { start, size })
                }
                // A hard link's target starts at the root, a symbolic one's beside the link.
                EntryKind::HardLink(target) => link(&[], &target),
                EntryKind::Symlink(target) => {
                    let parent = name.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                    link(&name[..parent], &target)
                }
                EntryKind::Block(_) | EntryKind::Char(_) | EntryKind::Fifo => {
                    return Err(malformed(&entry.path, "it is a device or FIFO"));
                }
            };
            if members.insert(name, member).is_some() {
                return Err(malformed(&entry.path, "there are two of that name"));
            }
        }
        Ok(Self(Arc::new(Inner {
            file,
            place: place.to_owned(),
            members,
        })))
    }

    /// What the names of the members say.
    pub(crate) fn content(&self) -> Content {
        let has = |name: &str| self.0.members.contains_key(name.as_bytes());
        // New versions of docker write both: the layout has the image's real manifest.
        if has(layout::MARKER) && has(layout::INDEX) {
            Content::Oci
        } else if has(MANIFEST_JSON) {
            Content::Docker
        } else {
            Content::Neither
        }
    }

    /// That it holds no image.
    pub(crate) fn neither(&self) -> ImageError {
        self.bad(
            "",
            "it has neither `oci-layout` and `index.json` nor `manifest.json`",
        )
    }

    /// The image of an OCI layout.
    pub(crate) fn oci(self, reference: Option<&str>) -> Result<Opened, ImageError> {
        let found = layout::find(&self, reference)?;
        let parts = BTreeMap::new();
        Ok(Opened {
            found,
            blobs: Box::new(InArchive {
                archive: self,
                parts,
            }),
        })
    }

    /// The image of an archive of `docker save`.
    pub(crate) fn docker(
        self,
        reference: Option<&RegistryReference>,
    ) -> Result<Opened, ImageError> {
        let item = self.choose(reference)?;
        let document = |name: &str| {
            let bytes = Files::read(&self, name, MAX_DOCUMENT)?;
            let bytes = bytes.ok_or_else(|| self.bad(name, "it is missing"))?;
            if bytes.len() as u64 > MAX_DOCUMENT {
                return Err(too_large("config"));
            }
            Ok(bytes)
        };
        let config_bytes = document(&item.config)?;
        let config_digest = Digest::of(&config_bytes);
        // Its name is its digest, in one of two spellings.
        let claimed = item.config.strip_suffix(".json").unwrap_or(&item.config);
        let claimed = claimed.strip_prefix("blobs/sha256/").unwrap_or(claimed);
        if let Some(claimed) = Digest::parse(&format!("sha256:{claimed}"))
            && claimed != config_digest
        {
            return Err(ImageError::DigestMismatch {
                what: "config",
                expected: claimed.to_string(),
                found: config_digest.to_string(),
            });
        }
        let config = Config::parse(&config_digest, &config_bytes)?;
        config.check_platform(&Platform::host())?;
        let diff_ids = config.diff_ids(&config_digest)?;
        if diff_ids.len() as u64 > MAX_LAYERS {
            return Err(ImageError::Limit {
                what: "layers",
                limit: MAX_LAYERS,
            });
        }
        if diff_ids.len() != item.layers.len() {
            let reason = format!(
                "it lists {} layers, the config {}",
                item.layers.len(),
                diff_ids.len()
            );
            return Err(self.bad(MANIFEST_JSON, &reason));
        }
        let mut layers = Vec::with_capacity(diff_ids.len());
        let mut parts = BTreeMap::new();
        for (name, diff_id) in item.layers.iter().zip(diff_ids) {
            let part = self
                .part(name)?
                .ok_or_else(|| self.bad(name, "it is missing"))?;
            let layer = self.layer(name, part, diff_id)?;
            parts.insert(layer.digest, part);
            layers.push(layer);
        }
        let config = config.run(&config_digest)?;
        let found = made_up(config, config_digest, config_bytes, layers);
        Ok(Opened {
            found,
            blobs: Box::new(InArchive {
                archive: self,
                parts,
            }),
        })
    }

    /// The item of `manifest.json` that is meant.
    fn choose(&self, reference: Option<&RegistryReference>) -> Result<Item, ImageError> {
        let bytes = Files::read(self, MANIFEST_JSON, MAX_DOCUMENT)?;
        let bytes = bytes.ok_or_else(|| self.bad(MANIFEST_JSON, "it is missing"))?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(too_large(MANIFEST_JSON));
        }
        let items: Vec<Item> = parse("file", MANIFEST_JSON, &bytes)?;
        let known = || {
            let tags: Vec<&str> = items.iter().flat_map(Item::tags).collect();
            if tags.is_empty() {
                "nothing that has a name".to_owned()
            } else {
                tags.join(", ")
            }
        };
        let Some(reference) = reference else {
            return match items.as_slice() {
                [only] => Ok(only.clone()),
                [] => Err(self.bad(MANIFEST_JSON, "it lists no image")),
                [_, ..] => Err(ImageError::Ambiguous {
                    dir: self.0.place.clone(),
                    known: known(),
                }),
            };
        };
        let is_meant = |tag: &str| tag.parse::<RegistryReference>().as_ref() == Ok(reference);
        let meant = items.iter().find(|item| item.tags().any(is_meant));
        meant.cloned().ok_or_else(|| ImageError::UnknownReference {
            dir: self.0.place.clone(),
            reference: reference.to_string(),
            known: known(),
        })
    }

    /// Looks at a layer's first bytes: old docker wrote plain ones, others write what they like.
    fn layer(&self, name: &str, part: Part, diff_id: Digest) -> Result<LayerBlob, ImageError> {
        let at = || io_at("read", &self.0.place);
        let mut magic = [0; MAGIC];
        let length = part.size.min(MAGIC as u64);
        let magic = &mut magic[..usize::try_from(length).expect("at most `MAGIC`")];
        let file = &self.0.file;
        file.read_exact_at(magic, part.start).map_err(at())?;
        let compression = Packing::of(magic);
        let digest = match compression {
            Compression::None => diff_id,
            Compression::Gzip | Compression::Zstd => {
                let claimed = name.strip_prefix("blobs/sha256/");
                match claimed.and_then(|hex| Digest::parse(&format!("sha256:{hex}"))) {
                    Some(claimed) => claimed,
                    None => {
                        let mut hashed = Hashed::new(self.section(part));
                        io::copy(&mut hashed, &mut io::sink()).map_err(at())?;
                        hashed.digest()
                    }
                }
            }
        };
        Ok(LayerBlob {
            digest,
            size: part.size,
            diff_id,
            compression,
        })
    }

    /// Where a member is, `None` if there is none; links are followed within the archive, once.
    fn part(&self, name: &str) -> Result<Option<Part>, ImageError> {
        let Some(key) = plain_name(name.as_bytes(), &[]) else {
            return Err(self.bad(name, "the name leads out of the archive"));
        };
        match self.0.members.get(&key) {
            None => Ok(None),
            Some(Member::File(part)) => Ok(Some(*part)),
            Some(Member::Link(target)) => match self.0.members.get(target) {
                Some(Member::File(part)) => Ok(Some(*part)),
                Some(Member::Link(_)) | None => Err(self.bad(
                    name,
                    "it is a link that does not lead to a file of the archive",
                )),
            },
        }
    }

    fn section(&self, part: Part) -> Section {
        Section {
            archive: self.clone(),
            at: part.start,
            end: part.start + part.size,
        }
    }

    fn bad(&self, member: &str, reason: &str) -> ImageError {
        ImageError::BadArchive {
            path: self.0.place.clone(),
            member: member.to_owned(),
            reason: reason.to_owned(),
        }
    }
}

impl Files for Archive {
    fn place(&self) -> &Path {
        &self.0.place
    }

    fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, ImageError> {
        let Some(part) = self.part(name)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        self.section(part)
            .take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(io_at("read", &self.0.place))?;
        Ok(Some(bytes))
    }
}

/// The layers of an image in an archive.
struct InArchive {
    archive: Archive,
    /// Those that are not `blobs/sha256/…`.
    parts: BTreeMap<Digest, Part>,
}

impl Blobs for InArchive {
    fn open_layer(&self, blob: &LayerBlob) -> Result<Box<dyn Read + Send>, ImageError> {
        let Self { archive, parts } = self;
        let part = match parts.get(&blob.digest) {
            Some(part) => Some(*part),
            None => archive.part(&blob_name(&blob.digest))?,
        };
        let part = part.ok_or_else(|| ImageError::MissingBlob {
            dir: archive.0.place.clone(),
            what: "layer",
            digest: blob.digest.to_string(),
        })?;
        if part.size != blob.size {
            return Err(ImageError::SizeMismatch {
                what: "layer",
                digest: blob.digest.to_string(),
                expected: blob.size,
                found: part.size,
            });
        }
        Ok(Box::new(archive.section(part)))
    }
}

/// Reads a part of the file, beside whoever else reads it.
struct Section {
    archive: Archive,
    at: u64,
    end: u64,
}

impl Read for Section {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.end - self.at;
        let wanted = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
        let read = self.archive.0.file.read_at(&mut buf[..wanted], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// An image of `manifest.json`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Item {
    fn tags(&self) -> impl Iterator<Item = &str> {
        self.repo_tags.iter().flatten().map(String::as_str)
    }
}

/// The image with a manifest as a registry would have it.
fn made_up(
    config: ImageConfig,
    config_digest: Digest,
    config_bytes: Vec<u8>,
    layers: Vec<LayerBlob>,
) -> Found {
    let descriptors: Vec<_> = layers
        .iter()
        .map(|layer| {
            let packing = match layer.compression {
                Compression::Gzip => "+gzip",
                Compression::None => "",
                Compression::Zstd => "+zstd",
            };
            json!({
                "mediaType": format!("application/vnd.oci.image.layer.v1.tar{packing}"),
                "digest": layer.digest.to_string(),
                "size": layer.size,
            })
        })
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config_digest.to_string(),
            "size": config_bytes.len(),
        },
        "layers": descriptors,
    });
    let manifest_bytes = manifest.to_string().into_bytes();
    let manifest = Digest::of(&manifest_bytes);
    Found {
        image: ImageRef {
            manifest: manifest.to_string(),
            config,
        },
        layers,
        config_bytes,
    }
}

/// Streams that may be compressed, told by their first bytes.
struct Packing;

impl Packing {
    fn of(magic: &[u8]) -> Compression {
        match magic {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            _ => Compression::None,
        }
    }

    fn unpack<'r>(mut input: impl Read + 'r) -> io::Result<Box<dyn Read + 'r>> {
        let mut magic = Vec::with_capacity(MAGIC);
        (&mut input).take(MAGIC as u64).read_to_end(&mut magic)?;
        let compression = Self::of(&magic);
        let whole = BufReader::with_capacity(BUFFER, io::Cursor::new(magic).chain(input));
        Ok(match compression {
            Compression::Gzip => Box::new(MultiGzDecoder::new(whole)),
            Compression::None => Box::new(whole),
            Compression::Zstd => Box::new(zstd::Decoder::with_buffer(whole)?),
        })
    }
}

/// Copies, and says which side failed.
fn copy(
    input: &mut impl Read,
    output: &mut File,
    place: &Path,
    work: &Path,
) -> Result<u64, ImageError> {
    use io::Write;
    let mut buffer = vec![0; BUFFER];
    let mut copied = 0;
    loop {
        let read = match input.read(&mut buffer) {
            Ok(0) => return Ok(copied),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(io_at("read", place)(error)),
        };
        let written = output.write_all(&buffer[..read]);
        written.map_err(io_at("write a temporary file in", work))?;
        copied += read as u64;
    }
}

/// `path` seen from `base`, without `.` and `..`; `None` if it leads above the root.
fn plain_name(path: &[u8], base: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = base.split(|byte| *byte == b'/').collect();
    parts.retain(|part| !part.is_empty());
    parts.extend(components(path).ok()?);
    Some(parts.join(&b'/'))
}

/// The member that a link means; one that cannot be said leads to nothing.
fn link(base: &[u8], target: &[u8]) -> Member {
    let mut parts: Vec<&[u8]> = base.split(|byte| *byte == b'/').collect();
    parts.retain(|part| !part.is_empty());
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b".." if parts.pop().is_some() => {}
            // No member has this name.
            b".." => return Member::Link(b"..".to_vec()),
            b"" | b"." => {}
            _ => parts.push(part),
        }
    }
    Member::Link(parts.join(&b'/'))
}

const MANIFEST_JSON: &str = "manifest.json";
const MAGIC: usize = 4;
const BUFFER: usize = 256 << 10;
/// A layout of a hundred images with a hundred layers each has fewer.
const MAX_MEMBERS: usize = 1 << 16;
/// The largest archive that is copied.
const MAX_SPOOL: u64 = 64 << 30;
