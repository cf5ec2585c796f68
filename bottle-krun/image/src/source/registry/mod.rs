//! Images from registries: the OCI distribution specification, as far as pulling goes.
//!
//! ```text
//! mod ── client ── http ── url       retries, redirects, mirrors; one exchange; what can be called
//!   │       └──── auth ── credentials     tokens; docker's config.json and its helpers
//!   └ download                       blobs: one thread each, resumable, read while they come in
//! ```
//!
//! # Security
//!
//! A registry is believed nothing: documents are bounded and digest-checked, blobs are checked by
//! who reads them, text is printed escaped. Credentials go to their registry and the token server
//! it names, never over plain HTTP unless that was named, and to nobody to whom either sends on.
//!
//! There is an own client because the one that fits (`oci-client` 0.18) calls any token server
//! that a registry names, plain HTTP included, with the user's password, reads its answers and
//! manifests without a bound, and hides why a token could not be had, the wait that a busy
//! registry asks for, and the range that a server really sent.

pub(crate) mod auth;
pub(crate) mod client;
pub(crate) mod credentials;
mod download;
pub(crate) mod error;
pub(crate) mod http;
pub(crate) mod url;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bottle_core::image::RegistryReference;
use tracing::debug;

use self::client::{Client, Endpoint, Wanted, WantedKind};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::layer::LayerBlob;
use crate::options::SourceOptions;
use crate::source::Blobs;
use crate::source::resolve::{
    DOCKER_LIST, DOCKER_MANIFEST, Document, Documents, Found, MAX_DOCUMENT, OCI_INDEX,
    OCI_MANIFEST, follow, too_large,
};

/// An image in a registry.
#[derive(Debug)]
pub(crate) struct Registry {
    client: Arc<Client>,
    reference: RegistryReference,
    /// Where downloads are kept until they are used.
    blobs: PathBuf,
}

impl Registry {
    /// Calls nobody yet.
    pub(crate) fn new(
        reference: &RegistryReference,
        options: &SourceOptions,
        store: &Path,
    ) -> Self {
        let (host, repository) = (reference.host(), reference.repository());
        Self {
            client: Arc::new(Client::new(host, repository, options)),
            reference: reference.clone(),
            blobs: store.join("blobs"),
        }
    }

    pub(crate) fn find(&self) -> Result<Found, ImageError> {
        let wanted = Wanted {
            path: format!("manifests/{}", self.reference.wanted()),
            accept: MANIFESTS,
            from: None,
            what: format!("the manifest of `{}`", self.reference.wanted()),
            kind: WantedKind::Manifest,
        };
        let digest = self.reference.digest().and_then(Digest::parse);
        let top = first_of(&self.client, |endpoint| {
            self.manifest(endpoint, &wanted, digest)
        })?;
        follow(self, top)
    }

    /// A manifest or index; it has the digest that was asked for, or that the registry claims.
    fn manifest(
        &self,
        endpoint: &Endpoint,
        wanted: &Wanted,
        digest: Option<Digest>,
    ) -> Result<Document, ImageError> {
        let (bytes, media_type, claimed) = read(&self.client, endpoint, wanted, MAX_DOCUMENT)?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(too_large("manifest"));
        }
        let found = Digest::of(&bytes);
        if let Some(expected) = digest.or(claimed)
            && expected != found
        {
            return Err(ImageError::DigestMismatch {
                what: "manifest",
                expected: expected.to_string(),
                found: found.to_string(),
            });
        }
        Ok(Document {
            media_type,
            digest: found,
            bytes,
        })
    }
}

impl Documents for Registry {
    fn document(
        &self,
        what: &'static str,
        digest: &Digest,
        size: u64,
    ) -> Result<Vec<u8>, ImageError> {
        let (kind, accept) = match what {
            "manifest" => ("manifests", MANIFESTS),
            _ => ("blobs", ANYTHING),
        };
        let wanted = Wanted {
            path: format!("{kind}/{digest}"),
            accept,
            from: None,
            what: format!("{what} {digest}"),
            kind: WantedKind::Blob,
        };
        first_of(&self.client, |endpoint| {
            let (bytes, _, _) = read(&self.client, endpoint, &wanted, size)?;
            let found = Digest::of(&bytes);
            // A mirror with something else is as good as one that has nothing.
            if found != *digest && bytes.len() as u64 == size {
                return Err(ImageError::DigestMismatch {
                    what,
                    expected: digest.to_string(),
                    found: found.to_string(),
                });
            }
            Ok(bytes)
        })
    }
}

impl Blobs for Registry {
    fn open_layer(&self, blob: &LayerBlob) -> Result<Box<dyn Read + Send>, ImageError> {
        let reader = download::open(&self.client, blob, &self.blobs)?;
        Ok(Box::new(reader))
    }
}

/// What the first endpoint gives that gives it; if none does, the registry's own error.
fn first_of<T>(
    client: &Client,
    ask: impl Fn(&Endpoint) -> Result<T, ImageError>,
) -> Result<T, ImageError> {
    let (own, mirrors) = client
        .endpoints
        .split_last()
        .expect("the registry itself is one");
    for mirror in mirrors {
        match ask(mirror) {
            Ok(given) => return Ok(given),
            Err(error) => debug!(mirror = %mirror.host, %error, "mirror passed over"),
        }
    }
    ask(own)
}

type Answer = (Vec<u8>, String, Option<Digest>);

/// A small document, with one byte too many of a larger one; its media type, its claimed digest.
fn read(
    client: &Client,
    endpoint: &Endpoint,
    wanted: &Wanted,
    limit: u64,
) -> Result<Answer, ImageError> {
    let mut response = client.get(endpoint, wanted)?;
    let media_type = response.header("content-type").unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    // What servers say that know nothing of images.
    let media_type = match media_type {
        "application/json" | "application/octet-stream" | "text/plain" => String::new(),
        other => other.to_ascii_lowercase(),
    };
    let claimed = response
        .header("docker-content-digest")
        .and_then(Digest::parse);
    response.body.wait_at_most(Some(client.document_limit()));
    let mut bytes = Vec::new();
    let mut limited = (&mut response.body).take(limit + 1);
    limited.read_to_end(&mut bytes).map_err(|error| {
        let host = endpoint.host.clone();
        client.explain(http::HttpError::of(error), host, &wanted.what)
    })?;
    Ok((bytes, media_type, claimed))
}

/// `30 s`, `300 ms`.
fn seconds(time: Duration) -> String {
    if time.subsec_millis() == 0 {
        format!("{} s", time.as_secs())
    } else {
        format!("{} ms", time.as_millis())
    }
}

const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";
const ANYTHING: &str = "*/*";

/// That [`MANIFESTS`] are all that is understood.
const _: () = {
    let known = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];
    assert!(
        MANIFESTS.len() == known[0].len() + known[1].len() + known[2].len() + known[3].len() + 6
    );
};
