//! Index -> manifest for this host -> config, for every kind of source.
//!
//! ```text
//! descriptor or document -> index -> (index …) -> manifest -> config -> layers' blobs
//! ```
//!
//! Every document's size and digest are checked here; a source only hands over bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::env::consts;
use std::fmt::{self, Display, Formatter};

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::digest::Digest;
use crate::error::ImageError;
use crate::layer::{Compression, LayerBlob};
use crate::{ImageConfig, ImageRef};

/// An image whose documents were read.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) image: ImageRef,
    pub(crate) layers: Vec<LayerBlob>,
    /// The config as its author wrote it, which the catalog keeps.
    pub(crate) config_bytes: Vec<u8>,
}

/// What small documents are read from.
pub(crate) trait Documents {
    /// Reads a manifest, index or config; what is in it is checked by who asked.
    ///
    /// At most [`MAX_DOCUMENT`] bytes; of a document that is too large one byte too many is
    /// enough.
    ///
    /// # Errors
    ///
    /// [`ImageError`] if it is not there or cannot be read.
    fn document(
        &self,
        what: &'static str,
        digest: &Digest,
        size: u64,
    ) -> Result<Vec<u8>, ImageError>;
}

/// A manifest or index that was read, and what its source says it is.
#[derive(Debug)]
pub(crate) struct Document {
    /// Empty if the source does not say.
    pub(crate) media_type: String,
    /// Of the bytes: computed, not claimed.
    pub(crate) digest: Digest,
    pub(crate) bytes: Vec<u8>,
}

/// Follows one of `candidates` (one image, perhaps per platform) to the config for this host.
pub(crate) fn resolve(
    documents: &dyn Documents,
    candidates: &[&Descriptor],
) -> Result<Found, ImageError> {
    let descriptor = pick(candidates, &Platform::host())?;
    follow(documents, manifest(documents, descriptor)?)
}

/// Follows a manifest or index to the config for this host.
pub(crate) fn follow(documents: &dyn Documents, top: Document) -> Result<Found, ImageError> {
    let wanted = Platform::host();
    let mut document = top;
    for _ in 0..MAX_INDEX_DEPTH {
        let name = document.digest.to_string();
        match document_kind(&document)? {
            Kind::Index => {
                let index: Index = parse("image index", &name, &document.bytes)?;
                document = manifest(documents, pick(&index.all(), &wanted)?)?;
            }
            Kind::Manifest => {
                let manifest: Manifest = parse("manifest", &name, &document.bytes)?;
                return read_config(documents, &document, &manifest, &wanted);
            }
        }
    }
    Err(ImageError::Limit {
        what: "image indexes within image indexes",
        limit: MAX_INDEX_DEPTH,
    })
}

fn manifest(documents: &dyn Documents, descriptor: &Descriptor) -> Result<Document, ImageError> {
    Ok(Document {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest("manifest")?,
        bytes: checked(documents, "manifest", descriptor)?,
    })
}

fn read_config(
    documents: &dyn Documents,
    document: &Document,
    manifest: &Manifest,
    wanted: &Platform,
) -> Result<Found, ImageError> {
    if !CONFIG_TYPES.contains(&manifest.config.media_type.as_str()) {
        return Err(ImageError::UnsupportedMediaType {
            what: "the image's config",
            media_type: manifest.config.media_type.clone(),
        });
    }
    let digest = manifest.config.digest("config")?;
    let bytes = checked(documents, "config", &manifest.config)?;
    let config = Config::parse(&digest, &bytes)?;
    config.check_platform(wanted)?;
    let layers = layers(&digest, manifest, &config)?;
    Ok(Found {
        image: ImageRef {
            manifest: document.digest.to_string(),
            config: config.run(&digest)?,
        },
        layers,
        config_bytes: bytes,
    })
}

/// Reads a small blob, its size and digest checked.
fn checked(
    documents: &dyn Documents,
    what: &'static str,
    descriptor: &Descriptor,
) -> Result<Vec<u8>, ImageError> {
    let digest = descriptor.digest(what)?;
    if descriptor.size > MAX_DOCUMENT {
        return Err(too_large(what));
    }
    let bytes = documents.document(what, &digest, descriptor.size)?;
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

/// That a document exceeds [`MAX_DOCUMENT`].
pub(crate) fn too_large(what: &'static str) -> ImageError {
    ImageError::Limit {
        what: match what {
            "manifest" => "bytes of a manifest",
            "config" => "bytes of a config",
            _ => "bytes of a file of the layout",
        },
        limit: MAX_DOCUMENT,
    }
}

/// Reads a JSON document; `digest` is what an error calls it.
pub(crate) fn parse<T: DeserializeOwned>(
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

/// What a document is: by its descriptor, or where that says nothing by itself.
fn document_kind(document: &Document) -> Result<Kind, ImageError> {
    let name = document.digest.to_string();
    let own: SelfDescribed = parse("manifest", &name, &document.bytes)?;
    let media_type = if document.media_type.is_empty() {
        own.media_type.clone().unwrap_or_default()
    } else {
        document.media_type.clone()
    };
    // A document that is one thing to its parent and another to itself is an attack
    // (CVE-2021-41190), as is one that could be read as both.
    let contradicts = own.media_type.is_some_and(|own| own != media_type)
        || (own.manifests.is_some() && (own.config.is_some() || own.layers.is_some()));
    if contradicts {
        return Err(ImageError::Malformed {
            what: "manifest",
            digest: name,
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
        .zip(config.diff_ids(config_digest)?)
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
                diff_id,
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

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    manifests: Option<Vec<Descriptor>>,
}

impl Index {
    pub(crate) fn all(&self) -> Vec<&Descriptor> {
        self.manifests.iter().flatten().collect()
    }
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
pub(crate) struct Descriptor {
    #[serde(default)]
    media_type: String,
    pub(crate) digest: String,
    size: u64,
    annotations: Option<BTreeMap<String, String>>,
    pub(crate) platform: Option<Platform>,
}

impl Descriptor {
    /// The name that a layout gives it.
    pub(crate) fn name(&self) -> Option<&str> {
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
pub(crate) struct Platform {
    architecture: String,
    os: String,
    variant: Option<String>,
}

impl Platform {
    /// What the guest is, since it has the host's processor and our kernel.
    pub(crate) fn host() -> Self {
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

/// What stands in a config that matters here.
#[derive(Deserialize)]
pub(crate) struct Config {
    architecture: Option<String>,
    os: Option<String>,
    created: Option<String>,
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
    volumes: Option<BTreeMap<String, IgnoredAny>>,
    exposed_ports: Option<BTreeMap<String, IgnoredAny>>,
    labels: Option<BTreeMap<String, String>>,
}

impl Config {
    pub(crate) fn parse(digest: &Digest, bytes: &[u8]) -> Result<Self, ImageError> {
        parse("config", &digest.to_string(), bytes)
    }

    pub(crate) fn check_platform(&self, wanted: &Platform) -> Result<(), ImageError> {
        match self.platform() {
            Some(built_for) if !built_for.runs_on(wanted) => Err(ImageError::NoPlatform {
                wanted: wanted.to_string(),
                available: built_for.to_string(),
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// The digests of the layers' contents; `digest` is the config's own.
    pub(crate) fn diff_ids(&self, digest: &Digest) -> Result<Vec<Digest>, ImageError> {
        let texts = self.rootfs.diff_ids.as_deref().unwrap_or_default();
        texts
            .iter()
            .map(|text| {
                Digest::parse(text).ok_or_else(|| ImageError::Malformed {
                    what: "config",
                    digest: digest.to_string(),
                    reason: format!("`{text}` is not a sha256 digest"),
                })
            })
            .collect()
    }

    /// `None` if the image does not say.
    fn platform(&self) -> Option<Platform> {
        let said = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        Some(Platform {
            architecture: said(&self.architecture)?,
            os: said(&self.os)?,
            variant: None,
        })
    }

    pub(crate) fn run(self, digest: &Digest) -> Result<ImageConfig, ImageError> {
        let Self {
            architecture,
            os,
            created,
            config,
            rootfs: _,
        } = self;
        let RunConfig {
            entrypoint,
            cmd,
            env,
            user,
            working_dir,
            stop_signal,
            volumes,
            exposed_ports,
            labels,
        } = config.unwrap_or_default();
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
            volumes: volumes.unwrap_or_default().into_keys().collect(),
            exposed_ports: exposed_ports.unwrap_or_default().into_keys().collect(),
            labels: labels.unwrap_or_default().into_iter().collect(),
            created: created.unwrap_or_default(),
            architecture: architecture.unwrap_or_default(),
            os: os.unwrap_or_default(),
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

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const CONFIG_TYPES: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];

/// The largest manifest, index or config; registries allow 4 MiB for manifests.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;
/// Docker's own limit is 127.
pub(crate) const MAX_LAYERS: u64 = 512;
/// Index within index within index.
const MAX_INDEX_DEPTH: u64 = 4;
