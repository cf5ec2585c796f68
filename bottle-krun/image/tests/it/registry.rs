//! A registry on loopback that can be told to misbehave: a thread per connection, one request
//! each, a closure that decides.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::corpus::digest;

/// A request that came in.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// With the query.
    pub(crate) target: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
    /// How many requests for the same target came before.
    pub(crate) before: usize,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(crate) fn is_blob(&self, digest: &str) -> bool {
        self.target.ends_with(&format!("/blobs/{digest}"))
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) fault: Fault,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Fault {
    /// Closes the connection after so many bytes of the body.
    Cut(usize),
    /// In chunks instead of with a length.
    Chunked,
    /// Sends the body again and again, in chunks.
    Endless,
    #[default]
    None,
    /// Sends nothing at all.
    Silence,
    /// Sends nothing after so many bytes of the body.
    Stall(usize),
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            fault: Fault::None,
        }
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn fault(mut self, fault: Fault) -> Self {
        self.fault = fault;
        self
    }

    /// A refusal as registries word it.
    pub(crate) fn error(status: u16, message: &str) -> Self {
        let body = serde_json::json!({"errors": [{"code": "CODE", "message": message}]});
        Self::new(status, body.to_string())
    }
}

type Handler = dyn Fn(&Seen) -> Reply + Send + Sync;

/// A running server; it ends when it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    handler: Box<Handler>,
    tls: Option<Arc<ServerConfig>>,
    seen: Mutex<Vec<Seen>>,
    stop: AtomicBool,
}

impl Server {
    pub(crate) fn start(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_with(None, handler)
    }

    pub(crate) fn start_with(
        tls: Option<Arc<ServerConfig>>,
        handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            handler: Box::new(handler),
            tls,
            seen: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let thread = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Self {
            address,
            shared,
            thread: Some(thread),
        }
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// The requests whose target ends so.
    pub(crate) fn seen_of(&self, end: &str) -> Vec<Seen> {
        let mut seen = self.seen();
        seen.retain(|seen| seen.target.ends_with(end));
        seen
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            let stream = stream.unwrap();
            // What goes wrong here is the client's doing, which the test sees at its side.
            let _ = match &shared.tls {
                None => serve(stream, &shared),
                Some(tls) => {
                    let connection = ServerConnection::new(Arc::clone(tls)).unwrap();
                    serve(StreamOwned::new(connection, stream), &shared)
                }
            };
        });
    }
}

fn serve(stream: impl Read + Write, shared: &Shared) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        lines.push(line.to_owned());
    }
    let mut words = lines[0].split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let headers: BTreeMap<String, String> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let seen = {
        let mut all = shared.seen.lock().unwrap();
        let seen = Seen {
            before: all.iter().filter(|seen| seen.target == target).count(),
            method,
            target,
            headers,
            body: String::from_utf8(body).unwrap(),
        };
        all.push(seen.clone());
        seen
    };
    send(&mut stream, (shared.handler)(&seen))
}

fn send(stream: &mut BufReader<impl Read + Write>, reply: Reply) -> io::Result<()> {
    let Reply {
        status,
        headers,
        body,
        fault,
    } = reply;
    if fault == Fault::Silence {
        return until_hung_up(stream);
    }
    let out = stream.get_mut();
    let mut head = format!("HTTP/1.1 {status} Whatever\r\nConnection: close\r\n");
    for (name, value) in &headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    match fault {
        Fault::Chunked | Fault::Endless => head.push_str("Transfer-Encoding: chunked\r\n\r\n"),
        _ if headers.iter().any(|(name, _)| name == "Content-Length") => head.push_str("\r\n"),
        Fault::Cut(_) | Fault::None | Fault::Silence | Fault::Stall(_) => {
            head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        }
    }
    out.write_all(head.as_bytes())?;
    match fault {
        Fault::Cut(length) => out.write_all(&body[..length])?,
        Fault::Stall(length) => {
            out.write_all(&body[..length])?;
            out.flush()?;
            return until_hung_up(stream);
        }
        Fault::Chunked | Fault::Endless => loop {
            for chunk in body.chunks(10_000) {
                out.write_all(format!("{:x};x=y\r\n", chunk.len()).as_bytes())?;
                out.write_all(chunk)?;
                out.write_all(b"\r\n")?;
            }
            if fault == Fault::Chunked {
                out.write_all(b"0\r\nTrailer: x\r\n\r\n")?;
                break;
            }
        },
        Fault::None | Fault::Silence => out.write_all(&body)?,
    }
    out.flush()
}

fn until_hung_up(stream: &mut impl Read) -> io::Result<()> {
    io::copy(stream, &mut io::sink()).map(|_| ())
}

/// What a layout directory holds, as a registry serves it.
#[derive(Clone, Debug)]
pub(crate) struct Repo {
    pub(crate) dir: PathBuf,
    /// Name -> digest and media type of a manifest or index.
    pub(crate) tags: BTreeMap<String, (String, String)>,
}

impl Repo {
    /// Serves a layout; its `index.json` names the tags.
    pub(crate) fn new(dir: &Path) -> Self {
        let index = fs::read(dir.join("index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let tags = index["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|descriptor| {
                let name = &descriptor["annotations"]["org.opencontainers.image.ref.name"];
                let of = (text(&descriptor["digest"]), text(&descriptor["mediaType"]));
                (text(name), of)
            });
        Self {
            dir: dir.to_owned(),
            tags: tags.collect(),
        }
    }

    pub(crate) fn path(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs/sha256").join(&digest[7..])
    }

    pub(crate) fn answer(&self, seen: &Seen) -> Reply {
        let target = seen.target.strip_prefix("/v2/").unwrap_or_default();
        if let Some((_, name)) = target.split_once("/manifests/") {
            let of = |(digest, media_type): &(String, String)| (digest.clone(), media_type.clone());
            let by_digest = self.tags.values().find(|(digest, _)| digest == name);
            let found = self.tags.get(name).or(by_digest).map(of);
            // A child of an index says itself what it is.
            let (digest, media_type) = found.unwrap_or_else(|| (name.to_owned(), String::new()));
            if !digest.starts_with("sha256:") || !self.path(&digest).exists() {
                return Reply::error(404, "manifest unknown");
            }
            let reply = Reply::new(200, fs::read(self.path(&digest)).unwrap());
            let reply = reply.header("Docker-Content-Digest", digest);
            return if media_type.is_empty() {
                reply
            } else {
                reply.header("Content-Type", media_type)
            };
        }
        let Some((_, digest)) = target.split_once("/blobs/") else {
            return Reply::error(404, "no such thing");
        };
        if !self.path(digest).exists() {
            return Reply::error(404, "blob unknown");
        }
        ranged(seen, fs::read(self.path(digest)).unwrap())
    }
}

/// A whole blob, or the range that is asked for.
pub(crate) fn ranged(seen: &Seen, blob: Vec<u8>) -> Reply {
    let range = seen
        .header("range")
        .and_then(|range| range.strip_prefix("bytes="));
    let Some(from) = range.and_then(|range| range.strip_suffix('-')) else {
        return Reply::new(200, blob);
    };
    let from: usize = from.parse().unwrap();
    let span = format!("bytes {from}-{}/{}", blob.len() - 1, blob.len());
    Reply::new(206, &blob[from..]).header("Content-Range", span)
}

/// A CA of its own, and a server's side of TLS for these names.
pub(crate) fn tls(names: &[&str]) -> (String, Arc<ServerConfig>) {
    let (ca, leaf, key) = certificates(names);
    let chain = vec![leaf.der().clone()];
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    (ca, Arc::new(config))
}

/// The CA as PEM, a leaf for these names, and the leaf's key.
pub(crate) fn certificates(names: &[&str]) -> (String, rcgen::Certificate, KeyPair) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let ca = authority.self_signed(&authority_key).unwrap().pem();
    let issuer = Issuer::new(authority, authority_key);
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(names).unwrap();
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    (ca, leaf, key)
}

/// Bytes that no compressor makes smaller, always the same for a seed.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}

/// The digest of a blob of a layout that is neither manifest nor config: its largest.
pub(crate) fn largest_blob(dir: &Path) -> (String, Vec<u8>) {
    let blobs = fs::read_dir(dir.join("blobs/sha256")).unwrap();
    let largest = blobs
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .max_by_key(Vec::len)
        .unwrap();
    (digest(&largest), largest)
}
