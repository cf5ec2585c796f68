//! What an archive says about the image in it, to readers of either kind.

use bottle_core::image::ImageSource;
use bottle_core::images::ImageRecord;
use serde_json::{Value, json};

use super::layer::Part;
use crate::digest::Digest;
use crate::source::layout::blob_name;
use crate::source::resolve::{CONFIG_TYPES, OCI_INDEX, OCI_MANIFEST};

/// The documents of an archive, each as its bytes.
#[derive(Debug)]
pub(super) struct Documents {
    pub(super) marker: Vec<u8>,
    pub(super) index: Vec<u8>,
    /// What `docker load` looks for: [`DOCKER`].
    pub(super) docker: Vec<u8>,
    pub(super) manifest: Vec<u8>,
    pub(super) config: Vec<u8>,
}

impl Documents {
    /// Of an image whose layers are these now.
    pub(super) fn new(record: &ImageRecord, layers: &[Part]) -> Self {
        let mut config = record.config.clone();
        // Layers correspond one to one: the history stays true.
        config["rootfs"] = json!({
            "type": "layers",
            "diff_ids": layers.iter().map(|layer| layer.digest.to_string()).collect::<Vec<_>>(),
        });
        let names = Names::of(&record.name);
        let platform = platform(&config);
        let config = bytes(&config);
        let manifest = bytes(&json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(CONFIG_TYPES[0], &Digest::of(&config), config.len() as u64),
            "layers": layers
                .iter()
                .map(|layer| descriptor(LAYER, &layer.digest, layer.size))
                .collect::<Vec<_>>(),
        }));
        let mut entry = descriptor(OCI_MANIFEST, &Digest::of(&manifest), manifest.len() as u64);
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": names.tag });
        if let Some(full) = &names.full {
            entry["annotations"]["io.containerd.image.name"] = json!(full);
        }
        if let Some(platform) = platform {
            entry["platform"] = platform;
        }
        let index = bytes(&json!({
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [entry],
        }));
        let docker = bytes(&json!([{
            "Config": blob_name(&Digest::of(&config)),
            "RepoTags": names.full.into_iter().collect::<Vec<_>>(),
            "Layers": layers.iter().map(|layer| blob_name(&layer.digest)).collect::<Vec<_>>(),
        }]));
        Self {
            marker: bytes(&json!({ "imageLayoutVersion": "1.0.0" })),
            index,
            docker,
            manifest,
            config,
        }
    }
}

/// What the image is called in the archive.
struct Names {
    tag: String,
    /// With registry and repository, if it has a tag there.
    full: Option<String>,
}

impl Names {
    fn of(name: &str) -> Self {
        let (tag, full) = match name.parse::<ImageSource>() {
            Ok(ImageSource::Registry(reference)) => {
                let tag = reference.tag().map(str::to_owned);
                let named = |tag| {
                    let (host, repository) = (reference.host(), reference.repository());
                    format!("{host}/{repository}:{tag}")
                };
                let full = tag.as_ref().map(named);
                (tag, full)
            }
            Ok(
                ImageSource::OciArchive { reference, .. }
                | ImageSource::OciLayout { reference, .. },
            ) => (reference.filter(|it| !it.starts_with("sha256:")), None),
            Ok(ImageSource::DockerArchive { reference, .. }) => {
                let tag = reference.and_then(|it| it.tag().map(str::to_owned));
                (tag, None)
            }
            // A name that nobody can ask for is as good as none.
            Ok(_) | Err(_) => (None, None),
        };
        Self {
            tag: tag.unwrap_or_else(|| "latest".to_owned()),
            full,
        }
    }
}

fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size })
}

/// `None` if the image does not say.
fn platform(config: &Value) -> Option<Value> {
    let said = |key: &str| config.get(key).filter(|value| value.is_string()).cloned();
    let mut platform = json!({ "architecture": said("architecture")?, "os": said("os")? });
    if let Some(variant) = said("variant") {
        platform["variant"] = variant;
    }
    Some(platform)
}

fn bytes(document: &Value) -> Vec<u8> {
    document.to_string().into_bytes()
}

/// Docker's list of images.
pub(super) const DOCKER: &str = "manifest.json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn named(name: &str, tag: &str, full: Option<&str>) {
        let names = Names::of(name);
        assert_eq!((names.tag.as_str(), names.full.as_deref()), (tag, full));
    }

    #[test]
    fn an_image_keeps_its_tag_and_an_image_of_a_registry_its_name() {
        let debian = "docker.io/library/debian:12";
        named("docker.io/library/debian:12", "12", Some(debian));
        let digest = "0".repeat(64);
        let pinned = format!("docker.io/library/debian@sha256:{digest}");
        named(&pinned, "latest", None);
        named("oci:/somewhere:edge", "edge", None);
        named(&format!("oci:/somewhere@sha256:{digest}"), "latest", None);
        named("docker-archive:/some.tar:debian:12", "12", None);
        named("-", "latest", None);
    }
}
