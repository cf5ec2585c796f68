//! What the tests of registries share: an image, a store, options, and how a pull ended.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bottle_core::reporter::Silent;
use bottle_image::{ImageDisk, ImageError, RegistryRule, SourceOptions};
use serde_json::json;
use tempfile::TempDir;

use crate::calls::chain;
use crate::corpus::{Item, Pack, image, layout, named, tar};
use crate::reader::read;
use crate::registry::{Repo, Server, largest_blob, noise};

/// A layout with one image `app:v1` of two layers, a store, and options that wait for nothing long.
pub(crate) struct Bench {
    pub(crate) dir: TempDir,
    pub(crate) options: SourceOptions,
}

/// The size of the larger layer's content.
pub(crate) const LARGE: usize = 900_000;

impl Bench {
    pub(crate) fn new() -> Self {
        Self::packed(Pack::Gzip)
    }

    pub(crate) fn packed(pack: Pack) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layers = [
            (tar(&[Item::file("large", noise(LARGE, 7))]), pack),
            (tar(&[Item::file("small", "s")]), pack),
        ];
        let bench = Self {
            options: patient(),
            dir,
        };
        let manifest = image(&bench.layout(), &layers, &json!({"Cmd": ["/app"]}));
        layout(&bench.layout(), &[named(manifest, "v1")]);
        bench
    }

    pub(crate) fn layout(&self) -> PathBuf {
        self.dir.path().join("layout")
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub(crate) fn repo(&self) -> Repo {
        Repo::new(&self.layout())
    }

    /// The digest of the manifest.
    pub(crate) fn manifest(&self) -> String {
        self.repo().tags["v1"].0.clone()
    }

    /// The digest and bytes of the larger layer's blob.
    pub(crate) fn large(&self) -> (String, Vec<u8>) {
        largest_blob(&self.layout())
    }

    /// The file that a download of the larger layer leaves.
    pub(crate) fn partial(&self) -> PathBuf {
        let name = format!("blobs/{}.partial", &self.large().0[7..]);
        self.store().join(name)
    }

    /// The rule of a host, made if there is none.
    pub(crate) fn rule(&mut self, host: &str) -> &mut RegistryRule {
        let rules = &mut self.options.registries;
        let at = rules.iter().position(|rule| rule.host == host);
        let at = at.unwrap_or_else(|| {
            rules.push(RegistryRule::new(host));
            rules.len() - 1
        });
        &mut rules[at]
    }

    /// Lets a server be spoken to in plain HTTP.
    pub(crate) fn plain(&mut self, server: &Server) {
        self.rule(&server.host()).plain_http = true;
    }

    /// Gives up soon on a server that sends nothing.
    pub(crate) fn hasty(&mut self) {
        self.options.timeouts.stall = Duration::from_millis(500);
    }

    /// A `config.json`.
    pub(crate) fn docker_config(&mut self, config: &serde_json::Value) {
        let home = self.dir.path().join("docker");
        fs::create_dir_all(&home).unwrap();
        fs::write(home.join("config.json"), config.to_string()).unwrap();
        self.options.docker_config = Some(home.clone());
        self.options.helper_path = Some(home.into_os_string());
    }

    /// A login for a server.
    pub(crate) fn login(&mut self, server: &Server, user: &str, password: &str) {
        let auth = STANDARD.encode(format!("{user}:{password}"));
        self.docker_config(&json!({"auths": {server.host(): {"auth": auth}}}));
    }

    pub(crate) fn pull(&self, server: &Server, name: &str) -> Result<ImageDisk, ImageError> {
        let source = format!("{}/{name}", server.host()).parse().unwrap();
        bottle_image::to_disk(&source, &self.options, &self.store(), &Silent)
    }

    /// Pulls what [`new`](Self::new) made and compares it.
    #[track_caller]
    pub(crate) fn succeeds(&self, server: &Server) {
        let disk = self
            .pull(server, "team/app:v1")
            .unwrap_or_else(|e| panic!("{}", chain(&e)));
        self.check(&disk);
    }

    #[track_caller]
    pub(crate) fn check(&self, disk: &ImageDisk) {
        assert_eq!(disk.image.manifest, self.manifest());
        assert_eq!(disk.image.config.cmd, ["/app"]);
        let found = read(disk);
        assert_eq!(found[&b"large"[..]].size, LARGE as u64);
        assert_eq!(found[&b"small"[..]].size, 1);
        let store = self.store();
        let name = |path: &PathBuf| {
            let below = path.strip_prefix(&store).unwrap();
            below.to_str().unwrap().to_owned()
        };
        let mut expected: Vec<String> = disk
            .parts
            .iter()
            .chain([&disk.descriptor])
            .map(name)
            .collect();
        for part in &disk.parts {
            if part
                .extension()
                .is_some_and(|extension| extension == "erofs")
            {
                expected.push(name(&part.with_extension("entries")));
            }
        }
        expected.sort();
        assert_eq!(
            files(&self.store()),
            expected,
            "something was left in the store"
        );
    }

    /// Pulls, fails, and leaves nothing but perhaps the smaller layer, which was whole; returns the
    /// error with its causes.
    #[track_caller]
    pub(crate) fn fails(&self, server: &Server) -> String {
        let message = self.fails_leaving(server);
        assert_eq!(
            leftovers(&self.store()),
            [""; 0],
            "something was left in the store"
        );
        message
    }

    /// Pulls and fails.
    #[track_caller]
    pub(crate) fn fails_leaving(&self, server: &Server) -> String {
        let message = chain(&self.pull(server, "team/app:v1").unwrap_err());
        assert!(!message.contains("hunter2"), "{message}");
        assert!(!message.contains('\u{1b}'), "{message}");
        assert!(message.len() < 2000, "{message}");
        message
    }
}

/// Options whose waits are over soon, except for bytes: a busy machine is no stalling server.
pub(crate) fn patient() -> SourceOptions {
    let mut options = SourceOptions::default();
    options.timeouts.backoff = Duration::from_millis(5);
    options.timeouts.retry_after = Duration::from_secs(1);
    options
}

/// The files below a directory, sorted.
pub(crate) fn files(dir: &Path) -> Vec<String> {
    fn walk(dir: &Path, below: &str, found: &mut Vec<String>) {
        let Ok(entries) = fs::read_dir(dir) else {
            return;
        };
        for entry in entries {
            let entry = entry.unwrap();
            let name = format!("{below}{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), &format!("{name}/"), found);
            } else {
                found.push(name);
            }
        }
    }
    let mut found = Vec::new();
    walk(dir, "", &mut found);
    found.sort();
    found
}

/// The files of a store but for those of layers that are smaller than the one that tests spoil.
pub(crate) fn leftovers(store: &Path) -> Vec<String> {
    let mut left = files(store);
    // The download of the smaller one may have been stopped by the failure of the other.
    left.retain(|name| {
        let size = fs::metadata(store.join(name)).map_or(0, |found| found.len());
        !name.starts_with("blobs/") || size > 10_000
    });
    let images: Vec<String> = left
        .iter()
        .filter(|name| name.ends_with(".erofs"))
        .cloned()
        .collect();
    for image in images {
        if fs::metadata(store.join(&image)).unwrap().len() < LARGE as u64 {
            let stem = image.trim_end_matches("erofs");
            left.retain(|name| !name.starts_with(stem));
        }
    }
    left
}

/// Serves the bench's image.
pub(crate) fn serve(bench: &Bench) -> Server {
    let repo = bench.repo();
    Server::start(move |seen| repo.answer(seen))
}
