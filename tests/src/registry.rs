//! A registry on loopback that serves one OCI layout, without TLS.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result};
use serde_json::Value;

/// A running registry; it serves as long as the test program lives.
#[derive(Debug)]
pub struct Registry {
    /// `HOST:PORT`, as references spell it.
    pub host: String,
    asked: Arc<AtomicUsize>,
}

impl Registry {
    /// Serves the one image of a layout, under any repository and tag.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn start(layout: &Path) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let host = listener.local_addr()?.to_string();
        let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
        let manifest = index["manifests"][0]["digest"].as_str();
        let manifest = manifest.context("the layout lists no image")?.to_owned();
        let blobs = layout.join("blobs/sha256");
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (blobs, manifest) = (blobs.clone(), manifest.clone());
                count.fetch_add(1, Ordering::SeqCst);
                // Whatever goes wrong here shows at the other end.
                thread::spawn(move || answer(&client, &blobs, &manifest));
            }
        });
        Ok(Self { host, asked })
    }

    /// How many requests there were so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// Answers one request and closes.
fn answer(mut client: &TcpStream, blobs: &Path, manifest: &str) -> io::Result<()> {
    let mut lines = BufReader::new(client).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    while lines
        .next()
        .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
    {}
    let path = request.split(' ').nth(1).unwrap_or_default();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (file, kind) = match parts[..] {
        ["v2", .., "manifests", _] => (
            blob(blobs, manifest),
            "application/vnd.oci.image.manifest.v1+json",
        ),
        ["v2", .., "blobs", digest] => (blob(blobs, digest), "application/octet-stream"),
        _ => (PathBuf::new(), ""),
    };
    let Ok(mut file) = File::open(file) else {
        return client.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    };
    let length = file.metadata()?.len();
    write!(
        client,
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    )?;
    io::copy(&mut file, &mut client).map(drop)
}

fn blob(blobs: &Path, digest: &str) -> PathBuf {
    let hex = digest.trim_start_matches("sha256:");
    // A digest that is a path would lead out of the directory.
    blobs.join(hex.replace('/', "_"))
}
