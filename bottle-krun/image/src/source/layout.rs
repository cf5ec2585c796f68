//! OCI layout directory -> the one manifest and config that are wanted, digests checked.
//!
//! Documents are read whole, up to a limit; only layers are streamed (see `layer`).

use std::collections::{BTreeMap, BTreeSet};
use std::env::consts;
use std::fmt::{self, Display, Formatter};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::digest::Digest;
use crate::error::{ImageError, io_at};
use crate::layer::{Compression, LayerBlob};
use crate::source::Blobs;
use crate::{ImageConfig, ImageRef};

/// A directory that has the files every OCI layout has.
#[derive(Debug)]
pub(crate) struct Layout {
    dir: PathBuf,
    index: Index,
}

/// An image whose documents were read.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) image: ImageRef,
    pub(crate) layers: Vec<LayerBlob>,
}

impl Layout {
    pub(crate) fn open(dir: &Path) -> Result<Self, ImageError> {
        let not_a_layout = |missing: &str| ImageError::NotALayout {
            dir: dir.to_owned(),
            missing: missing.to_owned(),
        };
        match fs::metadata(dir) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(not_a_layout("it is not a directory")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(not_a_layout("it does not exist"));
            }
            Err(error) => return Err(io_at("open", dir)(error)),
        }
        let marker = dir.join("oci-layout");
        let Some(bytes) = read_limited(&marker, "`oci-layout`", None)? else {
            return Err(not_a_layout("it has no file `oci-layout`"));
        };
        let version: Marker = parse("file", "oci-layout", &bytes)?;
        if !version.image_layout_version.starts_with("1.") {
            return Err(ImageError::Malformed {
                what: "file",
                digest: "oci-layout".to_owned(),
                reason: format!("version {} is unknown", version.image_layout_version),
            });
        }
        let Some(bytes) = read_limited(&dir.join("index.json"), "`index.json`", None)? else {
            return Err(not_a_layout("it has no file `index.json`"));
        };
        let index = parse("file", "index.json", &bytes)?;
        Ok(Self {
            dir: dir.to_owned(),
            index,
        })
    }

    /// Where a blob is; the digest's type makes it a harmless file name.
    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs").join("sha256").join(digest.hex())
    }

    /// Follows `reference` to a manifest for this host.
    pub(crate) fn find(&self, reference: Option<&str>) -> Result<Found, ImageError> {
        let wanted = Platform::host();
        let mut descriptor = pick(&self.candidates(reference)?, &wanted)?.clone();
        for _ in 0..MAX_INDEX_DEPTH {
            let digest = descriptor.digest("manifest")?;
            let bytes = self.document("manifest", &descriptor)?;
            match document_kind(&descriptor, &digest, &bytes)? {
                Kind::Index => {
                    let index: Index = parse("image index", &digest.to_string(), &bytes)?;
                    let all: Vec<&Descriptor> = index.manifests.iter().flatten().collect();
                    descriptor = pick(&all, &wanted)?.clone();
                }
                Kind::Manifest => {
                    let manifest: Manifest = parse("manifest", &digest.to_string(), &bytes)?;
                    return self.read_config(digest, &manifest, &wanted);
                }
            }
        }
        Err(ImageError::Limit {
            what: "image indexes within image indexes",
            limit: MAX_INDEX_DEPTH,
        })
    }

    /// The descriptors of `index.json` that `reference` means: one image, maybe per platform.
    fn candidates(&self, reference: Option<&str>) -> Result<Vec<&Descriptor>, ImageError> {
        let all: Vec<&Descriptor> = self.index.manifests.iter().flatten().collect();
        let Some(reference) = reference else {
            let names: BTreeSet<Option<&str>> = all.iter().map(|d| d.name()).collect();
            // Unnamed siblings are one image only if each is for a platform of its own.
            let variants = all.iter().all(|d| d.platform.is_some());
            let digests: BTreeSet<&str> = all.iter().map(|d| d.digest.as_str()).collect();
            return if digests.is_empty() {
                Err(ImageError::NotALayout {
                    dir: self.dir.clone(),
                    missing: "its `index.json` lists no image".to_owned(),
                })
            } else if digests.len() == 1 || (names.len() == 1 && variants) {
                Ok(all)
            } else {
                Err(ImageError::Ambiguous {
                    dir: self.dir.clone(),
                    known: self.known(),
                })
            };
        };
        let matching: Vec<&Descriptor> = all
            .into_iter()
            .filter(|d| d.name() == Some(reference) || d.digest == reference)
            .collect();
        if matching.is_empty() {
            return Err(ImageError::UnknownReference {
                dir: self.dir.clone(),
                reference: reference.to_owned(),
                known: self.known(),
            });
        }
        Ok(matching)
    }

    /// The names (of unnamed ones the digests) that could be asked for.
    fn known(&self) -> String {
        let names: BTreeSet<&str> = self
            .index
            .manifests
            .iter()
            .flatten()
            .map(|d| d.name().unwrap_or(&d.digest))
            .collect();
        if names.is_empty() {
            return "nothing".to_owned();
        }
        names.into_iter().collect::<Vec<_>>().join(", ")
    }

    fn read_config(
        &self,
        digest: Digest,
        manifest: &Manifest,
        wanted: &Platform,
    ) -> Result<Found, ImageError> {
        if !CONFIG_TYPES.contains(&manifest.config.media_type.as_str()) {
            return Err(ImageError::UnsupportedMediaType {
                what: "the image's config",
                media_type: manifest.config.media_type.clone(),
            });
        }
        let config_digest = manifest.config.digest("config")?;
        let bytes = self.document("config", &manifest.config)?;
        let config: Config = parse("config", &config_digest.to_string(), &bytes)?;
        if let Some(built_for) = config.platform()
            && !built_for.runs_on(wanted)
        {
            return Err(ImageError::NoPlatform {
                wanted: wanted.to_string(),
                available: built_for.to_string(),
            });
        }
        let layers = layers(&config_digest, manifest, &config)?;
        Ok(Found {
            image: ImageRef {
                manifest: digest.to_string(),
                config: config.run(&config_digest)?,
            },
            layers,
        })
    }

    /// Reads a small blob, its size and digest checked.
    fn document(&self, what: &'static str, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let digest = descriptor.digest(what)?;
        let path = self.blob_path(&digest);
        let Some(bytes) = read_limited(&path, what, Some(descriptor.size))? else {
            return Err(ImageError::MissingBlob {
                dir: self.dir.clone(),
                what,
                digest: digest.to_string(),
            });
        };
        if bytes.len() as u64 != descriptor.size {
            return Err(ImageError::SizeMismatch {
                what,
                digest: digest.to_string(),
                expected: descriptor.size,
                found: bytes.len() as u64,
            });
        }
        let found = Digest::of(&bytes);
        if found != digest {
            return Err(ImageError::DigestMismatch {
                what,
                expected: digest.to_string(),
                found: found.to_string(),
            });
        }
        Ok(bytes)
    }
}

impl Blobs for Layout {
    fn open_layer(&self, blob: &LayerBlob) -> Result<Box<dyn Read + Send>, ImageError> {
        let path = self.blob_path(&blob.digest);
        let file = open_regular(&path)?.ok_or_else(|| ImageError::MissingBlob {
            dir: self.dir.clone(),
            what: "layer",
            digest: blob.digest.to_string(),
        })?;
        let found = file.metadata().map_err(io_at("read", &path))?.len();
        if found != blob.size {
            return Err(ImageError::SizeMismatch {
                what: "layer",
                digest: blob.digest.to_string(),
                expected: blob.size,
                found,
            });
        }
        Ok(Box::new(file))
    }
}

/// The whole file, `None` if there is none; at most [`MAX_DOCUMENT`] bytes.
///
/// With a `size` that the caller is going to compare, one byte more is enough to see it wrong.
fn read_limited(
    path: &Path,
    what: &'static str,
    size: Option<u64>,
) -> Result<Option<Vec<u8>>, ImageError> {
    let limit = size.unwrap_or(MAX_DOCUMENT);
    let too_large = || ImageError::Limit {
        what: match what {
            "manifest" => "bytes of a manifest",
            "config" => "bytes of a config",
            _ => "bytes of a file of the layout",
        },
        limit: MAX_DOCUMENT,
    };
    if limit > MAX_DOCUMENT {
        return Err(too_large());
    }
    let Some(file) = open_regular(path)? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(io_at("read", path))?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(too_large());
    }
    Ok(Some(bytes))
}

/// Opens a regular file, `None` if there is nothing; a FIFO or device would block for ever.
pub(crate) fn open_regular(path: &Path) -> Result<Option<File>, ImageError> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => File::open(path).map(Some).map_err(io_at("open", path)),
        Ok(_) => Err(io_at("open", path)(io::Error::other("not a regular file"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_at("open", path)(error)),
    }
}

fn parse<T: DeserializeOwned>(
    what: &'static str,
    digest: &str,
    bytes: &[u8],
) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|error| ImageError::Malformed {
        what,
        digest: digest.to_owned(),
        reason: error.to_string(),
    })
}

/// What a blob below `index.json` is: by its descriptor, or where that says nothing by itself.
fn document_kind(
    descriptor: &Descriptor,
    digest: &Digest,
    bytes: &[u8],
) -> Result<Kind, ImageError> {
    let own: SelfDescribed = parse("manifest", &digest.to_string(), bytes)?;
    let media_type = if descriptor.media_type.is_empty() {
        own.media_type.clone().unwrap_or_default()
    } else {
        descriptor.media_type.clone()
    };
    // A document that is one thing to its parent and another to itself is an attack
    // (CVE-2021-41190), as is one that could be read as both.
    let contradicts = own.media_type.is_some_and(|own| own != media_type)
        || (own.manifests.is_some() && (own.config.is_some() || own.layers.is_some()));
    if contradicts {
        return Err(ImageError::Malformed {
            what: "manifest",
            digest: digest.to_string(),
            reason: "it contradicts itself or its descriptor about being an index".to_owned(),
        });
    }
    match media_type.as_str() {
        OCI_INDEX | DOCKER_LIST => Ok(Kind::Index),
        OCI_MANIFEST | DOCKER_MANIFEST => Ok(Kind::Manifest),
        _ => Err(ImageError::UnsupportedMediaType {
            what: "the image's manifest",
            media_type,
        }),
    }
}

fn layers(
    config_digest: &Digest,
    manifest: &Manifest,
    config: &Config,
) -> Result<Vec<LayerBlob>, ImageError> {
    let descriptors = manifest.layers.as_deref().unwrap_or_default();
    let diff_ids = config.rootfs.diff_ids.as_deref().unwrap_or_default();
    if descriptors.len() as u64 > MAX_LAYERS {
        return Err(ImageError::Limit {
            what: "layers",
            limit: MAX_LAYERS,
        });
    }
    if descriptors.len() != diff_ids.len() {
        return Err(ImageError::Malformed {
            what: "config",
            digest: config_digest.to_string(),
            reason: format!(
                "it lists {} layers, the manifest {}",
                diff_ids.len(),
                descriptors.len()
            ),
        });
    }
    descriptors
        .iter()
        .zip(diff_ids)
        .map(|(descriptor, diff_id)| {
            let compression = compression(&descriptor.media_type).ok_or_else(|| {
                ImageError::UnsupportedMediaType {
                    what: "a layer",
                    media_type: descriptor.media_type.clone(),
                }
            })?;
            Ok(LayerBlob {
                digest: descriptor.digest("layer")?,
                size: descriptor.size,
                diff_id: Digest::parse(diff_id).ok_or_else(|| ImageError::Malformed {
                    what: "config",
                    digest: config_digest.to_string(),
                    reason: format!("`{diff_id}` is not a sha256 digest"),
                })?,
                compression,
            })
        })
        .collect()
}

fn compression(media_type: &str) -> Option<Compression> {
    let oci = media_type
        .strip_prefix("application/vnd.oci.image.layer.v1.tar")
        .or_else(|| {
            media_type.strip_prefix("application/vnd.oci.image.layer.nondistributable.v1.tar")
        });
    let docker = media_type
        .strip_prefix("application/vnd.docker.image.rootfs.diff.tar")
        .or_else(|| {
            media_type.strip_prefix("application/vnd.docker.image.rootfs.foreign.diff.tar")
        });
    match (oci, docker) {
        (Some(""), _) | (_, Some("")) => Some(Compression::None),
        (Some("+gzip"), _) | (_, Some(".gzip")) => Some(Compression::Gzip),
        (Some("+zstd"), _) | (_, Some(".zstd")) => Some(Compression::Zstd),
        (None | Some(_), None | Some(_)) => None,
    }
}

/// The candidate for `wanted`; one that does not say what it is for counts if it is the only one.
fn pick<'d>(
    candidates: &[&'d Descriptor],
    wanted: &Platform,
) -> Result<&'d Descriptor, ImageError> {
    if let [only] = candidates
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let fitting = |d: &&&'d Descriptor| d.platform.as_ref().is_some_and(|p| p.runs_on(wanted));
    if let Some(found) = candidates.iter().find(fitting) {
        return Ok(found);
    }
    // Several descriptors of one and the same blob, for example under several names.
    if let [first, rest @ ..] = candidates
        && first.platform.is_none()
        && rest.iter().all(|d| d.digest == first.digest)
    {
        return Ok(first);
    }
    let available: BTreeSet<String> = candidates
        .iter()
        .map(|d| match &d.platform {
            Some(platform) => platform.to_string(),
            None => "an unnamed platform".to_owned(),
        })
        .filter(|name| name != "unknown/unknown") // attestations
        .collect();
    Err(ImageError::NoPlatform {
        wanted: wanted.to_string(),
        available: if available.is_empty() {
            "nothing".to_owned()
        } else {
            available.into_iter().collect::<Vec<_>>().join(", ")
        },
    })
}

enum Kind {
    Index,
    Manifest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marker {
    image_layout_version: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    manifests: Option<Vec<Descriptor>>,
}

/// The fields by which a document says, or gives away, what it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SelfDescribed {
    media_type: Option<String>,
    manifests: Option<serde_json::Value>,
    config: Option<serde_json::Value>,
    layers: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Option<Vec<Descriptor>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    annotations: Option<BTreeMap<String, String>>,
    platform: Option<Platform>,
}

impl Descriptor {
    fn name(&self) -> Option<&str> {
        self.annotations
            .as_ref()?
            .get("org.opencontainers.image.ref.name")
            .map(String::as_str)
    }

    fn digest(&self, what: &'static str) -> Result<Digest, ImageError> {
        Digest::parse(&self.digest).ok_or_else(|| ImageError::Malformed {
            what: "descriptor of the",
            digest: what.to_owned(),
            reason: format!("`{}` is not a sha256 digest", self.digest),
        })
    }
}

#[derive(Clone, Debug, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
    variant: Option<String>,
}

impl Platform {
    /// What the guest is, since it has the host's processor and our kernel.
    fn host() -> Self {
        let architecture = match consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            variant: None,
        }
    }

    /// Variants beyond the baseline of an architecture may use instructions the host lacks.
    fn runs_on(&self, host: &Self) -> bool {
        let baseline = match self.variant.as_deref() {
            None | Some("") => true,
            Some("v1") => self.architecture == "amd64",
            Some("v8") => self.architecture == "arm64",
            Some(_) => false,
        };
        self.os == host.os && self.architecture == host.architecture && baseline
    }
}

impl Display for Platform {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) if !variant.is_empty() => write!(f, "/{variant}"),
            _ => Ok(()),
        }
    }
}

#[derive(Deserialize)]
struct Config {
    architecture: Option<String>,
    os: Option<String>,
    config: Option<RunConfig>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RunConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

impl Config {
    /// `None` if the image does not say.
    fn platform(&self) -> Option<Platform> {
        let said = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        Some(Platform {
            architecture: said(&self.architecture)?,
            os: said(&self.os)?,
            variant: None,
        })
    }

    fn run(self, digest: &Digest) -> Result<ImageConfig, ImageError> {
        let RunConfig {
            entrypoint,
            cmd,
            env,
            user,
            working_dir,
            stop_signal,
        } = self.config.unwrap_or_default();
        let config = ImageConfig {
            entrypoint: entrypoint.unwrap_or_default(),
            cmd: cmd.unwrap_or_default(),
            // What has no `=` sets nothing.
            env: env
                .unwrap_or_default()
                .iter()
                .filter_map(|pair| pair.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            user: user.unwrap_or_default(),
            working_dir: working_dir.unwrap_or_default(),
            stop_signal: stop_signal.unwrap_or_default(),
        };
        let has_nul = (config.entrypoint.iter().chain(&config.cmd))
            .chain([&config.user, &config.working_dir, &config.stop_signal])
            .chain(config.env.iter().flat_map(|(name, value)| [name, value]))
            .any(|text| text.contains('\0'));
        if has_nul {
            return Err(ImageError::Malformed {
                what: "config",
                digest: digest.to_string(),
                reason: "a string contains a NUL byte".to_owned(),
            });
        }
        Ok(config)
    }
}

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG_TYPES: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];

/// The largest manifest, index or config; registries allow 4 MiB for manifests.
const MAX_DOCUMENT: u64 = 4 << 20;
/// Docker's own limit is 127.
const MAX_LAYERS: u64 = 512;
/// Index within index within index.
const MAX_INDEX_DEPTH: u64 = 4;
