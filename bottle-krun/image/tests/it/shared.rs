//! The store: what images share, what is made again, and who made it.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;

use bottle_core::images::{NeededLayer, PullReporter};
use bottle_core::reporter::Silent;
use bottle_image::{EntryProblem, ImageDisk, ImageError};
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::calls::{to_disk, to_disk_told};
use crate::corpus::{CONFIG, Item, Kind, MANIFEST, Pack, blob, image, layout, named, simple, tar};
use crate::facts::{Tree, assert_same, sha256};
use crate::hostile::stored;
use crate::reader::{joined, read, read_bytes};

/// Keeps what a conversion told.
#[derive(Debug, Default)]
struct Told {
    layers: Mutex<Vec<NeededLayer>>,
    read: Mutex<BTreeMap<usize, u64>>,
    done: Mutex<Vec<usize>>,
}

impl PullReporter for Told {
    fn found(&self, layers: &[NeededLayer]) {
        let mut told = self.layers.lock().unwrap();
        assert!(told.is_empty(), "told twice");
        told.extend_from_slice(layers);
    }

    fn read(&self, layer: usize, bytes: u64) {
        *self.read.lock().unwrap().entry(layer).or_default() += bytes;
    }

    fn done(&self, layer: usize) {
        self.done.lock().unwrap().push(layer);
    }
}

impl Told {
    fn present(&self) -> Vec<bool> {
        let layers = self.layers.lock().unwrap();
        layers.iter().map(|layer| layer.stored).collect()
    }

    fn done(&self) -> Vec<usize> {
        let mut done = self.done.lock().unwrap().clone();
        done.sort_unstable();
        done
    }
}

/// A directory with a layout of several named images and a store.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new(images: &[(&str, &[Vec<Item>])]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let manifests: Vec<Value> = images
            .iter()
            .map(|(name, layers)| {
                let tars: Vec<_> = layers
                    .iter()
                    .map(|items| (tar(items), Pack::Gzip))
                    .collect();
                named(image(dir.path(), &tars, &json!({})), name)
            })
            .collect();
        layout(dir.path(), &manifests);
        Self(dir)
    }

    fn store(&self) -> PathBuf {
        self.0.path().join("store")
    }

    #[track_caller]
    fn disk(&self, name: &str, reporter: &dyn PullReporter) -> ImageDisk {
        to_disk_told(self.0.path(), Some(name), &self.store(), reporter).unwrap()
    }
}

fn base() -> Vec<Item> {
    vec![
        Item::dir("./"),
        Item::dir("usr"),
        Item::file("usr/tool", vec![7; 10_000]),
        Item::file("usr/old", "old"),
    ]
}

#[test]
fn images_share_the_layers_that_they_have_in_common() {
    let bench = Bench::new(&[
        ("one", &[base(), vec![Item::file("one", "1")]]),
        ("two", &[base(), vec![Item::file("two", "2")]]),
    ]);
    let told = Told::default();
    let one = bench.disk("one", &told);
    assert_eq!(
        (told.present(), told.done()),
        (vec![false, false], vec![0, 1])
    );
    for (index, layer) in told.layers.lock().unwrap().iter().enumerate() {
        let read = told.read.lock().unwrap()[&index];
        assert_eq!(read, layer.size, "every byte of {} is told", layer.digest);
    }
    let inode = fs::metadata(&one.parts[1]).unwrap().ino();

    let told = Told::default();
    let two = bench.disk("two", &told);
    assert_eq!((told.present(), told.done()), (vec![true, false], vec![1]));
    assert_eq!(told.read.lock().unwrap().keys().collect::<Vec<_>>(), [&1]);
    assert_eq!(one.parts[1], two.parts[1]);
    assert_eq!(fs::metadata(&two.parts[1]).unwrap().ino(), inode);
    assert_ne!(one.parts[2], two.parts[2]);
    assert!(read(&one).contains_key(&b"one"[..]));
    assert!(!read(&two).contains_key(&b"one"[..]));

    let told = Told::default();
    assert!(!bench.disk("two", &told).converted);
    assert_eq!((told.present(), told.done()), (vec![true, true], vec![]));
}

#[test]
fn images_of_the_same_layers_are_one_disk() {
    let dir = tempfile::tempdir().unwrap();
    let layers = [(tar(&base()), Pack::Gzip)];
    let one = named(image(dir.path(), &layers, &json!({})), "one");
    let two = named(image(dir.path(), &layers, &json!({"User": "u"})), "two");
    layout(dir.path(), &[one, two]);
    let store = dir.path().join("store");
    let one = to_disk(dir.path(), Some("one"), &store).unwrap();
    let two = to_disk(dir.path(), Some("two"), &store).unwrap();
    assert_eq!((&one.descriptor, &one.parts), (&two.descriptor, &two.parts));
    assert_eq!(
        (two.converted, two.image.config.user.as_str()),
        (false, "u")
    );
}

#[test]
fn a_layer_that_comes_twice_is_on_the_disk_once() {
    let again = vec![Item::file("a", "again"), Item::dir("d").mode(0o700)];
    let between = vec![
        Item::file(".wh.a", ""),
        Item::file("b", "b"),
        Item::dir("d").mode(0o711),
    ];
    let bench = Bench::new(&[("test", &[again.clone(), between, again])]);
    let told = Told::default();
    let disk = bench.disk("test", &told);
    assert_eq!(disk.parts.len(), 3);
    assert_eq!(
        (told.present(), told.done()),
        (vec![false, false, true], vec![0, 1])
    );
    let tree = read(&disk);
    assert_eq!(tree[&b"a"[..]].sha256, sha256(b"again"));
    assert_eq!(tree[&b"d"[..]].mode, 0o040_700);
    assert_eq!(tree.len(), 4);
}

#[test]
fn concurrent_callers_convert_a_layer_once() {
    let bench = Bench::new(&[
        ("one", &[base(), vec![Item::file("one", "1")]]),
        ("two", &[base(), vec![Item::file("two", "2")]]),
    ]);
    let told: Vec<Told> = (0..8).map(|_| Told::default()).collect();
    thread::scope(|scope| {
        for (number, told) in told.iter().enumerate() {
            let name = if number % 2 == 0 { "one" } else { "two" };
            let bench = &bench;
            scope.spawn(move || bench.disk(name, told));
        }
    });
    let readers = told
        .iter()
        .filter(|told| told.read.lock().unwrap().contains_key(&0));
    assert_eq!(readers.count(), 1, "the base was read once");
    assert_eq!(stored(&bench.store()).len(), 2 * 2 + 3 * 2);
}

#[test]
fn damaged_files_of_the_store_are_made_again() {
    let upper = vec![Item::file("x", vec![1; 5000]), Item::link("y", "usr/old")];
    let bench = Bench::new(&[("test", &[base(), upper])]);
    let first = bench.disk("test", &Silent);
    let expected = read(&first);
    let bytes: Vec<_> = stored(&bench.store())
        .iter()
        .map(|name| (name.clone(), fs::read(bench.store().join(name)).unwrap()))
        .collect();
    assert_eq!(bytes.len(), 6);
    // A journal is only looked at to make an image.
    let forget = || fs::remove_file(&first.descriptor).unwrap();
    for (name, original) in &bytes {
        let path = bench.store().join(name);
        let is_journal = path.extension().unwrap() == "entries";
        let middle = original.len() / 2;
        for damage in ["cut", "emptied", "altered", "removed"] {
            match damage {
                "cut" => fs::write(&path, &original[..original.len() - 1]).unwrap(),
                "emptied" => fs::write(&path, "").unwrap(),
                "altered" => {
                    // What is checked of the large files is their superblock.
                    let at = if name.ends_with("erofs") || name.ends_with("meta") {
                        1030
                    } else {
                        middle
                    };
                    let file = OpenOptions::new().write(true).open(&path).unwrap();
                    file.write_all_at(&[original[at] ^ 1], at as u64).unwrap();
                }
                _ => fs::remove_file(&path).unwrap(),
            }
            if is_journal {
                forget();
            }
            let told = Told::default();
            let again = bench.disk("test", &told);
            assert!(again.converted, "{name} {damage}");
            let of_layer = name.starts_with("layers/");
            assert_eq!(told.done().len(), usize::from(of_layer), "{name} {damage}");
            assert_same(&read(&again), &expected, name);
        }
    }
    for (name, original) in &bytes {
        assert!(
            fs::read(bench.store().join(name)).unwrap() == *original,
            "{name}"
        );
    }
}

#[test]
fn a_bad_layer_spoils_the_image_and_not_its_neighbors() {
    let bad = vec![Item::file("a", vec![3; 100_000]), Item::file("../evil", "")];
    let bench = Bench::new(&[("bad", &[base(), bad.clone()]), ("worse", &[bad, base()])]);
    for name in ["bad", "worse"] {
        let error = to_disk(bench.0.path(), Some(name), &bench.store()).unwrap_err();
        let ImageError::BadEntry { path, source, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(
            (path.as_str(), source),
            ("../evil", EntryProblem::EscapingPath)
        );
        let left = stored(&bench.store());
        assert!(
            left.iter().all(|name| name.starts_with("layers/")),
            "{left:?}"
        );
        assert!(left.len() == 2 || left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_hundred_and_twenty_seven_layers_are_one_disk() {
    let layers: Vec<Vec<Item>> = (0..127)
        .map(|number: u32| {
            vec![
                Item::dir("d").mode(number),
                Item::file(format!("d/{number}"), vec![1; number as usize * 100]),
                Item::file("changed", number.to_string()),
                Item::file(format!("d/.wh.{}", number.saturating_sub(3)), ""),
            ]
        })
        .collect();
    let bench = Bench::new(&[("test", &layers)]);
    let disk = bench.disk("test", &Silent);
    assert_eq!(disk.parts.len(), 128);
    let tree = read(&disk);
    assert_eq!(tree[&b"changed"[..]].sha256, sha256(b"126"));
    assert_eq!(tree[&b"d"[..]].mode, 0o040_000 | 126);
    let names: Vec<_> = tree.keys().filter(|path| path.starts_with(b"d/")).collect();
    assert_eq!(names, [&b"d/124"[..], b"d/125", b"d/126"]);
    assert_eq!(tree[&b"d/126"[..]].sha256, sha256(&[1; 12_600]));
}

#[test]
fn a_layers_own_image_has_overlayfs_marks_and_lacks_links_to_lower_layers() {
    let upper = vec![
        Item::dir("usr").mode(0o700),
        Item::file("usr/.wh..wh..opq", ""),
        Item::file("usr/new", "new"),
        Item::link("usr/newer", "usr/new"),
        Item::file(".wh.gone", ""),
        Item::link("kept", "usr/old"),
        Item::link("deeper/kept", "kept"),
    ];
    let bench = Bench::new(&[("test", &[base(), upper])]);
    let disk = bench.disk("test", &Silent);
    let merged = read(&disk);
    for path in ["kept", "deeper/kept"] {
        let facts = &merged[path.as_bytes()];
        assert_eq!((facts.links, &facts.sha256), (2, &sha256(b"old")), "{path}");
    }
    assert!(!merged.contains_key(&b"usr/old"[..]), "hidden by the mark");

    let own: Tree = read_bytes(&fs::read(&disk.parts[2]).unwrap());
    let paths: Vec<_> = own
        .keys()
        .map(|path| path.escape_ascii().to_string())
        .collect();
    assert_eq!(paths, ["", "deeper", "gone", "usr", "usr/new", "usr/newer"]);
    let gone = &own[&b"gone"[..]];
    assert_eq!((gone.mode, gone.rdev), (0o020_000, 0));
    let opaque = &own[&b"usr"[..]].xattrs[&b"trusted.overlay.opaque"[..]];
    assert_eq!(opaque, b"y");
    assert_eq!(own[&b"usr/new"[..]].links, 2);
}

/// Where another process of this test finds the layout that it is to convert.
const OTHER: &str = "BOTTLE_TEST_CONVERT";

/// Runs one of these tests as another process.
fn other_process(test: &str, dir: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", &format!("shared::{test}"), "--nocapture"])
        .env(OTHER, dir)
        .stdout(Stdio::null());
    command
}

#[test]
fn a_conversion_that_was_killed_anywhere_is_done_by_the_next_one() {
    if let Some(dir) = env::var_os(OTHER).map(PathBuf::from) {
        to_disk(&dir, None, &dir.join("store")).unwrap();
        return;
    }
    let test = "a_conversion_that_was_killed_anywhere_is_done_by_the_next_one";
    let noise = |seed: u32| -> Vec<u8> {
        (0..4_000_000u32)
            .map(|at| (at.wrapping_mul(seed) >> 24) as u8)
            .collect()
    };
    let upper = vec![
        Item::file("upper", noise(2_654_435_761)),
        Item::link("y", "usr/old"),
    ];
    let mut lower = base();
    lower.push(Item::file("lower", noise(2_246_822_519)));
    let bench = Bench::new(&[("test", &[lower, upper])]);
    let whole = bench.0.path().join("whole");
    let expected = read(&to_disk(bench.0.path(), None, &whole).unwrap());
    let mut names: Vec<String> = stored(&whole)
        .iter()
        .map(|n| format!("{n}.partial"))
        .collect();
    names.extend(stored(&whole));
    for name in names {
        let store = bench.store();
        let watched = store.join(&name);
        let mut child = other_process(test, bench.0.path()).spawn().unwrap();
        // What comes and goes unseen ends with the process.
        while !watched.exists() && child.try_wait().unwrap().is_none() {
            thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let disk = bench.disk("test", &Silent);
        assert_same(&read(&disk), &expected, &name);
        assert_eq!(stored(&store), stored(&whole), "{name}");
        fs::remove_dir_all(&store).unwrap();
    }
}

/// A layer of one directory with many names, written as it goes.
fn crowded(out: impl Write, entries: u32) {
    let mut builder = tar::Builder::new(out);
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_mtime(1);
    for number in 0..entries {
        let content = number.to_le_bytes();
        // Every tenth one is a file with content.
        let size = if number % 10 == 0 { 4 } else { 0 };
        header.set_size(size as u64);
        header
            .set_path(format!("crowd/a-name-of-usual-length-{number:06}"))
            .unwrap();
        header.set_cksum();
        builder.append(&header, &content[..size]).unwrap();
    }
    builder.into_inner().unwrap().flush().unwrap();
}

/// A layout with one layer that need not fit into memory.
fn streamed(dir: &Path, write: impl FnOnce(&mut dyn Write)) {
    struct Hashing<W>(W, Sha256, u64);
    impl<W: Write> Write for Hashing<W> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let written = self.0.write(bytes)?;
            self.1.update(&bytes[..written]);
            self.2 += written as u64;
            Ok(written)
        }

        fn flush(&mut self) -> io::Result<()> {
            self.0.flush()
        }
    }
    let name = |hash: Sha256| -> String {
        let hex = hash
            .finalize()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>();
        format!("sha256:{hex}")
    };
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let temporary = blobs.join("layer");
    let file = BufWriter::new(File::create(&temporary).unwrap());
    let packed = GzEncoder::new(Hashing(file, Sha256::new(), 0), flate2::Compression::fast());
    let mut plain = Hashing(packed, Sha256::new(), 0);
    write(&mut plain);
    let Hashing(packed, diff_id, _) = plain;
    let Hashing(mut file, hash, size) = packed.finish().unwrap();
    file.flush().unwrap();
    let digest = name(hash);
    fs::rename(&temporary, blobs.join(&digest[7..])).unwrap();
    let layer = json!({"mediaType": Pack::Gzip.oci(), "digest": digest, "size": size});
    let config = json!({"rootfs": {"diff_ids": [name(diff_id)]}});
    let config = blob(dir, CONFIG, config.to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    layout(dir, &[blob(dir, MANIFEST, manifest.to_string().as_bytes())]);
}

#[test]
fn a_directory_of_a_hundred_thousand_names_is_converted_in_little_memory() {
    if let Some(dir) = env::var_os(OTHER).map(PathBuf::from) {
        // The other process: its peak is the conversion's alone.
        to_disk(&dir, None, &dir.join("store")).unwrap();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let peak = status
            .lines()
            .find(|line| line.starts_with("VmHWM"))
            .unwrap();
        return eprintln!("{peak}");
    }
    let dir = tempfile::tempdir().unwrap();
    streamed(dir.path(), |out| crowded(out, 100_000));
    let test = "a_directory_of_a_hundred_thousand_names_is_converted_in_little_memory";
    let output = other_process(test, dir.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{output:?}");
    let peak = text.split("VmHWM:").nth(1).unwrap();
    let peak: u64 = peak.split_whitespace().next().unwrap().parse().unwrap();
    eprintln!("peak: {peak} KiB");
    assert!(peak < 64 << 10, "{peak} KiB");

    let disk = to_disk(dir.path(), None, &dir.path().join("store")).unwrap();
    assert!(!disk.converted);
    let tree = read(&disk);
    assert_eq!(tree.len(), 100_002);
    let last = &tree[&b"crowd/a-name-of-usual-length-099990"[..]];
    assert_eq!(last.sha256, sha256(&99_990u32.to_le_bytes()));
}

#[test]
#[ignore = "4 GiB are decompressed and hashed several times"]
fn a_file_of_more_than_four_gibibytes_is_whole() {
    let size = (4u64 << 30) + 10;
    let dir = tempfile::tempdir().unwrap();
    streamed(dir.path(), |out| {
        let mut builder = tar::Builder::new(out);
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(1);
        header.set_size(size);
        header.set_path("huge").unwrap();
        header.set_cksum();
        let body = io::repeat(0).take(size - 10).chain(&b"the end..."[..]);
        builder.append(&header, body).unwrap();
        header.set_size(5);
        header.set_path("behind").unwrap();
        header.set_cksum();
        builder.append(&header, &b"after"[..]).unwrap();
        builder.finish().unwrap();
    });
    let disk = to_disk(dir.path(), None, &dir.path().join("store")).unwrap();
    let layer = File::open(&disk.parts[1]).unwrap();
    let found = layer.metadata().unwrap();
    assert!(found.len() > size);
    assert!(found.blocks() * 512 < 16 << 20, "what is zero is a hole");
    let mut end = [0; 10];
    layer.read_exact_at(&mut end, 4096 + size - 10).unwrap();
    assert_eq!(&end, b"the end...");
    let mut behind = [0; 5];
    let at = 4096 + size.next_multiple_of(4096);
    layer.read_exact_at(&mut behind, at).unwrap();
    assert_eq!(&behind, b"after");
    // The inode's size has more than 32 bits: the metadata's blocks are few enough to look.
    let metadata = fs::read(&disk.parts[0]).unwrap();
    let sizes = metadata
        .windows(8)
        .filter(|bytes| **bytes == size.to_le_bytes());
    assert_eq!(sizes.count(), 1);
}

#[test]
fn kinds_that_follow_each_other_at_one_path_leave_the_last() {
    let kinds = [
        Kind::File(vec![1; 9000]),
        Kind::Dir,
        Kind::Symlink(b"x".to_vec()),
        Kind::Fifo,
        Kind::Char(1, 3),
        Kind::File(b"second".to_vec()),
    ];
    for last in 0..kinds.len() {
        let mut items: Vec<_> = kinds
            .iter()
            .map(|kind| Item::node("a", kind.clone()))
            .collect();
        items.rotate_left(last);
        let dir = tempfile::tempdir().unwrap();
        simple(dir.path(), &[items.clone()]);
        let disk = to_disk(dir.path(), None, &dir.path().join("store")).unwrap();
        let only = Bench::new(&[("only", &[vec![items.pop().unwrap()]])]);
        assert_same(
            &read(&disk),
            &read(&only.disk("only", &Silent)),
            "all and the last",
        );
        let own = read_bytes(&fs::read(&disk.parts[1]).unwrap());
        assert_same(&own, &read(&disk), "a layer that is all of an image");
        assert!(joined(&disk).len().is_multiple_of(4096));
    }
}
