use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use bottle_core::images::LayerRecord;
use tempfile::TempDir;

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

/// A store with files as pulls leave them; nothing in them is looked at here.
struct Store {
    dir: TempDir,
    catalog: Catalog,
}

impl Store {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["names", "images", "layers", "blobs"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
        }
        let catalog = Catalog::new(dir.path());
        Self { dir, catalog }
    }

    fn write(&self, path: &str, bytes: usize) {
        fs::write(self.dir.path().join(path), vec![1; bytes]).unwrap();
    }

    /// Adds an image with these layers; returns its disk's descriptor.
    fn add(&self, name: &str, layers: &[&str]) -> PathBuf {
        let record = ImageRecord {
            name: name.to_owned(),
            manifest: Digest::of(name.as_bytes()).to_string(),
            added: 1,
            layers: layers
                .iter()
                .map(|layer| LayerRecord {
                    digest: Digest::of(b"blob").to_string(),
                    size: 10,
                    diff_id: Digest::of(layer.as_bytes()).to_string(),
                })
                .collect(),
            config: serde_json::json!({ "architecture": "amd64" }),
        };
        for layer in layers {
            self.write(&layer_file(layer), 8192);
        }
        let key = files::key(&record);
        self.write(&format!("images/{key}-w2.meta"), 4096);
        self.write(&format!("images/{key}-w2.vmdk"), 100);
        self.catalog.record(&record).unwrap();
        self.dir.path().join(format!("images/{key}-w2.vmdk"))
    }

    fn has(&self, path: &str) -> bool {
        self.dir.path().join(path).exists()
    }

    fn names(&self) -> Vec<String> {
        let listed = self.catalog.list().unwrap();
        listed.into_iter().map(|image| image.record.name).collect()
    }
}

fn layer_file(layer: &str) -> String {
    format!("layers/{}-w2.erofs", Digest::of(layer.as_bytes()).hex())
}

#[test]
fn images_are_found_by_name_and_their_sizes_are_told_apart() {
    let store = Store::new();
    store.add("b", &["base", "b"]);
    store.add("a", &["base", "a"]);
    store.add("other name of a", &["base", "a"]);
    assert_eq!(store.names(), ["a", "b", "other name of a"]);
    let found = store.catalog.get("b").unwrap().unwrap();
    assert_eq!(found.layers.len(), 2);
    assert_eq!(store.catalog.get("c").unwrap(), None);
    for image in store.catalog.list().unwrap() {
        // The disk's own two files take a block each, every layer two.
        assert_eq!((image.own_bytes, image.shared_bytes), (16_384, 8192));
        assert!(!image.in_use);
    }
}

#[test]
fn a_removed_image_leaves_what_others_need() {
    let store = Store::new();
    store.add("a", &["base", "a"]);
    let b = store.add("b", &["base", "b"]);
    store.add("b again", &["base", "b"]);
    let removed = store.catalog.remove("a").unwrap();
    assert_eq!(
        (removed.names, removed.bytes),
        (vec!["a".to_owned()], 16_384)
    );
    assert!(store.has(&layer_file("base")) && !store.has(&layer_file("a")));
    assert_eq!(store.catalog.remove("b").unwrap().bytes, 0);
    assert!(b.exists(), "another name has the same disk");
    store.catalog.remove("b again").unwrap();
    assert!(!b.exists() && !store.has(&layer_file("base")));
    let unknown = store.catalog.remove("a").unwrap_err();
    assert!(matches!(unknown, ImageError::NotStored { .. }), "{unknown}");
}

#[test]
fn an_image_in_use_stays() {
    let store = Store::new();
    let disk = store.add("a", &["base"]);
    let bottle = File::open(&disk).unwrap();
    bottle.lock_shared().unwrap();
    assert!(store.catalog.list().unwrap()[0].in_use);
    let refused = store.catalog.remove("a").unwrap_err();
    assert!(matches!(refused, ImageError::InUse { .. }), "{refused}");
    assert_eq!(store.catalog.prune(true).unwrap(), Removed::default());
    assert!(disk.exists() && store.has(&layer_file("base")));
    drop(bottle);
    assert_eq!(store.catalog.prune(true).unwrap().names, ["a"]);
    assert!(!disk.exists() && !store.has(&layer_file("base")));
}

#[test]
fn what_a_bottle_needs_to_start_again_stays_even_if_its_name_moved_on() {
    let store = Store::new();
    let disk = store.add("a", &["base"]);
    let layer = store.dir.path().join(layer_file("base"));
    let needing = Catalog::new(store.dir.path()).needing([disk.as_path(), layer.as_path()]);
    let refused = needing.remove("a").unwrap_err();
    assert!(matches!(refused, ImageError::InUse { .. }), "{refused}");
    store.add("a", &["another"]);
    needing.prune(false).unwrap();
    assert!(disk.exists() && layer.exists());
    store.catalog.prune(false).unwrap();
    assert!(!disk.exists() && !layer.exists());
}

#[test]
fn pruning_takes_leftovers_and_nothing_else() {
    let store = Store::new();
    let disk = store.add("a", &["base"]);
    store.write("blobs/cut-off.partial", 4096);
    store.write(&layer_file("nobody's"), 4096);
    store.write("images/0123-w1.vmdk", 4096);
    store.write("names/damaged.json", 10);
    let removed = store.catalog.prune(false).unwrap();
    assert_eq!((removed.names.len(), removed.bytes), (0, 3 * 4096));
    assert!(disk.exists() && store.has(&layer_file("base")));
    assert!(!store.has("blobs/cut-off.partial") && !store.has(&layer_file("nobody's")));
    assert_eq!(store.names(), ["a"]);
}

#[test]
fn pruning_takes_what_a_former_version_made_of_images_that_stay() {
    let store = Store::new();
    let disk = store.add("a", &["base"]);
    let key = files::key(&store.catalog.get("a").unwrap().unwrap());
    let former = [
        layer_file("base").replace("-w2.", "-w1."),
        layer_file("base").replace("-w2.erofs", "-w1.entries"),
        format!("images/{key}-w1.meta"),
        format!("images/{key}-w1.vmdk"),
    ];
    let later = layer_file("base").replace("-w2.", "-w3.");
    for path in former.iter().chain([&later]) {
        store.write(path, 4096);
    }
    let bottle = File::open(store.dir.path().join(&former[3])).unwrap();
    bottle.lock_shared().unwrap();
    assert_eq!(store.catalog.prune(false).unwrap(), Removed::default());
    drop(bottle);
    assert_eq!(store.catalog.prune(false).unwrap().bytes, 4 * 4096);
    assert!(!former.iter().any(|path| store.has(path)));
    assert!(disk.exists() && store.has(&layer_file("base")) && store.has(&later));
}

#[test]
fn pruning_takes_what_nobody_writes_any_more() {
    let store = Store::new();
    store.add("a", &["base"]);
    let [left, busy] = ["erofs", "entries"].map(|extension| {
        let path = layer_file("base").replace("erofs", extension);
        format!("{path}.partial")
    });
    store.write(&left, 4096);
    store.write(&busy, 4096);
    let writer = File::open(store.dir.path().join(&busy)).unwrap();
    writer.lock().unwrap();
    assert_eq!(store.catalog.prune(false).unwrap().bytes, 4096);
    assert!(store.has(&busy) && !store.has(&left));
}

#[test]
fn nothing_is_removed_while_images_are_added() {
    let store = Store::new();
    store.write(&layer_file("of a pull"), 4096);
    let pull = store.catalog.hold().unwrap();
    let another = store.catalog.hold().unwrap();
    let (done, pruned) = channel();
    let catalog = store.catalog.clone();
    thread::spawn(move || done.send(catalog.prune(true).unwrap()).unwrap());
    // What the pull does meanwhile.
    store.add("a", &["of a pull"]);
    pruned.try_recv().unwrap_err();
    drop((pull, another));
    let removed = pruned.recv_timeout(DEADLINE).unwrap();
    assert_eq!(removed.names, ["a"]);
}

#[test]
fn a_record_that_lies_about_its_name_is_not_believed() {
    let store = Store::new();
    store.add("a", &["base"]);
    let record = fs::read(store.catalog.path_of("a")).unwrap();
    fs::write(store.catalog.path_of("b"), record).unwrap();
    assert_eq!(store.catalog.get("b").unwrap(), None);
    assert_eq!(store.names(), ["a"]);
}

#[test]
fn a_store_that_is_not_there_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::new(&dir.path().join("nowhere"));
    assert_eq!(catalog.list().unwrap(), []);
    assert_eq!(catalog.get("a").unwrap(), None);
}
