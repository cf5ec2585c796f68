//! Layers and layouts as code.

use std::env::consts;
use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub(crate) const EPOCH: (i64, u32) = (1_700_000_000, 0);

/// One entry of a layer.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Block(u32, u32),
    Char(u32, u32),
    Dir,
    Fifo,
    File(Vec<u8>),
    Link(Vec<u8>),
    Symlink(Vec<u8>),
}

impl Item {
    fn new(path: impl AsRef<[u8]>, kind: Kind, mode: u32) -> Self {
        Self {
            path: path.as_ref().to_owned(),
            kind,
            mode,
            owner: (0, 0),
            mtime: EPOCH,
            xattrs: Vec::new(),
        }
    }

    pub(crate) fn dir(path: impl AsRef<[u8]>) -> Self {
        Self::new(path, Kind::Dir, 0o755)
    }

    pub(crate) fn file(path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        Self::new(path, Kind::File(content.as_ref().to_owned()), 0o644)
    }

    pub(crate) fn link(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self::new(path, Kind::Link(target.as_ref().to_owned()), 0o644)
    }

    pub(crate) fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self::new(path, Kind::Symlink(target.as_ref().to_owned()), 0o777)
    }

    pub(crate) fn node(path: impl AsRef<[u8]>, kind: Kind) -> Self {
        Self::new(path, kind, 0o600)
    }

    pub(crate) fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    pub(crate) fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = (uid, gid);
        self
    }

    pub(crate) fn mtime(mut self, seconds: i64, nanos: u32) -> Self {
        self.mtime = (seconds, nanos);
        self
    }

    pub(crate) fn xattr(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.xattrs.push((name.into(), value.as_ref().to_owned()));
        self
    }
}

/// A tar archive of the items; what a plain header cannot hold stands in PAX records.
pub(crate) fn tar(items: &[Item]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for item in items {
        let mut header = tar::Header::new_ustar();
        let mut pax: Vec<(String, Vec<u8>)> = Vec::new();
        let mut put = |field: &mut [u8], key: &str, value: &[u8]| {
            if value.len() <= field.len() {
                field[..value.len()].copy_from_slice(value);
            } else {
                pax.push((key.to_owned(), value.to_owned()));
            }
        };
        put(&mut header.as_old_mut().name, "path", &item.path);
        let (flag, body, target) = match &item.kind {
            Kind::Block(..) => (b'4', &[][..], &[][..]),
            Kind::Char(..) => (b'3', &[][..], &[][..]),
            Kind::Dir => (b'5', &[][..], &[][..]),
            Kind::Fifo => (b'6', &[][..], &[][..]),
            Kind::File(content) => (b'0', &content[..], &[][..]),
            Kind::Link(target) => (b'1', &[][..], &target[..]),
            Kind::Symlink(target) => (b'2', &[][..], &target[..]),
        };
        put(&mut header.as_old_mut().linkname, "linkpath", target);
        if let Kind::Block(major, minor) | Kind::Char(major, minor) = item.kind {
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
        }
        header.set_entry_type(tar::EntryType::new(flag));
        header.set_size(body.len() as u64);
        header.set_mode(item.mode);
        for (key, id) in [("uid", item.owner.0), ("gid", item.owner.1)] {
            let fits = u64::from(if id < 1 << 21 { id } else { 0 });
            if key == "uid" {
                header.set_uid(fits);
            } else {
                header.set_gid(fits);
            }
            if u64::from(id) != fits {
                pax.push((key.to_owned(), id.to_string().into_bytes()));
            }
        }
        let (seconds, nanos) = item.mtime;
        header.set_mtime(seconds.max(0).cast_unsigned());
        if seconds < 0 || nanos > 0 {
            pax.push(("mtime".to_owned(), decimal(seconds, nanos).into_bytes()));
        }
        for (name, value) in &item.xattrs {
            let name = String::from_utf8(name.clone()).unwrap();
            pax.push((format!("SCHILY.xattr.{name}"), value.clone()));
        }
        if !pax.is_empty() {
            let records = pax.iter().map(|(key, value)| (key.as_str(), &value[..]));
            builder.append_pax_extensions(records).unwrap();
        }
        header.set_cksum();
        builder.append(&header, body).unwrap();
    }
    builder.into_inner().unwrap()
}

/// As GNU tar writes times before the epoch: a negative number of seconds.
fn decimal(seconds: i64, nanos: u32) -> String {
    if seconds < 0 && nanos > 0 {
        format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos)
    } else {
        format!("{seconds}.{nanos:09}")
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Pack {
    Gzip,
    Plain,
    Zstd,
}

impl Pack {
    pub(crate) fn bytes(self, tar: &[u8]) -> Vec<u8> {
        match self {
            Self::Gzip => {
                let mut out = GzEncoder::new(Vec::new(), flate2::Compression::fast());
                out.write_all(tar).unwrap();
                out.finish().unwrap()
            }
            Self::Plain => tar.to_owned(),
            Self::Zstd => zstd::encode_all(tar, 1).unwrap(),
        }
    }

    pub(crate) fn oci(self) -> &'static str {
        match self {
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Plain => "application/vnd.oci.image.layer.v1.tar",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// Stores a blob and returns its descriptor.
pub(crate) fn blob(dir: &Path, media_type: &str, bytes: &[u8]) -> Value {
    let digest = digest(bytes);
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(&digest[7..]), bytes).unwrap();
    json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
}

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// The architecture of this machine as images call it.
pub(crate) fn host_architecture() -> &'static str {
    match consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Stores layers (tar archives), config and manifest; returns the manifest's descriptor.
pub(crate) fn image(dir: &Path, layers: &[(Vec<u8>, Pack)], run: &Value) -> Value {
    let descriptors: Vec<Value> = layers
        .iter()
        .map(|(tar, pack)| blob(dir, pack.oci(), &pack.bytes(tar)))
        .collect();
    let diff_ids: Vec<String> = layers.iter().map(|(tar, _)| digest(tar)).collect();
    let config = json!({
        "architecture": host_architecture(),
        "os": "linux",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = blob(dir, CONFIG, config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config,
        "layers": descriptors,
    });
    blob(dir, MANIFEST, manifest.to_string().as_bytes())
}

/// Names a descriptor.
pub(crate) fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    descriptor
}

pub(crate) fn layout(dir: &Path, manifests: &[Value]) {
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
}

/// A layout with one image of these layers, gzip.
pub(crate) fn simple(dir: &Path, layers: &[Vec<Item>]) {
    let tars: Vec<_> = layers
        .iter()
        .map(|items| (tar(items), Pack::Gzip))
        .collect();
    let manifest = image(dir, &tars, &json!({}));
    layout(dir, &[named(manifest, "test")]);
}

/// Every kind of entry, and sizes around every limit of the format.
pub(crate) fn nasty() -> Vec<Item> {
    let mut items = vec![
        Item::dir("./")
            .mode(0o1755)
            .mtime(5, 7)
            .xattr("user.root", "r"),
        Item::dir("sizes/"),
        Item::dir("names").owner(1000, 3_000_000_000),
        Item::dir("x"),
    ];
    for size in [
        0,
        1,
        2,
        3967,
        3968,
        3969,
        4031,
        4032,
        4033,
        4095,
        4096,
        4097,
        8128,
        8191,
        8192,
        1 << 20,
    ] {
        let content: Vec<u8> = (0..size).map(|at: u32| (at % 251) as u8).collect();
        items.push(Item::file(format!("sizes/plain-{size}"), &content));
        // An inode with a head of its own size.
        items.push(Item::file(format!("sizes/xattr-{size}"), &content).xattr("user.a", "12345"));
    }
    for number in 0..600 {
        let name = format!("names/{number:03}-{}", "n".repeat(251));
        items.push(Item::file(name, number.to_string()));
    }
    items.extend([
        Item::file("names/!before-the-dot", "1"),
        Item::file("names/.hidden", "2"),
        Item::file(
            [b"names/\xff\xfe not utf-8".as_slice(), &[b'\n', 27]].concat(),
            "3",
        ),
        Item::file("x/caps", "c").xattr(
            "security.capability",
            [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        Item::file("x/large-xattrs", "l")
            .xattr("user.large", [7; 3000])
            .xattr("user.small", ""),
        Item::file("x/order", "o")
            .xattr("user.z", "1")
            .xattr("trusted.b", "2")
            .xattr("user.a", "3"),
        Item::file("x/setuid", "s").mode(0o6755).owner(0, 42),
        Item::file("x/sticky", "s").mode(0o1000),
        Item::file("x/old", "o").mtime(-1, 500_000_000),
        Item::file("x/older", "o").mtime(-2_000_000_000, 0),
        Item::file("x/newer", "o").mtime(4_000_000_000, 999_999_999),
        Item::file("x/rich", "r").owner(3_000_000_000, 4_294_967_294),
        Item::node("x/null", Kind::Char(1, 3)).mode(0o666),
        Item::node("x/large-device", Kind::Block(4095, 1_048_575)),
        Item::node("x/fifo", Kind::Fifo)
            .owner(5, 6)
            .xattr("trusted.fifo", "f"),
        Item::symlink("x/link", "../sizes/plain-1").owner(7, 8),
        Item::symlink("x/dangling", "/no/where"),
        Item::symlink("x/long-link", "l".repeat(4095)),
        Item::symlink("x/odd-link", "m".repeat(4033)),
        Item::link("x/hard", "sizes/plain-4096"),
        Item::link("names/hard", "x/hard"),
        Item::link("x/hard-link-to-link", "x/link"),
        Item::link("x/hard-fifo", "/x/fifo"),
    ]);
    items.push(Item::dir("deep"));
    let mut path = "deep".to_owned();
    for _ in 0..100 {
        path.push_str("/directory");
        items.push(Item::dir(&path));
    }
    items.push(Item::file(format!("{path}/bottom"), "b"));
    items
}
