//! Images in tar files: OCI layouts, what `docker save` writes, standard input, and damaged ones.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use bottle_core::image::ImageSource;
use bottle_core::reporter::Silent;
use bottle_image::{ImageDisk, ImageError, Input, SourceOptions, find, to_disk};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::bench::files;
use crate::calls::chain;
use crate::corpus::{Item, Kind, Pack, digest, host_architecture, image, layout, named, tar};
use crate::reader::read;

fn disk(dir: &TempDir, source: &str) -> Result<ImageDisk, ImageError> {
    disk_with(dir, source, &SourceOptions::default())
}

fn disk_with(
    dir: &TempDir,
    source: &str,
    options: &SourceOptions,
) -> Result<ImageDisk, ImageError> {
    let source: ImageSource = source.parse().unwrap();
    to_disk(&source, options, &dir.path().join("store"), &Silent)
}

#[track_caller]
fn failure(dir: &TempDir, source: &str) -> String {
    let message = chain(&disk(dir, source).unwrap_err());
    assert_eq!(
        files(&dir.path().join("store")),
        [""; 0],
        "the store is not empty"
    );
    message
}

/// Packs the files of a directory as `tar -C DIR .` does.
fn packed(dir: &Path) -> Vec<u8> {
    let mut items = vec![Item::dir("./"), Item::dir("./blobs/")];
    for name in files(dir) {
        let content = fs::read(dir.join(&name)).unwrap();
        items.push(Item::file(format!("./{name}"), content));
    }
    tar(&items)
}

/// A layout with one image `v1`, which has one file `file`.
fn a_layout(dir: &Path) -> Value {
    let layers = [(tar(&[Item::file("file", "content")]), Pack::Gzip)];
    let manifest = image(dir, &layers, &json!({"Cmd": ["/app"]}));
    layout(dir, &[named(manifest.clone(), "v1")]);
    manifest
}

#[track_caller]
fn is_the_image(disk: &ImageDisk) {
    assert_eq!(disk.image.config.cmd, ["/app"]);
    assert_eq!(read(disk)[&b"file"[..]].size, 7);
}

#[test]
fn a_layout_in_a_tar_file_is_the_layout() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, file) = (dir.path().join("layout"), dir.path().join("a.tar"));
    let manifest = a_layout(&layout);
    let whole = packed(&layout);
    for bytes in [
        whole.clone(),
        Pack::Gzip.bytes(&whole),
        Pack::Zstd.bytes(&whole),
    ] {
        fs::write(&file, bytes).unwrap();
        let name = format!("oci-archive:{}", file.display());
        let digest = manifest["digest"].as_str().unwrap();
        for name in [
            name.clone(),
            format!("{name}:v1"),
            format!("{name}@{digest}"),
        ] {
            let disk = disk(&dir, &name).unwrap();
            is_the_image(&disk);
            assert_eq!(disk.image.manifest, digest);
        }
        fs::remove_dir_all(dir.path().join("store")).unwrap();
        let message = failure(&dir, &format!("{name}:v2"));
        assert!(
            message.ends_with("has no image `v2`; it has: v1"),
            "{message}"
        );
    }
}

/// What `docker save` writes: its members, and `manifest.json` of them.
struct Saved {
    items: Vec<Item>,
    manifest: Value,
}

impl Saved {
    /// One image of these layers.
    fn new(tags: &[&str], layers: &[(Vec<u8>, Pack)]) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|(tar, _)| digest(tar)).collect();
        let config = json!({
            "architecture": host_architecture(),
            "os": "linux",
            "config": {"Cmd": ["/app"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        })
        .to_string();
        let config_name = format!("{}.json", &digest(config.as_bytes())[7..]);
        let mut items = vec![Item::file(&config_name, &config)];
        let mut names = Vec::new();
        for (number, (tar, pack)) in layers.iter().enumerate() {
            let name = format!("{number:064x}/layer.tar");
            items.push(Item::dir(format!("{number:064x}/")));
            items.push(Item::file(&name, pack.bytes(tar)));
            names.push(name);
        }
        let manifest = json!([{"Config": config_name, "RepoTags": tags, "Layers": names}]);
        Self { items, manifest }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut items = self.items.clone();
        items.push(Item::file("manifest.json", self.manifest.to_string()));
        tar(&items)
    }

    fn write(&self, dir: &TempDir) -> String {
        let path = dir.path().join("saved.tar");
        fs::write(&path, self.bytes()).unwrap();
        format!("docker-archive:{}", path.display())
    }
}

fn one_file() -> Vec<u8> {
    tar(&[Item::file("file", "content")])
}

#[test]
fn what_docker_save_writes_is_an_image() {
    let dir = tempfile::tempdir().unwrap();
    let mut manifests = Vec::new();
    for pack in [Pack::Plain, Pack::Gzip, Pack::Zstd] {
        let empty = tar(&[]);
        let layers = [(one_file(), pack), (empty.clone(), pack), (empty, pack)];
        let saved = Saved::new(&["debian:12", "localhost:5000/x:1"], &layers);
        let name = saved.write(&dir);
        for tag in [
            "",
            ":debian:12",
            ":docker.io/library/debian:12",
            ":localhost:5000/x:1",
        ] {
            let disk = disk(&dir, &format!("{name}{tag}")).unwrap();
            is_the_image(&disk);
            manifests.push(disk.image.manifest);
        }
        let unknown = disk(&dir, &format!("{name}:debian:13"))
            .unwrap_err()
            .to_string();
        assert!(
            unknown.ends_with(
                "has no image `docker.io/library/debian:13`; it has: debian:12, localhost:5000/x:1"
            ),
            "{unknown}"
        );
    }
    // A manifest of its own, and always the same one.
    manifests.dedup();
    assert_eq!(manifests.len(), 3);
}

#[test]
fn several_saved_images_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let mut saved = Saved::new(&["one:1"], &[(one_file(), Pack::Plain)]);
    let mut second = saved.manifest[0].clone();
    second["RepoTags"] = json!(["two:2"]);
    saved.manifest = json!([saved.manifest[0], second]);
    let name = saved.write(&dir);
    let message = failure(&dir, &name);
    assert!(
        message.ends_with("name one of them: one:1, two:2"),
        "{message}"
    );
    is_the_image(&disk(&dir, &format!("{name}:two:2")).unwrap());
    fs::remove_dir_all(dir.path().join("store")).unwrap();
    saved.manifest[0]["RepoTags"] = Value::Null;
    let message = failure(&dir, &format!("{}:three", saved.write(&dir)));
    assert!(message.ends_with("it has: two:2"), "{message}");
}

#[test]
fn links_between_layers_are_followed_within_the_archive_only() {
    let dir = tempfile::tempdir().unwrap();
    let saved = |kind: fn(String, &str) -> Item, target: &str| {
        let mut saved = Saved::new(&["x:1"], &[(one_file(), Pack::Plain)]);
        let link = format!("{:064x}/layer.tar", 9);
        saved.items.push(kind(link.clone(), target));
        saved.manifest[0]["Layers"][0] = json!(link);
        saved.write(&dir)
    };
    let symlink = |path: String, target: &str| Item::symlink(path, target);
    let hard = |path: String, target: &str| Item::link(path, target);
    // As older versions of docker write layers that are there already.
    let target = format!("{:064x}/layer.tar", 0);
    for name in [
        saved(symlink, &format!("../{target}")),
        saved(hard, &target),
    ] {
        is_the_image(&disk(&dir, &name).unwrap());
        fs::remove_dir_all(dir.path().join("store")).unwrap();
    }
    fs::write(dir.path().join("outside"), one_file()).unwrap();
    for target in ["../../outside", "/outside", "layer.tar", "../missing", ".."] {
        let message = failure(&dir, &saved(symlink, target));
        assert!(
            message.ends_with("it is a link that does not lead to a file of the archive"),
            "{target}: {message}"
        );
    }
}

#[test]
fn members_may_have_long_names_in_either_dialect() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{}/layer.tar", "l".repeat(200));
    let mut saved = Saved::new(&["x:1"], &[(one_file(), Pack::Plain)]);
    saved.manifest[0]["Layers"][0] = json!(long);
    saved.items[2].path = long.clone().into_bytes();
    is_the_image(&disk(&dir, &saved.write(&dir)).unwrap());
    fs::remove_dir_all(dir.path().join("store")).unwrap();
    // The same by a writer of GNU's long names.
    let mut builder = ::tar::Builder::new(Vec::new());
    let manifest = Item::file("manifest.json", saved.manifest.to_string());
    for Item { path, kind, .. } in saved.items.iter().chain([&manifest]) {
        let Kind::File(content) = kind else {
            continue;
        };
        let name = str::from_utf8(path).unwrap();
        let mut header = ::tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, name, &content[..])
            .unwrap();
    }
    let path = dir.path().join("gnu.tar");
    fs::write(&path, builder.into_inner().unwrap()).unwrap();
    is_the_image(&disk(&dir, &format!("docker-archive:{}", path.display())).unwrap());
}

#[test]
fn archives_that_are_none_are_told_what_they_lack() {
    let dir = tempfile::tempdir().unwrap();
    let good = || Saved::new(&["x:1"], &[(one_file(), Pack::Plain)]);
    let with = |change: &dyn Fn(&mut Saved)| {
        let mut saved = good();
        change(&mut saved);
        failure(&dir, &saved.write(&dir))
    };
    for (message, expected) in [
        (
            with(&|s| s.manifest = json!([])),
            "manifest.json: it lists no image",
        ),
        (
            with(&|s| s.manifest = json!({})),
            "file manifest.json is malformed",
        ),
        (
            with(&|s| s.manifest[0]["Config"] = json!("x.json")),
            "x.json: it is missing",
        ),
        (
            with(&|s| s.manifest[0]["Config"] = json!("../x.json")),
            "../x.json: the name leads out of the archive",
        ),
        (
            with(&|s| s.manifest[0]["Layers"] = json!(["x"])),
            "x: it is missing",
        ),
        (
            with(&|s| s.manifest[0]["Layers"] = json!([])),
            "it lists 0 layers, the config 1",
        ),
        (
            with(&|s| s.items.push(s.items[0].clone())),
            "there are two of that name",
        ),
        (
            with(&|s| s.items.push(Item::file("a/../../x", ""))),
            "a/../../x: its name leads out of the archive",
        ),
        (
            with(&|s| {
                s.items.push(Item::node("x", Kind::Char(1, 3)));
            }),
            "x: it is a device or FIFO",
        ),
        (
            with(&|s| s.items[0] = Item::file(s.items[0].path.clone(), "{\"rootfs\": {}}")),
            "config has digest",
        ),
        (
            with(&|s| s.items[2] = Item::file(s.items[2].path.clone(), tar(&[]))),
            "a layer has digest",
        ),
    ] {
        assert!(message.contains(expected), "{message}");
    }
    let path = dir.path().join("saved.tar");
    let name = format!("docker-archive:{}", path.display());
    fs::write(&path, "no tar at all").unwrap();
    assert!(failure(&dir, &name).contains("is not a usable archive of an image"));
    let whole = good().bytes();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(failure(&dir, &name).contains("the archive ends within it"));
    fs::write(&path, tar(&[])).unwrap();
    assert!(failure(&dir, &name).ends_with("manifest.json: it is missing"));
    let oci = format!("oci-archive:{}", path.display());
    assert!(failure(&dir, &oci).ends_with("it has no file `oci-layout`"));
    let missing = failure(&dir, "docker-archive:/does/not/exist");
    assert!(
        missing.starts_with("cannot open `/does/not/exist`"),
        "{missing}"
    );
    let directory = failure(&dir, &format!("oci-archive:{}", dir.path().display()));
    assert!(directory.ends_with("not a regular file"), "{directory}");
}

/// A reader that is no file, and gives little at a time.
struct Slowly(io::Cursor<Vec<u8>>);

impl Read for Slowly {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Self(inner) = self;
        let most = buf.len().min(1000);
        inner.read(&mut buf[..most])
    }
}

fn streamed(bytes: Vec<u8>) -> SourceOptions {
    let mut options = SourceOptions::default();
    options.stdin = Input::from_reader(Slowly(io::Cursor::new(bytes)));
    options
}

#[test]
fn either_kind_comes_by_standard_input_too() {
    let dir = tempfile::tempdir().unwrap();
    let oci = dir.path().join("layout");
    a_layout(&oci);
    let saved = Saved::new(&["x:1"], &[(one_file(), Pack::Plain)]).bytes();
    for bytes in [packed(&oci), saved.clone(), Pack::Gzip.bytes(&saved)] {
        let mut options = streamed(bytes);
        options.spool_dir = Some(dir.path().join("spool"));
        // Looked at and then used: read once all the same.
        let found = find(&ImageSource::Stdin, &options).unwrap();
        let disk = disk_with(&dir, "-", &options.clone()).unwrap();
        assert_eq!(disk.image, found);
        is_the_image(&disk);
        assert_eq!(files(&dir.path().join("spool")), [""; 0]);
        fs::remove_dir_all(dir.path().join("store")).unwrap();
    }
}

#[test]
fn what_comes_by_standard_input_must_be_an_archive() {
    let dir = tempfile::tempdir().unwrap();
    let saved = Saved::new(&["x:1"], &[(one_file(), Pack::Plain)]).bytes();
    let mut gzip = Pack::Gzip.bytes(&saved);
    gzip.truncate(gzip.len() / 2);
    for (bytes, expected) in [
        (
            Vec::new(),
            "neither `oci-layout` and `index.json` nor `manifest.json`",
        ),
        (tar(&[Item::file("x", "y")]), "neither `oci-layout` and"),
        (b"#!/bin/sh\n".repeat(100), "this is not a tar archive"),
        (gzip, "cannot read `standard input`"),
    ] {
        let options = streamed(bytes);
        let message = chain(&disk_with(&dir, "-", &options).unwrap_err());
        assert!(message.contains(expected), "{message}");
        assert_eq!(files(&dir.path().join("store")), [""; 0]);
        // It is gone, and nobody waits for more of it.
        let again = disk_with(&dir, "-", &options).unwrap_err().to_string();
        assert!(!again.is_empty());
    }
}

/// Runs `skopeo copy`; false if it is not installed.
pub(crate) fn skopeo_copy(arguments: &[&str]) -> bool {
    let run = Command::new("skopeo")
        .args(["copy", "--insecure-policy", "--quiet"])
        .args(arguments)
        .output();
    match run {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            true
        }
        Err(error) => {
            eprintln!("skipped: skopeo: {error}");
            false
        }
    }
}

#[test]
fn what_skopeo_writes_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("layout");
    let manifest = a_layout(&from);
    let from = format!("oci:{}:v1", from.display());
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    let (oci, saved) = (path("oci.tar"), path("saved.tar"));
    let oci = format!("oci-archive:{}:v1", oci.display());
    let saved = format!("docker-archive:{}:debian:12", saved.display());
    if !skopeo_copy(&[&from, &oci]) || !skopeo_copy(&[&from, &saved]) {
        return;
    }
    let disk_of_oci = disk(&dir, &oci).unwrap();
    is_the_image(&disk_of_oci);
    assert_eq!(disk_of_oci.image.manifest, manifest["digest"]);
    is_the_image(&disk(&dir, &saved).unwrap());
    is_the_image(&disk(&dir, saved.trim_end_matches(":debian:12")).unwrap());
}
