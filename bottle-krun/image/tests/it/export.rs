//! Images written out again: by whom the archive is read, and that nothing is lost.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use bottle_core::image::ImageSource;
use bottle_core::reporter::Silent;
use bottle_image::{Catalog, ImageDisk, ImageError, SourceOptions, export, pull};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::bench::files;
use crate::calls::chain;
use crate::corpus::{Item, Pack, image, layout, named, nasty, tar};
use crate::facts::assert_same;
use crate::reader::{read, read_bytes};

const NAME: &str = "registry.example/team/app:v1";

/// A store that holds one image.
struct Store {
    dir: TempDir,
    disk: ImageDisk,
}

impl Store {
    fn new(layers: &[Vec<Item>], config: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("layout");
        let tars: Vec<_> = layers
            .iter()
            .map(|items| (tar(items), Pack::Zstd))
            .collect();
        layout(&from, &[named(image(&from, &tars, config), "x")]);
        let source = ImageSource::OciLayout {
            dir: from,
            reference: None,
        };
        let disk = put(&dir.path().join("store"), &source, NAME);
        Self { dir, disk }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Exports the image into a file.
    #[track_caller]
    fn export(&self) -> PathBuf {
        let path = self.dir.path().join("image.tar");
        let mut file = fs::File::create(&path).unwrap();
        let exported = export(&self.path(), NAME, &mut file).unwrap();
        assert_eq!(exported.bytes, fs::metadata(&path).unwrap().len());
        path
    }
}

fn put(store: &Path, source: &ImageSource, name: &str) -> ImageDisk {
    let options = SourceOptions::default();
    let (disk, _) = pull(source, Some(name), &options, store, &Silent)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    disk
}

fn stack() -> Vec<Vec<Item>> {
    vec![
        nasty(),
        vec![
            Item::file("names/.wh..wh..opq", ""),
            Item::file("names/new", "n").owner(4_000_000_000, 1),
            Item::file("x/.wh.null", ""),
            Item::file(".wh.deep", ""),
            Item::link("y/of-a-lower-layer", "x/setuid"),
            Item::file("large", vec![7; 600_000]).xattr("user.empty", ""),
        ],
        vec![Item::file("large", "small")],
        vec![Item::file("large", "small")],
    ]
}

fn config() -> Value {
    json!({
        "Entrypoint": ["/init"],
        "Env": ["PATH=/bin", "A=b=c"],
        "Labels": {"b": "2", "a": "1"},
        "StopSignal": "SIGINT",
        "User": "1000:1000",
        "Volumes": {"/data": {}},
        "WorkingDir": "/x",
    })
}

#[test]
fn an_image_that_comes_back_is_the_same_layer_by_layer() {
    let store = Store::new(&stack(), &config());
    let archive = store.export();
    for source in ["oci-archive", "docker-archive"] {
        let other = store.dir.path().join(source);
        let source: ImageSource = format!("{source}:{}", archive.display()).parse().unwrap();
        let back = put(&other, &source, NAME);
        assert_same(&read(&store.disk), &read(&back), "before and after");
        assert_eq!(back.image.config, store.disk.image.config);
        // The third and fourth layer are one: it stands in the archive and on the disk once.
        assert_eq!((store.disk.parts.len(), back.parts.len()), (4, 4));
        for (before, after) in store.disk.parts.iter().zip(&back.parts).skip(1) {
            let [before, after] = [before, after].map(|path| read_bytes(&fs::read(path).unwrap()));
            assert_same(&before, &after, "the layer");
        }
        // What was exported once is exported as it is.
        let mut again = Vec::new();
        export(&other, NAME, &mut again).unwrap();
        assert!(again == fs::read(&archive).unwrap(), "another archive");
    }
}

/// The members of an archive.
fn members(archive: &Path) -> Vec<(String, Vec<u8>)> {
    let mut archive = ::tar::Archive::new(fs::File::open(archive).unwrap());
    let read = |entry: io::Result<::tar::Entry<'_, _>>| {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        io::copy(&mut entry, &mut bytes).unwrap();
        (entry.path().unwrap().to_str().unwrap().to_owned(), bytes)
    };
    archive.entries().unwrap().map(read).collect()
}

#[test]
fn the_config_is_kept_but_for_the_layers() {
    let store = Store::new(
        &[vec![Item::file("./a", "1")], vec![Item::file("b", "2")]],
        &config(),
    );
    // Fields that nothing here looks at.
    let record = Catalog::new(&store.path()).get(NAME).unwrap().unwrap();
    let path = files(&store.path().join("names")).remove(0);
    let path = store.path().join("names").join(path);
    let mut text: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    text["config"]["history"] = json!([{"created_by": "one"}, {"created_by": "two"}]);
    text["config"]["author"] = json!("somebody");
    fs::write(&path, text.to_string()).unwrap();
    let members = members(&store.export());
    let json = |name: &str| -> Value {
        let found = members.iter().find(|(found, _)| found == name);
        serde_json::from_slice(&found.unwrap().1).unwrap()
    };
    let docker = json("manifest.json");
    assert_eq!(docker[0]["RepoTags"], json!([NAME]));
    let new = json(docker[0]["Config"].as_str().unwrap());
    let mut expected = text["config"].clone();
    let diff_ids = new["rootfs"]["diff_ids"].as_array().unwrap();
    assert_eq!(diff_ids.len(), 2);
    assert_ne!(
        diff_ids[0], record.layers[0].diff_id,
        "its framing is our own"
    );
    expected["rootfs"]["diff_ids"] = json!(diff_ids);
    assert_eq!(new, expected);
    let index = json("index.json");
    let entry = &index["manifests"][0];
    assert_eq!(
        entry["annotations"]["org.opencontainers.image.ref.name"],
        "v1"
    );
    assert_eq!(entry["annotations"]["io.containerd.image.name"], NAME);
    assert_eq!(entry["platform"]["architecture"], new["architecture"]);
}

/// What a program says; `None` if it is not installed.
fn said(program: &str, args: &[&str]) -> Option<String> {
    let output = match Command::new(program).args(args).output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("skipped: {program} is not installed");
            return None;
        }
        Err(error) => panic!("{program}: {error}"),
    };
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {text}");
    Some(text)
}

#[test]
fn skopeo_reads_and_copies_an_archive() {
    let store = Store::new(&stack(), &config());
    let archive = store.export();
    let archive = archive.to_str().unwrap();
    let source = format!("oci-archive:{archive}");
    let Some(inspected) = said("skopeo", &["inspect", &source]) else {
        return;
    };
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected["Labels"], json!({"a": "1", "b": "2"}));
    assert_eq!(inspected["Layers"].as_array().unwrap().len(), 4);
    // A copy checks every digest.
    for (number, source) in [format!("{source}:v1"), format!("docker-archive:{archive}")]
        .iter()
        .enumerate()
    {
        let copy = store.dir.path().join(format!("copy-{number}"));
        let target = format!("oci:{}:x", copy.display());
        said("skopeo", &["--insecure-policy", "copy", source, &target]);
        let back = store.dir.path().join(format!("store-{number}"));
        let back = put(&back, &target.parse().unwrap(), "x");
        assert_same(&read(&store.disk), &read(&back), "before and after");
    }
}

#[test]
fn umoci_unpacks_an_archive() {
    let items = vec![
        Item::dir("etc").owner(7, 8),
        Item::file("etc/passwd", "root").mode(0o600),
        Item::symlink("etc/link", "passwd"),
        Item::link("hard", "etc/passwd"),
    ];
    let upper = vec![Item::file("etc/.wh.link", "")];
    let store = Store::new(&[items, upper], &config());
    let layout = store.dir.path().join("unpacked");
    let mut archive = ::tar::Archive::new(fs::File::open(store.export()).unwrap());
    archive.unpack(&layout).unwrap();
    let image = format!("{}:v1", layout.display());
    let bundle = store.dir.path().join("bundle");
    let args = [
        "unpack",
        "--rootless",
        "--image",
        &image,
        bundle.to_str().unwrap(),
    ];
    if said("umoci", &args).is_some() {
        let root = bundle.join("rootfs");
        assert_eq!(fs::read(root.join("hard")).unwrap(), b"root");
        assert_eq!(files(&root), ["etc/passwd", "hard"]);
    }
}

#[test]
fn a_hard_link_says_whose_it_is_to_those_who_look_there() {
    let items = vec![
        Item::file("a", "1").owner(7, 8).mode(0o4711).mtime(9, 5),
        Item::link("b", "a"),
    ];
    let store = Store::new(&[items], &config());
    let members = members(&store.export());
    let (_, layer) = members.last().unwrap();
    let mut layer = ::tar::Archive::new(&layer[..]);
    let link = layer.entries().unwrap().nth(1).unwrap().unwrap();
    let header = link.header();
    assert_eq!(header.entry_type(), ::tar::EntryType::Link);
    assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (7, 8));
    assert_eq!(header.mode().unwrap(), 0o4711);
}

#[test]
fn an_image_that_is_not_here_or_not_whole_is_not_exported() {
    let store = Store::new(&[vec![Item::file("a", "1")]], &config());
    let mut out = Vec::new();
    let error = export(&store.path(), "registry.example/other:v1", &mut out).unwrap_err();
    assert!(matches!(error, ImageError::NotStored { .. }), "{error}");
    fs::remove_file(store.disk.parts[1].with_extension("entries")).unwrap();
    let error = export(&store.path(), NAME, &mut out).unwrap_err();
    assert!(matches!(error, ImageError::Incomplete { .. }), "{error}");
    assert!(out.is_empty());
}

#[test]
fn a_reader_that_goes_away_is_an_error_and_the_end() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            match self.0.min(buf.len()) {
                0 => Err(ErrorKind::StorageFull.into()),
                room => {
                    self.0 -= room;
                    Ok(room)
                }
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let store = Store::new(&stack(), &config());
    let before = files(store.dir.path());
    for room in [0, 100, 300_000, 1_000_000] {
        let error = export(&store.path(), NAME, &mut Full(room)).unwrap_err();
        let ImageError::Export { source } = error else {
            panic!("{error:?}");
        };
        assert_eq!(source.kind(), ErrorKind::StorageFull, "{room}");
    }
    assert_eq!(files(store.dir.path()), before);
}
