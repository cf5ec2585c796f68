//! Servers on loopback that write down what reached them.

use std::future::pending;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::{StreamExt, stream};
use http::request::Parts;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn as server;
use hyper::service::service_fn;
use hyper::upgrade;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::raw::{frame, read_frame};
use crate::support::{Body, TestCa, empty, text};

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Arrived {
    pub(crate) line: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

/// What an origin has seen.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) connections: AtomicUsize,
    /// Bytes of streamed request bodies so far.
    pub(crate) received: AtomicUsize,
    /// Request bodies that broke off.
    pub(crate) broken: AtomicUsize,
    /// Requests for `/hang`.
    pub(crate) hung: AtomicUsize,
    pub(crate) requests: Mutex<Vec<Arrived>>,
}

impl Log {
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> Vec<Arrived> {
        self.requests.lock().unwrap().clone()
    }
}

/// A server on loopback.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    pub(crate) log: Arc<Log>,
}

impl Origin {
    /// Serves TLS with these protocols.
    pub(crate) async fn tls(ca: &TestCa, name: &str, alpn: &[&str]) -> Self {
        Self::start(Some(ca.server_config(name, alpn))).await
    }

    /// Serves plain HTTP/1.1.
    pub(crate) async fn plain() -> Self {
        Self::start(None).await
    }

    async fn start(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::new(Log::default());
        let seen = Arc::clone(&log);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                seen.connections.fetch_add(1, Ordering::SeqCst);
                let (log, tls) = (Arc::clone(&seen), tls.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| serve(Arc::clone(&log), request));
                    let Some(tls) = tls else {
                        let _ = server::http1::Builder::new()
                            .serve_connection(TokioIo::new(tcp), service)
                            .with_upgrades()
                            .await;
                        return;
                    };
                    let Ok(stream) = TlsAcceptor::from(tls).accept(tcp).await else {
                        return;
                    };
                    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                        let _ = server::http2::Builder::new(TokioExecutor::new())
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                    } else {
                        let _ = server::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .with_upgrades()
                            .await;
                    }
                });
            }
        });
        Self { address, log }
    }
}

async fn serve(log: Arc<Log>, mut request: Request<Incoming>) -> Result<Response<Body>, io::Error> {
    if request.uri().path() == "/ws" {
        return Ok(web_socket(&log, &mut request));
    }
    let line = format!(
        "{} {}",
        request.method(),
        request.uri().path_and_query().unwrap()
    );
    let path = request.uri().path().to_owned();
    let (parts, mut body) = request.into_parts();
    match path.as_str() {
        // Reads a megabyte, then nothing more, and never answers.
        "/stall" => {
            while log.received.load(Ordering::SeqCst) < 1 << 20 {
                let Some(Ok(frame)) = body.frame().await else {
                    break;
                };
                let count = frame.data_ref().map_or(0, Bytes::len);
                log.received.fetch_add(count, Ordering::SeqCst);
            }
            pending::<()>().await;
        }
        "/early" => {
            // As servers do that want their answer to be read.
            tokio::spawn(async move { while let Some(Ok(_)) = body.frame().await {} });
            let mut response = Response::new(text("no more"));
            *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
            return Ok(response);
        }
        // Counts a request that was given up.
        "/hang" => {
            log.hung.fetch_add(1, Ordering::SeqCst);
            let _gone = Gone(Arc::clone(&log));
            pending::<()>().await;
        }
        "/reset" => return Err(io::Error::other("as asked")),
        "/big" => {
            let chunk = Bytes::from(vec![b'x'; 64 << 10]);
            let frames =
                stream::iter((0..BIG / (64 << 10)).map(move |_| Ok(Frame::data(chunk.clone()))));
            return Ok(Response::new(StreamBody::new(frames).boxed_unsync()));
        }
        "/count" => {
            let mut count = 0;
            loop {
                match body.frame().await {
                    None => break,
                    Some(Ok(frame)) => {
                        let more = frame.data_ref().map_or(0, Bytes::len);
                        count += more;
                        log.received.fetch_add(more, Ordering::SeqCst);
                    }
                    Some(Err(error)) => {
                        log.broken.fetch_add(1, Ordering::SeqCst);
                        return Err(io::Error::other(error));
                    }
                }
            }
            return Ok(Response::new(text(&count.to_string())));
        }
        "/reflect" => return Ok(reflect(&parts)),
        // Takes one value of a header and no other.
        "/auth" => {
            let wanted = parts.uri.query().unwrap_or_default();
            let given = parts.headers.get("x-api-key");
            let is_right = given.is_some_and(|given| given == wanted);
            let body = body.collect().await.map_err(io::Error::other)?;
            log.requests.lock().unwrap().push(Arrived {
                line,
                headers: parts.headers,
                body: body.to_bytes(),
                trailers: None,
            });
            let mut response = Response::new(text("as you say"));
            if !is_right {
                *response.status_mut() = StatusCode::UNAUTHORIZED;
            }
            return Ok(response);
        }
        // Answers at once and echoes what comes as it comes.
        "/echo" => {
            let frames = stream::unfold(body, |mut body| async move {
                let frame = body.frame().await?.ok()?;
                Some((Ok(frame), body))
            });
            return Ok(Response::new(StreamBody::new(frames).boxed_unsync()));
        }
        _ => {}
    }
    let collected = body.collect().await.map_err(io::Error::other)?;
    let trailers = collected.trailers().cloned();
    log.requests.lock().unwrap().push(Arrived {
        line,
        headers: parts.headers,
        body: collected.to_bytes(),
        trailers,
    });
    Ok(Response::builder()
        .header("x-origin", "yes")
        .header("alt-svc", "h3=\":443\"")
        .body(text("hello"))
        .unwrap())
}

/// Becomes a WebSocket that sends back every frame; `?no` is answered with 403, `?other` with a
/// protocol that nobody asked for.
fn web_socket(log: &Arc<Log>, request: &mut Request<Incoming>) -> Response<Body> {
    let how = request.uri().query().unwrap_or_default().to_owned();
    log.requests.lock().unwrap().push(Arrived {
        line: format!("GET {}", request.uri()),
        headers: request.headers().clone(),
        body: Bytes::new(),
        trailers: None,
    });
    if how == "no" {
        let mut response = Response::new(text("not you"));
        *response.status_mut() = StatusCode::FORBIDDEN;
        return response;
    }
    let upgrade = upgrade::on(request);
    let log = Arc::clone(log);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await.unwrap());
        while let Ok((first, payload)) = read_frame(&mut stream).await {
            log.received.fetch_add(payload.len(), Ordering::SeqCst);
            let echo = frame(first, &payload, None);
            if stream.write_all(&echo).await.is_err() {
                break;
            }
        }
        log.broken.fetch_add(1, Ordering::SeqCst);
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("connection", "Upgrade")
        .header("upgrade", if how == "other" { "else" } else { "websocket" })
        .header("sec-websocket-accept", "as-computed")
        .body(empty())
        .unwrap()
}

/// Sends back what came in `x-api-key` or `authorization`, in the form that the query names.
fn reflect(parts: &Parts) -> Response<Body> {
    let value = ["x-api-key", "authorization"]
        .iter()
        .find_map(|name| parts.headers.get(*name))
        .map_or("", |value| value.to_str().unwrap());
    let bytes = value.as_bytes();
    let framed = |text: String| format!("[{text}]");
    let mut response = Response::builder().header("x-origin", "yes");
    let how = parts.uri.query().unwrap_or_default();
    let body = match how {
        "plain" => framed(value.to_owned()),
        "header" => {
            response = response.header("x-echo", format!("you said {value}"));
            response = response.header(value, "a name");
            String::new()
        }
        "base64" => framed(BASE64_STANDARD.encode([b"user:", bytes].concat())),
        "base64url" => framed(BASE64_URL_SAFE_NO_PAD.encode(bytes)),
        "hex" => framed(bytes.iter().map(|b| format!("{b:02x}")).collect()),
        "percent" => framed(bytes.iter().map(|b| format!("%{b:02X}")).collect()),
        "json" => framed(
            value
                .encode_utf16()
                .map(|unit| format!("\\u{unit:04x}"))
                .collect(),
        ),
        "gzip" | "unknown" => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder
                .write_all(framed(value.to_owned()).as_bytes())
                .unwrap();
            let coding = if how == "gzip" { "gzip" } else { "compress" };
            let body = Full::new(Bytes::from(encoder.finish().unwrap())).boxed_unsync();
            return response
                .header("content-encoding", coding)
                .body(body)
                .unwrap();
        }
        "split" | "trailer" => {
            let text = framed(value.to_owned());
            let pieces: Vec<Bytes> = text
                .as_bytes()
                .chunks(3)
                .map(Bytes::copy_from_slice)
                .collect();
            let mut frames: Vec<_> = pieces
                .into_iter()
                .map(|piece| Ok(Frame::data(piece)))
                .collect();
            if how == "trailer" {
                let mut trailers = HeaderMap::new();
                trailers.insert("x-end", value.parse().unwrap());
                frames.push(Ok(Frame::trailers(trailers)));
                response = response.header("trailer", "x-end");
            }
            let body = StreamBody::new(stream::iter(frames)).boxed_unsync();
            return response.body(body).unwrap();
        }
        // One event, whose end may be the beginning of the value, and then nothing.
        "event" => {
            let event = format!("data: tick {}\n\n{}", &value[..1], &value[..2]);
            let frames = stream::once(async move { Ok(Frame::data(Bytes::from(event))) });
            let body = StreamBody::new(frames.chain(stream::pending())).boxed_unsync();
            return response.body(body).unwrap();
        }
        other => panic!("{other}"),
    };
    response.body(text(&body)).unwrap()
}

/// Counts itself as broken when it goes.
struct Gone(Arc<Log>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.broken.fetch_add(1, Ordering::SeqCst);
    }
}

/// The length of `/big`.
pub(crate) const BIG: usize = 200 << 20;
