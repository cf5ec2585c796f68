//! Debian's `docker-registry`, filled by `skopeo`: what the registries of this suite imitate.

use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bottle_core::reporter::Silent;
use bottle_image::ImageDisk;
use serde_json::json;

use crate::archives::skopeo_copy;
use crate::bench::{Bench, leftovers};
use crate::calls::chain;
use crate::registry::certificates;

/// A registry of a test's own; it is killed with it.
struct Registry {
    child: Child,
    address: SocketAddr,
    data: PathBuf,
}

impl Registry {
    /// Starts one; `None`, said loudly, if the program is not installed.
    fn start(bench: &Bench, login: bool, tls: bool) -> Option<Self> {
        let Some(program) = program() else {
            eprintln!(
                "skipped: `docker-registry` is not installed: `cargo xtask setup` installs it"
            );
            return None;
        };
        let dir = bench.dir.path();
        let data = dir.join("registry");
        // The port is free now, and nobody else asks for it in the meantime.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let mut http = json!({"addr": address.to_string(), "secret": "of this test"});
        if tls {
            let (ca, leaf, key) = certificates(&["127.0.0.1"]);
            fs::write(dir.join("ca.pem"), ca).unwrap();
            fs::write(dir.join("leaf.pem"), leaf.pem()).unwrap();
            fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
            http["tls"] = json!({
                "certificate": dir.join("leaf.pem"),
                "key": dir.join("key.pem"),
            });
        }
        let mut config = json!({
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": data}, "delete": {"enabled": true}},
            "http": http,
        });
        if login {
            fs::write(dir.join("htpasswd"), HTPASSWD).unwrap();
            config["auth"] = json!({
                "htpasswd": {"realm": "test", "path": dir.join("htpasswd")},
            });
        }
        // JSON is YAML.
        let file = dir.join("registry.yml");
        fs::write(&file, config.to_string()).unwrap();
        let log = fs::File::create(dir.join("registry.log")).unwrap();
        let child = Command::new(program)
            .arg("serve")
            .arg(file)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let registry = Self {
            child,
            address,
            data,
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(address).is_err() {
            let log = fs::read_to_string(dir.join("registry.log")).unwrap();
            assert!(
                Instant::now() < deadline,
                "the registry does not answer: {log}"
            );
            thread::yield_now();
        }
        Some(registry)
    }

    fn host(&self) -> String {
        self.address.to_string()
    }

    /// Puts the bench's image there; false if `skopeo` is not installed.
    fn fill(&self, bench: &Bench, login: bool) -> bool {
        let from = format!("oci:{}:v1", bench.layout().display());
        let to = format!("docker://{}/team/app:v1", self.host());
        let mut arguments = vec!["--preserve-digests", "--dest-tls-verify=false"];
        if login {
            arguments.extend(["--dest-creds", "user:hunter2"]);
        }
        arguments.extend([from.as_str(), to.as_str()]);
        skopeo_copy(&arguments)
    }

    /// Where the registry keeps a blob.
    fn blob(&self, digest: &str) -> PathBuf {
        let hex = &digest[7..];
        let below = format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
        self.data.join(below)
    }

    fn pull(&self, bench: &Bench) -> Result<ImageDisk, String> {
        let source = format!("{}/team/app:v1", self.host()).parse().unwrap();
        let pulled = bottle_image::to_disk(&source, &bench.options, &bench.store(), &Silent);
        pulled.map_err(|error| chain(&error))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut dirs = env::split_paths(&path);
    dirs.find_map(|dir| Some(dir.join("docker-registry")).filter(|program| program.is_file()))
}

#[test]
fn a_real_registry_is_pulled_from_with_and_without_login_and_tls() {
    for (login, tls) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut bench = Bench::new();
        let Some(registry) = Registry::start(&bench, login, tls) else {
            return;
        };
        if !registry.fill(&bench, login) {
            return;
        }
        let host = registry.host();
        if tls {
            let message = registry.pull(&bench).unwrap_err();
            assert!(message.contains("name that CA's file for it"), "{message}");
            bench.rule(&host).ca = Some(bench.dir.path().join("ca.pem"));
        } else {
            bench.rule(&host).plain_http = true;
        }
        if login {
            let message = registry.pull(&bench).unwrap_err();
            assert!(
                message.contains(&format!("run `docker login {host}`")),
                "{message}"
            );
            let config = json!({"auths": {&host: {"auth": "dXNlcjp3cm9uZw=="}}});
            bench.docker_config(&config);
            let message = registry.pull(&bench).unwrap_err();
            assert!(
                message.contains("does not accept the stored credentials"),
                "{message}"
            );
            let config = json!({"auths": {&host: {"auth": "dXNlcjpodW50ZXIy"}}});
            bench.docker_config(&config);
        }
        assert_eq!(leftovers(&bench.store()), [""; 0]);
        bench.check(&registry.pull(&bench).unwrap());
    }
}

#[test]
fn a_real_registry_continues_a_download_and_is_found_out_when_it_is_damaged() {
    let mut bench = Bench::new();
    let Some(registry) = Registry::start(&bench, false, false) else {
        return;
    };
    if !registry.fill(&bench, false) {
        return;
    }
    bench.rule(&registry.host()).plain_http = true;
    let (digest, bytes) = bench.large();

    // Through a door that shuts in the middle of the blob: once.
    let door = Door::before(registry.address, 400_000);
    bench.rule(&door.host()).plain_http = true;
    let source = format!("{}/team/app:v1", door.host()).parse().unwrap();
    let disk = bottle_image::to_disk(&source, &bench.options, &bench.store(), &Silent);
    bench.check(&disk.unwrap_or_else(|error| panic!("{}", chain(&error))));
    assert!(door.was_shut(), "the door was never shut");
    fs::remove_dir_all(bench.store()).unwrap();

    // What an earlier pull left.
    fs::create_dir_all(bench.store().join("blobs")).unwrap();
    fs::write(bench.partial(), &bytes[..600_000]).unwrap();
    bench.check(&registry.pull(&bench).unwrap());
    fs::remove_dir_all(bench.store()).unwrap();

    // Damage in the registry's own storage.
    let blob = registry.blob(&digest);
    let mut damaged = bytes.clone();
    damaged[500_000] ^= 1;
    fs::write(&blob, &damaged).unwrap();
    let message = registry.pull(&bench).unwrap_err();
    assert!(message.starts_with("a layer has digest"), "{message}");
    fs::write(&blob, &bytes[..500_000]).unwrap();
    let message = registry.pull(&bench).unwrap_err();
    assert!(message.contains("has 500000 bytes, expected"), "{message}");
    fs::remove_dir_all(blob.parent().unwrap()).unwrap();
    let message = registry.pull(&bench).unwrap_err();
    assert!(
        message.contains(&format!("lacks layer {digest}")),
        "{message}"
    );
    assert_eq!(leftovers(&bench.store()), [""; 0]);
}

/// Passes connections on; the first one that brings more than so many bytes is shut.
struct Door {
    address: SocketAddr,
    shut: Arc<AtomicBool>,
}

impl Door {
    fn before(target: SocketAddr, after: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shut = Arc::new(AtomicBool::new(false));
        let state = Arc::clone(&shut);
        // It lives as long as the test's process: nothing is left of it but a port.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = Arc::clone(&state);
                thread::spawn(move || pass(client, target, after, &state));
            }
        });
        Self { address, shut }
    }

    fn host(&self) -> String {
        self.address.to_string()
    }

    fn was_shut(&self) -> bool {
        self.shut.load(Ordering::SeqCst)
    }
}

fn pass(mut client: TcpStream, target: SocketAddr, after: usize, shut: &AtomicBool) {
    let mut server = TcpStream::connect(target).unwrap();
    let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    thread::spawn(move || io::copy(&mut from, &mut to));
    let mut passed = 0;
    let mut buffer = [0; 8192];
    while let Ok(read) = server.read(&mut buffer) {
        if read == 0 || client.write_all(&buffer[..read]).is_err() {
            break;
        }
        passed += read;
        if passed > after && !shut.swap(true, Ordering::SeqCst) {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}

/// `user:hunter2`, bcrypt.
const HTPASSWD: &str = "user:$2b$04$ayGo3puZa/ceTXIrV4PA7O2YY5voFjxtWay3FQBH5Beee2h8sc10W\n";
