//! OCI layouts of a few kilobytes, right or wrong in one way.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::token::hex;

/// What is wrong with a layout.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "tests go through all of them")]
pub enum Fault {
    /// Nothing.
    None,
    /// One byte of the layer is another than its digest says.
    WrongDigest,
    /// The second half of the layer is missing.
    Truncated,
    /// The layer has an entry `../escaped`.
    Escape,
}

/// Writes a layout with one layer (no program in it) into an empty directory.
///
/// # Errors
///
/// What the file system says.
pub fn write(dir: &Path, fault: Fault) -> Result<()> {
    fs::create_dir_all(dir.join("blobs/sha256"))?;
    let layer = layer(fault)?;
    let layer_digest = put(dir, &layer)?;
    let stored = dir.join("blobs/sha256").join(&layer_digest);
    match fault {
        Fault::WrongDigest => {
            let mut changed = layer.clone();
            // Inside the content of the one file, so that the archive stays readable.
            changed[520] ^= 1;
            fs::write(stored, changed)?;
        }
        Fault::Truncated => fs::write(stored, &layer[..layer.len() / 2])?,
        Fault::None | Fault::Escape => {}
    }
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
    });
    let config = config.to_string().into_bytes();
    let config_digest = put(dir, &config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": format!("sha256:{config_digest}"), "size": config.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": format!("sha256:{layer_digest}"), "size": layer.len(),
        }],
    });
    let manifest = manifest.to_string().into_bytes();
    let manifest_digest = put(dir, &manifest)?;
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": format!("sha256:{manifest_digest}"), "size": manifest.len(),
        }],
    });
    fs::write(dir.join("index.json"), index.to_string())?;
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

/// Writes a layout of the one image that `base` has, with another config, into an empty directory;
/// its layers are links to those of `base`.
///
/// # Errors
///
/// What the file system says, and a `base` that is not such a layout.
pub fn reconfigured(base: &Path, dir: &Path, change: impl FnOnce(&mut Value)) -> Result<()> {
    edited(base, dir, |_, config| {
        change(&mut config["config"]);
        Ok(())
    })
}

/// Writes a layout of the one image that `base` has, with more layers (tar archives) on top, bottom
/// first, into an empty directory; returns how many layers there are.
///
/// # Errors
///
/// As [`reconfigured`].
pub fn layered(base: &Path, dir: &Path, layers: &[Vec<u8>]) -> Result<usize> {
    let mut count = 0;
    edited(base, dir, |manifest, config| {
        for layer in layers {
            let digest = format!("sha256:{}", put(dir, layer)?);
            let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
            let mut descriptors = list(&manifest["layers"]);
            descriptors.push(json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": digest, "size": layer.len(),
            }));
            count = descriptors.len();
            manifest["layers"] = json!(descriptors);
            let mut diff_ids = list(&config["rootfs"]["diff_ids"]);
            diff_ids.push(json!(digest));
            config["rootfs"]["diff_ids"] = json!(diff_ids);
        }
        Ok(())
    })?;
    Ok(count)
}

/// Returns how many layers the one image of a layout has.
///
/// # Errors
///
/// If it cannot be read.
pub fn count_layers(layout: &Path) -> Result<usize> {
    let index = parse(&layout.join("index.json"))?;
    let manifest = parse(&blob_of(layout, &index["manifests"][0]))?;
    Ok(manifest["layers"].as_array().map_or(0, Vec::len))
}

fn edited(
    base: &Path,
    dir: &Path,
    change: impl FnOnce(&mut Value, &mut Value) -> Result<()>,
) -> Result<()> {
    let blobs = Path::new(BLOBS);
    fs::create_dir_all(dir.join(blobs))?;
    for blob in fs::read_dir(base.join(blobs))? {
        let blob = blob?;
        symlink(blob.path(), dir.join(blobs).join(blob.file_name()))?;
    }
    fs::copy(base.join("oci-layout"), dir.join("oci-layout"))?;
    let replace = |descriptor: &mut Value, document: &Value| -> Result<()> {
        let bytes = document.to_string().into_bytes();
        descriptor["digest"] = json!(format!("sha256:{}", put(dir, &bytes)?));
        descriptor["size"] = json!(bytes.len());
        Ok(())
    };
    let mut index = parse(&base.join("index.json"))?;
    let mut manifest = parse(&blob_of(dir, &index["manifests"][0]))?;
    let mut config = parse(&blob_of(dir, &manifest["config"]))?;
    change(&mut manifest, &mut config)?;
    replace(&mut manifest["config"], &config)?;
    replace(&mut index["manifests"][0], &manifest)?;
    fs::write(dir.join("index.json"), index.to_string())?;
    Ok(())
}

fn parse(path: &Path) -> Result<Value> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

fn blob_of(layout: &Path, descriptor: &Value) -> PathBuf {
    let digest = descriptor["digest"].as_str().unwrap_or_default();
    let name = digest.trim_start_matches("sha256:");
    layout.join(BLOBS).join(name)
}

/// Stores a blob and returns its digest, without `sha256:`.
fn put(dir: &Path, bytes: &[u8]) -> Result<String> {
    let digest = hex(&Sha256::digest(bytes));
    fs::write(dir.join(BLOBS).join(&digest), bytes)?;
    Ok(digest)
}

fn layer(fault: Fault) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    // Each layout has a layer of its own: a disk that the store has already is not made again.
    let content = format!("no program is in this image; its fault: {fault:?}\n");
    append(
        &mut tar,
        b"readme.txt",
        EntryType::Regular,
        content.as_bytes(),
    )?;
    append(&mut tar, b"etc/", EntryType::Directory, b"")?;
    append(
        &mut tar,
        b"etc/passwd",
        EntryType::Regular,
        b"root:x:0:0:root:/:/none\n",
    )?;
    if fault == Fault::Escape {
        append(&mut tar, b"../escaped", EntryType::Regular, b"outside\n")?;
    }
    Ok(tar.into_inner()?)
}

/// Appends an entry under any name, legal or not.
fn append(tar: &mut Builder<Vec<u8>>, name: &[u8], kind: EntryType, content: &[u8]) -> Result<()> {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Directory {
        0o755
    } else {
        0o644
    });
    header.set_size(content.len() as u64);
    header.set_mtime(1_700_000_000);
    header.set_cksum();
    tar.append(&header, content)?;
    Ok(())
}

const BLOBS: &str = "blobs/sha256";
