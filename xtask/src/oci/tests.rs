//! The layout, as other people's tools see it.

use super::*;
use crate::lock::sha256_of;
use crate::run::Run;
use crate::task_setup::is_root;
use crate::tree::which;

fn about() -> About {
    About {
        reference: "small".into(),
        architecture: "amd64",
        created: "2026-01-01T00:00:00Z".into(),
        created_by: "a test".into(),
        user: "agent".into(),
        env: vec!["PATH=/bin".into()],
        working_dir: "/home/agent".into(),
        cmd: vec!["bash".into()],
        labels: BTreeMap::new(),
    }
}

fn layout(directory: &Path) -> PathBuf {
    let tar = directory.join("layer.tar");
    let mut builder = tar::Builder::new(File::create(&tar).unwrap());
    let files = [
        ("etc/passwd", "agent:x:1000:1000::/home/agent:/bin/bash\n"),
        ("etc/greeting", "hello"),
    ];
    for (name, body) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o640);
        header.set_size(body.len() as u64);
        builder
            .append_data(&mut header, name, body.as_bytes())
            .unwrap();
    }
    builder.finish().unwrap();
    let layout = directory.join("layout");
    write(&layout, &tar, &about()).unwrap();
    layout
}

/// Says why a check with another program was left out.
fn skip(why: &str) {
    println!("skipped: {why}");
}

#[test]
fn every_blob_is_named_by_its_digest() {
    let directory = tempfile::tempdir().unwrap();
    let blobs = layout(directory.path()).join("blobs/sha256");
    let mut count = 0;
    for entry in fs::read_dir(blobs).unwrap() {
        let entry = entry.unwrap();
        let digest = sha256_of(&entry.path()).unwrap();
        assert_eq!(entry.file_name().to_str(), Some(digest.as_str()));
        count += 1;
    }
    assert_eq!(count, 3, "layer, config, manifest");
}

#[test]
fn the_same_layer_gives_the_same_bytes() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let read = |layout: PathBuf| fs::read(layout.join("index.json")).unwrap();
    assert_eq!(read(layout(one.path())), read(layout(two.path())));
}

#[test]
fn skopeo_reads_the_configuration() {
    if which("skopeo").is_none() {
        return skip("skopeo is not installed");
    }
    let directory = tempfile::tempdir().unwrap();
    let layout = layout(directory.path());
    let json = Run::new("skopeo")
        .args(["inspect", "--config"])
        .arg(format!("oci:{}", layout.display()))
        .output()
        .unwrap();
    let config: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(config["config"]["User"], "agent");
    assert_eq!(config["config"]["WorkingDir"], "/home/agent");
    assert_eq!(config["config"]["Cmd"][0], "bash");
}

#[test]
fn umoci_unpacks_the_layer() {
    if which("umoci").is_none() {
        return skip("umoci is not installed");
    }
    let directory = tempfile::tempdir().unwrap();
    let image = format!("{}:small", layout(directory.path()).display());
    Run::new("umoci")
        .args(["stat", "--json", "--image", &image])
        .quiet()
        .go()
        .unwrap();
    let bundle = directory.path().join("bundle");
    let rootless: &[&str] = if is_root() { &[] } else { &["--rootless"] };
    Run::new("umoci")
        .arg("unpack")
        .args(rootless)
        .args(["--image", &image])
        .arg(&bundle)
        .go()
        .unwrap();
    assert_eq!(
        fs::read(bundle.join("rootfs/etc/greeting")).unwrap(),
        b"hello"
    );
}
