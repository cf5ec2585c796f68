//! From a registry on loopback to a disk that boots.
//!
//! The image is images/base; a second one has one more layer. The registry is Debian's
//! `docker-registry`, which reads its blobs from the page cache. Peers do the same in steps:
//! `skopeo copy`, `umoci unpack`, `mkfs.erofs`. The floor is what any reader has to do: fetch,
//! decompress and hash the same layers.

use std::fs;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use super::{Figure, median_seconds};
use crate::report::say;
use crate::run::Run;
use crate::tree::{Tree, which};
use crate::{task_images, task_setup};

const BENCH: &str = "images";
/// How long the registry may take to listen.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn measure(tree: &Tree) -> Result<Vec<Figure>> {
    for program in ["curl", "mkfs.erofs", "skopeo", "umoci", "docker-registry"] {
        if which(program).is_none() {
            bail!("`{program}` is missing; run `cargo xtask setup`");
        }
    }
    task_setup::for_machines(tree)?;
    let base = task_images::ensure(tree, "base")?;
    tree.cargo()
        .args(["build", "--release", "--quiet", "--locked"])
        .args(["--package", "bottle-cli"])
        .go()?;
    let world = World::new(tree, &base)?;
    say("measuring pulls");
    let ours = median_seconds(|| {
        let store = world.fresh("ours")?;
        world.pull(&store, "base")
    })?;
    say("measuring skopeo, umoci and mkfs.erofs");
    let peer = median_seconds(|| world.peer())?;
    say("measuring the floor");
    let floor = median_seconds(|| world.floor())?;
    let cold = Figure::new(BENCH, "pull to disk", "s", ours)
        .floor(floor)
        .peer("skopeo+umoci+mkfs.erofs", peer);

    let second = {
        let mut times = Vec::new();
        for _ in 0..super::ROUNDS {
            let store = world.fresh("ours")?;
            world.pull(&store, "base")?;
            let start = Instant::now();
            world.pull(&store, "second")?;
            times.push(start.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        times[super::ROUNDS / 2]
    };
    let second = Figure::new(BENCH, "second image, shared base", "s", second);

    let store = world.fresh("ours")?;
    world.pull(&store, "base")?;
    let again = median_seconds(|| world.pull(&store, "base"))?;
    let again = Figure::new(BENCH, "pull of what is here", "s", again);

    let store = world.fresh("ours")?;
    let peak = world.peak_mib(&store)?;
    let peak = Figure::new(BENCH, "peak memory of a pull", "MiB", peak);
    Ok(vec![cold, second, again, peak])
}

/// A registry with two images, and a place for what comes of them.
struct World {
    dir: TempDir,
    bottle: PathBuf,
    registry: Child,
    port: u16,
}

impl World {
    fn new(tree: &Tree, base: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("bottle-bench.")
            .tempdir_in(tree.target())?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = dir.path().join("registry.yml");
        let root = dir.path().join("registry");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: \
             '{}'}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
            root.display()
        );
        fs::write(&config, text)?;
        let registry = Run::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .quiet()
            .start()?;
        let world = Self {
            bottle: tree.target().join("release/bottle"),
            dir,
            registry,
            port,
        };
        world.wait()?;
        world.fill(base)?;
        Ok(world)
    }

    fn wait(&self) -> Result<()> {
        // A condition with a deadline: it listens.
        let limit = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if Instant::now() > limit {
                bail!("docker-registry does not listen");
            }
            thread::park_timeout(Duration::from_millis(20));
        }
        Ok(())
    }

    fn fill(&self, base: &Path) -> Result<()> {
        let path = |name: &str| self.dir.path().join(name);
        let layout = path("layout");
        let tagged = |tag: &str| format!("oci:{}:{tag}", layout.display());
        Run::new("skopeo")
            .args(["copy", "--quiet"])
            .arg(format!("oci:{}", base.display()))
            .arg(tagged("base"))
            .go()?;
        let more = path("more");
        fs::create_dir_all(more.join("opt"))?;
        fs::write(more.join("opt/more"), vec![7; 20 << 20])?;
        let layer = path("more.tar");
        Run::new("tar")
            .arg("-C")
            .arg(&more)
            .arg("-cf")
            .arg(&layer)
            .arg("opt")
            .go()?;
        Run::new("umoci")
            .args(["raw", "add-layer", "--image"])
            .arg(format!("{}:base", layout.display()))
            .args(["--tag", "second"])
            .arg(&layer)
            .go()?;
        for name in ["base", "second"] {
            Run::new("skopeo")
                .args(["copy", "--quiet", "--dest-tls-verify=false"])
                .arg(tagged(name))
                .arg(format!("docker://{}", self.reference(name)))
                .go()?;
        }
        Ok(())
    }

    fn reference(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}:latest", self.port)
    }

    /// An empty directory.
    fn fresh(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.path().join(name);
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
        fs::create_dir(&dir)?;
        // This registry has no TLS, which has to be said.
        let config = dir.join("config/bottle");
        fs::create_dir_all(&config)?;
        let text = format!(
            "[registry.\"127.0.0.1:{}\"]\nplain_http = true\n",
            self.port
        );
        fs::write(config.join("registries.toml"), text)?;
        Ok(dir)
    }

    fn at_home(&self, run: Run, home: &Path) -> Run {
        run.env("HOME", home)
            .env("XDG_CACHE_HOME", home.join("cache"))
            .env("XDG_CONFIG_HOME", home.join("config"))
            .env("XDG_STATE_HOME", home.join("state"))
    }

    fn pull(&self, home: &Path, name: &str) -> Result<()> {
        let run = Run::new(&self.bottle)
            .args(["image", "pull", "--quiet"])
            .arg(self.reference(name));
        self.at_home(run, home).go()
    }

    fn peak_mib(&self, home: &Path) -> Result<f64> {
        let report = home.join("time");
        let run = Run::new("time")
            .args(["-f", "%M", "-o"])
            .arg(&report)
            .arg(&self.bottle)
            .args(["image", "pull", "--quiet"])
            .arg(self.reference("base"));
        self.at_home(run, home).go()?;
        let kib: f64 = fs::read_to_string(&report)?.trim().parse()?;
        Ok(kib / 1024.0)
    }

    fn peer(&self) -> Result<()> {
        let dir = self.fresh("peer")?;
        let layout = dir.join("layout");
        Run::new("skopeo")
            .args(["copy", "--quiet", "--src-tls-verify=false"])
            .arg(format!("docker://{}", self.reference("base")))
            .arg(format!("oci:{}:base", layout.display()))
            .go()?;
        let bundle = dir.join("bundle");
        Run::new("umoci")
            .args(["unpack", "--image"])
            .arg(format!("{}:base", layout.display()))
            .arg(&bundle)
            .quiet()
            .go()?;
        Run::new("mkfs.erofs")
            .arg(dir.join("disk.erofs"))
            .arg(bundle.join("rootfs"))
            .quiet()
            .go()
    }

    fn floor(&self) -> Result<()> {
        let base = format!("http://127.0.0.1:{}/v2/base", self.port);
        let manifest = Run::new("curl")
            .args(["-sS", "--fail", "-H"])
            .arg("Accept: application/vnd.oci.image.manifest.v1+json")
            .arg(format!("{base}/manifests/latest"))
            .output()?;
        let manifest: Value = serde_json::from_str(&manifest)?;
        for layer in manifest["layers"].as_array().context("no layers")? {
            let digest = layer["digest"].as_str().context("no digest")?;
            let pipe =
                format!("curl -sS --fail {base}/blobs/{digest} | gunzip | sha256sum >/dev/null");
            Run::new("sh").args(["-c", &pipe]).go()?;
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ended = self.registry.kill();
        let _ended = self.registry.wait();
    }
}
