//! Layouts: how images are found in them, and every way in which one can be wrong.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::slice;

use bottle_image::{ImageConfig, ImageError};
use serde_json::{Value, json};

use crate::calls::{find, to_disk};
use crate::corpus::{
    CONFIG, INDEX, Item, MANIFEST, Pack, blob, digest, host_architecture, image, layout, named, tar,
};
use crate::hostile::stored;
use crate::reader::{joined, read};

fn one_layer(dir: &Path, content: &str) -> Value {
    image(
        dir,
        &[(tar(&[Item::file("file", content)]), Pack::Gzip)],
        &json!({}),
    )
}

fn blob_path(dir: &Path, descriptor: &Value) -> PathBuf {
    let digest = descriptor["digest"].as_str().unwrap();
    dir.join("blobs/sha256").join(&digest[7..])
}

fn first_layer(dir: &Path, manifest: &Value) -> Value {
    let manifest = fs::read(blob_path(dir, manifest)).unwrap();
    serde_json::from_slice::<Value>(&manifest).unwrap()["layers"][0].clone()
}

#[track_caller]
fn failure(dir: &Path, reference: Option<&str>) -> String {
    let store = dir.join("store");
    let error = to_disk(dir, reference, &store).unwrap_err();
    assert_eq!(stored(&store), [""; 0], "the store is not empty");
    error.to_string()
}

#[test]
fn a_directory_that_is_no_layout_is_told_what_it_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    assert!(failure(&missing, None).ends_with("it does not exist"));
    assert!(failure(dir.path(), None).ends_with("it has no file `oci-layout`"));
    let marker = dir.path().join("oci-layout");
    fs::write(&marker, "{}").unwrap();
    assert!(failure(dir.path(), None).contains("file oci-layout is malformed"));
    fs::write(&marker, r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    assert!(failure(dir.path(), None).contains("version 2.0.0 is unknown"));
    fs::write(&marker, r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    assert!(failure(dir.path(), None).ends_with("it has no file `index.json`"));
    layout(dir.path(), &[]);
    assert!(failure(dir.path(), None).ends_with("its `index.json` lists no image"));
    assert!(failure(&marker, None).ends_with("it is not a directory"));
}

#[test]
fn the_only_image_needs_no_name() {
    let dir = tempfile::tempdir().unwrap();
    let run = json!({
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": null,
        "Env": ["PATH=/bin", "EMPTY=", "TWO=a=b", "none"],
        "User": "agent",
        "WorkingDir": "/home/agent",
        "StopSignal": "SIGINT",
        "Volumes": {"/data": {}, "/cache": {}},
        "ExposedPorts": {"80/tcp": {}},
        "Labels": {"b": "2", "a": "1"},
    });
    let manifest = image(dir.path(), &[(tar(&[]), Pack::Gzip)], &run);
    layout(dir.path(), &[named(manifest.clone(), "base")]);
    let found = find(dir.path(), None).unwrap();
    assert_eq!(found.manifest, manifest["digest"]);
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(
        found.config,
        ImageConfig {
            entrypoint: vec!["/bin/sh".to_owned(), "-c".to_owned()],
            cmd: Vec::new(),
            env: vec![pair("PATH", "/bin"), pair("EMPTY", ""), pair("TWO", "a=b")],
            user: "agent".to_owned(),
            working_dir: "/home/agent".to_owned(),
            stop_signal: "SIGINT".to_owned(),
            volumes: vec!["/cache".to_owned(), "/data".to_owned()],
            exposed_ports: vec!["80/tcp".to_owned()],
            labels: vec![pair("a", "1"), pair("b", "2")],
            created: String::new(),
            architecture: host_architecture().to_owned(),
            os: "linux".to_owned(),
        }
    );
    assert_eq!(find(dir.path(), Some("base")).unwrap(), found);
    let digest = manifest["digest"].as_str().unwrap();
    assert_eq!(find(dir.path(), Some(digest)).unwrap(), found);
}

#[test]
fn several_images_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (one_layer(dir.path(), "1"), one_layer(dir.path(), "2"));
    layout(dir.path(), &[named(one.clone(), "one"), named(two, "two")]);
    assert!(failure(dir.path(), None).ends_with("name one of them: one, two"));
    let unknown = failure(dir.path(), Some("three"));
    assert!(
        unknown.ends_with("has no image `three`; it has: one, two"),
        "{unknown}"
    );
    assert_eq!(
        find(dir.path(), Some("one")).unwrap().manifest,
        one["digest"]
    );
    // One image under two names is one image.
    layout(
        dir.path(),
        &[named(one.clone(), "one"), named(one.clone(), "latest")],
    );
    assert_eq!(find(dir.path(), None).unwrap().manifest, one["digest"]);
}

#[test]
fn an_index_leads_to_the_hosts_platform() {
    let dir = tempfile::tempdir().unwrap();
    let (mine, other) = (
        one_layer(dir.path(), "mine"),
        one_layer(dir.path(), "other"),
    );
    let on = |mut descriptor: Value, platform: Value| {
        descriptor["platform"] = platform;
        descriptor
    };
    let host = json!({"os": "linux", "architecture": host_architecture()});
    let newer = json!({"os": "linux", "architecture": host_architecture(), "variant": "v9"});
    let foreign = json!({"os": "linux", "architecture": "s390x"});
    let unknown = json!({"os": "unknown", "architecture": "unknown"});
    let index =
        |manifests: Value| json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    let listed = index(json!([
        on(other.clone(), foreign.clone()),
        on(other.clone(), newer.clone()),
        on(mine.clone(), host.clone()),
        on(other.clone(), unknown.clone()),
    ]));
    let nested = blob(dir.path(), INDEX, listed.to_string().as_bytes());
    layout(dir.path(), &[named(nested, "multi")]);
    assert_eq!(
        find(dir.path(), Some("multi")).unwrap().manifest,
        mine["digest"]
    );

    let listed = index(json!([
        on(other.clone(), foreign),
        on(other, newer),
        on(mine, unknown)
    ]));
    let nested = blob(dir.path(), INDEX, listed.to_string().as_bytes());
    layout(dir.path(), &[nested]);
    let message = failure(dir.path(), None);
    let architecture = host_architecture();
    assert_eq!(
        message,
        format!(
            "the image has nothing for linux/{architecture}; \
             it exists for linux/{architecture}/v9, linux/s390x"
        )
    );
}

#[test]
fn an_image_for_another_processor_is_refused_without_an_index_too() {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({"architecture": "s390x", "os": "linux", "rootfs": {"diff_ids": []}});
    let config = blob(dir.path(), CONFIG, config.to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": []});
    layout(
        dir.path(),
        &[blob(dir.path(), MANIFEST, manifest.to_string().as_bytes())],
    );
    assert!(failure(dir.path(), None).ends_with("it exists for linux/s390x"));
}

#[test]
fn dockers_media_types_are_known() {
    let dir = tempfile::tempdir().unwrap();
    let archive = tar(&[Item::file("file", "x")]);
    let layer_type = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    let layer = blob(dir.path(), layer_type, &Pack::Gzip.bytes(&archive));
    let config = json!({"rootfs": {"diff_ids": [digest(&archive)]}});
    let config_type = "application/vnd.docker.container.image.v1+json";
    let config = blob(dir.path(), config_type, config.to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let manifest_type = "application/vnd.docker.distribution.manifest.v2+json";
    let manifest = blob(dir.path(), manifest_type, manifest.to_string().as_bytes());
    layout(dir.path(), &[manifest]);
    to_disk(dir.path(), None, &dir.path().join("store")).unwrap();
}

#[test]
fn gzip_zstd_and_plain_layers_give_the_same_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut disks = Vec::new();
    for pack in [Pack::Gzip, Pack::Plain, Pack::Zstd] {
        let dir = dir.path().join(format!("{pack:?}"));
        fs::create_dir(&dir).unwrap();
        let layers = [
            (
                tar(&[Item::file("a", vec![b'a'; 50_000]), Item::file("b", "b")]),
                pack,
            ),
            (tar(&[Item::file("a", "shorter")]), pack),
        ];
        layout(&dir, &[image(&dir, &layers, &json!({}))]);
        let disk = to_disk(&dir, None, &dir.join("store")).unwrap();
        let names = disk
            .parts
            .iter()
            .map(|part| part.file_name().unwrap().to_owned());
        disks.push((names.collect::<Vec<_>>(), joined(&disk)));
    }
    assert_eq!(disks[0], disks[1]);
    assert_eq!(disks[0], disks[2]);
}

#[test]
fn a_second_conversion_finds_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = one_layer(dir.path(), "x");
    layout(dir.path(), slice::from_ref(&manifest));
    let store = dir.path().join("new/store");
    let first = to_disk(dir.path(), None, &store).unwrap();
    assert!(first.converted);
    let diff_id = digest(&tar(&[Item::file("file", "x")]));
    let name = format!("{}-w{}.erofs", &diff_id[7..], bottle_image::WRITER_VERSION);
    assert_eq!(first.parts[1], store.join("layers").join(name));
    for path in first.parts.iter().chain([&first.descriptor]) {
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o644);
    }
    let second = to_disk(dir.path(), None, &store).unwrap();
    assert!(!second.converted);
    assert_eq!(
        (&second.descriptor, &second.parts),
        (&first.descriptor, &first.parts)
    );
    assert_eq!(read(&first)[&b"file"[..]].size, 1);
}

#[test]
fn altered_blobs_are_named_with_both_digests() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = one_layer(dir.path(), "x");
    layout(dir.path(), slice::from_ref(&manifest));
    let layer = first_layer(dir.path(), &manifest);
    for (what, descriptor) in [
        ("a layer has digest", &layer),
        ("manifest has digest", &manifest),
    ] {
        let path = blob_path(dir.path(), descriptor);
        let original = fs::read(&path).unwrap();
        // Every byte of a compressed layer counts: in its header, body and checksum.
        for at in [3, original.len() / 2, original.len() - 3] {
            let mut altered = original.clone();
            altered[at] ^= 1;
            fs::write(&path, &altered).unwrap();
            let message = failure(dir.path(), None);
            let (found, expected) = (digest(&altered), &descriptor["digest"]);
            assert!(message.starts_with(what), "{message}");
            assert!(message.contains(&found), "{message}");
            assert!(message.contains(expected.as_str().unwrap()), "{message}");
        }
        fs::write(&path, &original).unwrap();
    }
    to_disk(dir.path(), None, &dir.path().join("store")).unwrap();
}

#[test]
fn a_truncated_or_missing_layer_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = one_layer(dir.path(), "x");
    layout(dir.path(), slice::from_ref(&manifest));
    let layer = first_layer(dir.path(), &manifest);
    let path = blob_path(dir.path(), &layer);
    let size = fs::metadata(&path).unwrap().len();
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(size - 1)
        .unwrap();
    let digest = layer["digest"].as_str().unwrap();
    let expected = format!("layer {digest} has {} bytes, expected {size}", size - 1);
    let message = failure(dir.path(), None);
    assert!(message.starts_with(&expected), "{message}");
    fs::remove_file(&path).unwrap();
    let message = failure(dir.path(), None);
    assert!(
        message.contains(&format!("lacks layer {digest}")),
        "{message}"
    );
}

#[test]
fn a_layer_with_another_content_than_the_config_says_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let layer = blob(dir.path(), Pack::Gzip.oci(), &Pack::Gzip.bytes(&tar(&[])));
    let claimed = digest(b"something else");
    let config = json!({"rootfs": {"diff_ids": [claimed]}});
    let config = blob(dir.path(), CONFIG, config.to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    layout(
        dir.path(),
        &[blob(dir.path(), MANIFEST, manifest.to_string().as_bytes())],
    );
    let message = failure(dir.path(), None);
    assert!(
        message.starts_with("a layer's content (diff id) has digest"),
        "{message}"
    );
}

#[test]
fn documents_that_lie_about_themselves_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = blob(
        dir.path(),
        CONFIG,
        br#"{"rootfs":{"diff_ids":["sha256:00"]}}"#,
    );
    let layer = blob(dir.path(), Pack::Gzip.oci(), b"x");
    let cases: [(&str, Value, &str); 7] = [
        (
            MANIFEST,
            json!({"mediaType": INDEX, "config": config, "layers": []}),
            "contradicts",
        ),
        (
            MANIFEST,
            json!({"manifests": [], "config": config, "layers": []}),
            "contradicts",
        ),
        (
            MANIFEST,
            json!({"config": config, "layers": []}),
            "it lists 1 layers, the manifest 0",
        ),
        (
            MANIFEST,
            json!({"config": config, "layers": [layer]}),
            "not a sha256 digest",
        ),
        (MANIFEST, json!({"layers": []}), "missing field `config`"),
        (
            MANIFEST,
            json!({"config": layer, "layers": []}),
            "unsupported media type",
        ),
        (
            "text/plain",
            json!({"config": config, "layers": []}),
            "unsupported media type",
        ),
    ];
    for (media_type, document, expected) in cases {
        layout(
            dir.path(),
            &[blob(
                dir.path(),
                media_type,
                document.to_string().as_bytes(),
            )],
        );
        let message = failure(dir.path(), None);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn unknown_compressions_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for media_type in [
        "application/vnd.oci.image.layer.v1.tar+lz4",
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/vnd.docker.image.rootfs.diff.tar.xz",
        "application/vnd.oci.empty.v1+json",
        "",
    ] {
        let layer = blob(dir.path(), media_type, b"x");
        let config = json!({"rootfs": {"diff_ids": [digest(b"x")]}});
        let config = blob(dir.path(), CONFIG, config.to_string().as_bytes());
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        layout(
            dir.path(),
            &[blob(dir.path(), MANIFEST, manifest.to_string().as_bytes())],
        );
        let message = failure(dir.path(), None);
        let expected = format!("a layer has the unsupported media type `{media_type}`");
        assert_eq!(message, expected);
    }
}

#[test]
fn documents_have_a_size_limit() {
    let dir = tempfile::tempdir().unwrap();
    layout(dir.path(), &[]);
    let path = dir.path().join("index.json");
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(5 << 20)
        .unwrap();
    assert!(failure(dir.path(), None).contains("bytes of a file of the layout"));
    let mut huge = one_layer(dir.path(), "x");
    huge["size"] = json!(1u64 << 60);
    layout(dir.path(), &[huge]);
    assert!(failure(dir.path(), None).contains("bytes of a manifest"));
}

#[test]
fn indexes_that_never_end_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut descriptor = one_layer(dir.path(), "x");
    for _ in 0..6 {
        let index = json!({"mediaType": INDEX, "manifests": [descriptor]});
        descriptor = blob(dir.path(), INDEX, index.to_string().as_bytes());
    }
    layout(dir.path(), &[descriptor]);
    let error = find(dir.path(), None).unwrap_err();
    assert!(matches!(error, ImageError::Limit { .. }), "{error}");
}
