//! Writes an OCI image layout with one layer.
//!
//! The bytes depend on the input alone, so the same root file system gives the same digests.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::lock::{HashWriter, hex, sha256};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What the image says about itself.
#[derive(Debug)]
pub(crate) struct About {
    /// The reference that the index gives it.
    pub(crate) reference: String,
    /// The architecture as Go names it.
    pub(crate) architecture: &'static str,
    /// RFC 3339 time of creation.
    pub(crate) created: String,
    /// What made the layer.
    pub(crate) created_by: String,
    /// The user that commands run as.
    pub(crate) user: String,
    /// The environment, as `NAME=value`.
    pub(crate) env: Vec<String>,
    /// The working directory.
    pub(crate) working_dir: String,
    /// The default command.
    pub(crate) cmd: Vec<String>,
    /// Labels.
    pub(crate) labels: BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: &'static str,
    digest: String,
    size: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u8,
    media_type: &'static str,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u8,
    media_type: &'static str,
    manifests: Vec<Descriptor>,
}

#[derive(Serialize)]
struct Image<'a> {
    created: &'a str,
    architecture: &'a str,
    os: &'static str,
    config: ImageConfig<'a>,
    rootfs: RootFs,
    history: [History<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ImageConfig<'a> {
    user: &'a str,
    env: &'a [String],
    cmd: &'a [String],
    working_dir: &'a str,
    labels: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: &'static str,
    diff_ids: [String; 1],
}

#[derive(Serialize)]
struct History<'a> {
    created: &'a str,
    created_by: &'a str,
}

/// Writes the layout of an image whose one layer is `tar`.
///
/// `directory` must not exist; a failure may leave a part of it.
pub(crate) fn write(directory: &Path, tar: &Path, about: &About) -> Result<()> {
    let About {
        reference,
        architecture,
        created,
        created_by,
        user,
        env,
        working_dir,
        cmd,
        labels,
    } = about;
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| format!("cannot make `{}`", blobs.display()))?;
    let (layer, diff_id) = layer(&blobs, tar)?;
    let image = Image {
        created,
        architecture,
        os: "linux",
        config: ImageConfig {
            user,
            env,
            cmd,
            working_dir,
            labels,
        },
        rootfs: RootFs {
            kind: "layers",
            diff_ids: [format!("sha256:{diff_id}")],
        },
        history: [History {
            created,
            created_by,
        }],
    };
    let config = blob(&blobs, CONFIG, &image)?;
    let manifest = Manifest {
        schema_version: 2,
        media_type: MANIFEST,
        config,
        layers: vec![layer],
    };
    let mut manifest = blob(&blobs, MANIFEST, &manifest)?;
    manifest
        .annotations
        .insert("org.opencontainers.image.ref.name", reference.clone());
    let index = Index {
        schema_version: 2,
        media_type: INDEX,
        manifests: vec![manifest],
    };
    fs::write(directory.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(
        directory.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    Ok(())
}

/// Compresses the layer into the blobs; returns its descriptor and the digest of the tar.
fn layer(blobs: &Path, tar: &Path) -> Result<(Descriptor, String)> {
    let input = File::open(tar).with_context(|| format!("cannot open `{}`", tar.display()))?;
    let mut input = BufReader::with_capacity(1 << 20, input);
    let temporary = blobs.join("layer.tmp");
    let sink = Hashed {
        inner: BufWriter::with_capacity(1 << 20, File::create(&temporary)?),
        hash: Sha256::new(),
        size: 0,
    };
    // No time and no name in the header: the same tar compresses to the same bytes.
    let mut gzip = GzBuilder::new().mtime(0).write(sink, Compression::new(6));
    let mut diff = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let count = input.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        HashWriter(&mut diff).write_all(&buffer[..count])?;
        gzip.write_all(&buffer[..count])?;
    }
    let mut sink = gzip.finish()?;
    sink.inner.flush()?;
    let digest = hex(&sink.hash.finalize());
    fs::rename(&temporary, blobs.join(&digest))?;
    Ok((descriptor(LAYER, &digest, sink.size), hex(&diff.finalize())))
}

fn blob(blobs: &Path, media_type: &'static str, value: &impl Serialize) -> Result<Descriptor> {
    let bytes = serde_json::to_vec(value)?;
    let digest = sha256(&bytes);
    let path: PathBuf = blobs.join(&digest);
    fs::write(&path, &bytes).with_context(|| format!("cannot write `{}`", path.display()))?;
    let size = u64::try_from(bytes.len()).context("a JSON blob is too large")?;
    Ok(descriptor(media_type, &digest, size))
}

fn descriptor(media_type: &'static str, digest: &str, size: u64) -> Descriptor {
    Descriptor {
        media_type,
        digest: format!("sha256:{digest}"),
        size,
        annotations: BTreeMap::new(),
    }
}

/// Hashes and counts what it passes on.
struct Hashed<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests;
