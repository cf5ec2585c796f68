//! One HTTP/1.1 exchange per connection, blocking, every wait limited.
//!
//! Just what pulling needs: GET, and POST for a refresh token; no compression, no cookies, no
//! redirects (see `client`). Heads are parsed by `httparse`; a body's end is its length's, its
//! last chunk's or, without either, the connection's.
//!
//! Blocking, since whoever reads a layer blocks anyway: a thread per download needs no runtime,
//! and can be used from within anybody's runtime.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use thiserror::Error;
use zeroize::Zeroizing;

use super::url::Url;
use crate::options::Timeouts;

/// A request to send.
#[derive(Debug)]
pub(crate) struct Request<'r> {
    pub(crate) url: &'r Url,
    pub(crate) headers: &'r [(&'static str, &'r str)],
    /// Makes it a POST.
    pub(crate) form: Option<&'r str>,
}

/// How to get to the server.
#[derive(Debug)]
pub(crate) struct Route {
    /// What to speak TLS with; absent for plain HTTP.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    pub(crate) proxy: Option<Proxy>,
}

/// A proxy that speaks plain HTTP itself.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) url: Url,
    /// `Basic …`.
    pub(crate) authorization: Option<Zeroizing<String>>,
}

impl Proxy {
    /// Parses `[http://][USER:PASSWORD@]HOST:PORT`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("http://").unwrap_or(text);
        let rest = rest.trim_end_matches('/');
        let (user, authority) = match rest.rsplit_once('@') {
            None => (None, rest),
            Some((user, authority)) => (Some(user), authority),
        };
        let authorization = user.map(|user| {
            let plain = Zeroizing::new(decode(user));
            Zeroizing::new(format!("Basic {}", STANDARD.encode(&*plain)))
        });
        Some(Self {
            url: Url::at(false, authority, "/".to_owned())?,
            authorization,
        })
    }
}

/// Percent-decodes; what is no escape stays.
fn decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = text.get(at + 1..at + 3);
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(decoded) if byte == b'%' => {
                out.push(decoded);
                at += 3;
            }
            Some(_) | None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

/// Why an exchange failed.
#[derive(Debug, Error)]
pub(crate) enum HttpError {
    #[error("no connection")]
    Connect(#[source] io::Error),
    #[error("the connection broke off")]
    Cut(#[source] io::Error),
    #[error("{0}")]
    Malformed(&'static str),
    #[error("{0}")]
    Proxy(String),
    #[error("nothing came in time")]
    Stalled,
    #[error("no TLS")]
    Tls(#[source] io::Error),
}

impl HttpError {
    /// What a read or write that failed means.
    pub(crate) fn of(error: io::Error) -> Self {
        let kind = error.kind();
        if matches!(kind, ErrorKind::TimedOut | ErrorKind::WouldBlock) {
            Self::Stalled
        } else if kind == ErrorKind::InvalidData {
            Self::Malformed("its framing is malformed")
        } else {
            Self::Cut(error)
        }
    }
}

/// The head of an answer, and its body still to be read.
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Body,
    /// True unless it comes from somewhere else than was asked at first.
    pub(crate) own: bool,
}

impl Response {
    /// The first header of that name (in lower case), if it is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        let headers = self.headers.iter();
        headers.filter_map(move |(known, value)| (known == name).then_some(value.as_str()))
    }
}

/// Sends a request and reads the head of its answer.
pub(crate) fn exchange(
    request: &Request<'_>,
    route: &Route,
    timeouts: &Timeouts,
) -> Result<Response, HttpError> {
    let mut stream = BufReader::with_capacity(BUFFER, connect(request.url, route, timeouts)?);
    stream.get_mut().wait_at_most(Some(timeouts.stall));
    let whole = head(request, route);
    let written = stream.get_mut().write_all(&whole);
    // A server may refuse a request before it has read all of it: its answer says more.
    let response = read_response(stream);
    match (written, response) {
        (Ok(()), response) => response,
        (Err(_), Ok(response)) => Ok(response),
        (Err(error), Err(_)) => Err(HttpError::of(error)),
    }
}

fn head(request: &Request<'_>, route: &Route) -> Zeroizing<Vec<u8>> {
    let Request { url, headers, form } = request;
    let method = if form.is_some() { "POST" } else { "GET" };
    let mut head = Zeroizing::new(Vec::with_capacity(16 << 10));
    let mut put = |text: &str| head.extend_from_slice(text.as_bytes());
    put(method);
    put(" ");
    let mut proxy_authorization = None;
    if let (None, Some(proxy)) = (&route.tls, &route.proxy) {
        put("http://");
        put(&url.authority());
        proxy_authorization = proxy.authorization.as_deref();
    }
    put(&url.target);
    put(" HTTP/1.1\r\nHost: ");
    put(&url.authority());
    put("\r\nUser-Agent: ");
    put(USER_AGENT);
    put("\r\nAccept-Encoding: identity\r\nConnection: close\r\n");
    if let Some(authorization) = proxy_authorization {
        put("Proxy-Authorization: ");
        put(authorization);
        put("\r\n");
    }
    for (name, value) in *headers {
        put(name);
        put(": ");
        put(value);
        put("\r\n");
    }
    if let Some(form) = form {
        put("Content-Type: application/x-www-form-urlencoded\r\nContent-Length: ");
        put(&form.len().to_string());
        put("\r\n\r\n");
        put(form);
    } else {
        put("\r\n");
    }
    head
}

fn read_response(mut stream: BufReader<Stream>) -> Result<Response, HttpError> {
    // Interim answers announce the real one.
    for _ in 0..MAX_INTERIM {
        let (status, headers) = read_head(&mut stream)?;
        if !(100..200).contains(&status) {
            let framing = framing(status, &headers)?;
            return Ok(Response {
                status,
                headers,
                body: Body { stream, framing },
                own: true,
            });
        }
    }
    Err(HttpError::Malformed("it has no end of interim answers"))
}

type Head = (u16, Vec<(String, String)>);

fn read_head(stream: &mut BufReader<Stream>) -> Result<Head, HttpError> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") && !bytes.ends_with(b"\n\n") {
        let left = MAX_HEAD - bytes.len() as u64;
        let read = stream.take(left).read_until(b'\n', &mut bytes);
        match read.map_err(HttpError::of)? {
            0 if bytes.len() as u64 >= MAX_HEAD => {
                return Err(HttpError::Malformed("its head is too long"));
            }
            0 => return Err(HttpError::Cut(ErrorKind::UnexpectedEof.into())),
            _ => {}
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut headers);
    match parsed.parse(&bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) | Err(_) => {
            return Err(HttpError::Malformed("its head is not HTTP/1"));
        }
    }
    let status = parsed.code.unwrap_or_default();
    let headers = parsed
        .headers
        .iter()
        .filter_map(|header| {
            let value = str::from_utf8(header.value).ok()?;
            Some((header.name.to_ascii_lowercase(), value.to_owned()))
        })
        .collect();
    Ok((status, headers))
}

/// How a body's end is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Framing {
    /// So much is left of the current chunk; `None` before the first and between two.
    Chunked(Option<u64>),
    Ended,
    Length(u64),
    UntilClose,
}

fn framing(status: u16, headers: &[(String, String)]) -> Result<Framing, HttpError> {
    let mut lengths = headers.iter().filter(|(name, _)| name == "content-length");
    let mut codings = headers
        .iter()
        .filter(|(name, _)| name == "transfer-encoding");
    let length = lengths.next();
    if lengths.next().is_some() {
        return Err(HttpError::Malformed("it has two lengths"));
    }
    if matches!(status, 204 | 304) {
        return Ok(Framing::Ended);
    }
    match (codings.next(), codings.next(), length) {
        (None, _, None) => Ok(Framing::UntilClose),
        (None, _, Some((_, digits))) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            let length = digits.parse();
            length
                .map(Framing::Length)
                .map_err(|_| HttpError::Malformed("its length is wrong"))
        }
        (Some((_, coding)), None, None) if coding.eq_ignore_ascii_case("chunked") => {
            Ok(Framing::Chunked(None))
        }
        _ => Err(HttpError::Malformed(
            "its length or transfer coding is wrong",
        )),
    }
}

/// What is left of an answer.
pub(crate) struct Body {
    stream: BufReader<Stream>,
    framing: Framing,
}

impl Body {
    /// How long it is, if that was said.
    pub(crate) fn length(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(length) => Some(length),
            Framing::Ended => Some(0),
            Framing::Chunked(_) | Framing::UntilClose => None,
        }
    }

    /// True if only the connection's end, however it comes, tells the body's.
    pub(crate) fn is_open_ended(&self) -> bool {
        self.framing == Framing::UntilClose
    }

    /// Limits the wait for all of it; without a limit only that for each read is.
    pub(crate) fn wait_at_most(&mut self, limit: Option<Duration>) {
        self.stream.get_mut().wait_at_most(limit);
    }

    /// Something that ends the connection from elsewhere.
    pub(crate) fn hang_up(&self) -> io::Result<HangUp> {
        self.stream.get_ref().socket().tcp.try_clone().map(HangUp)
    }

    fn chunk_size(&mut self) -> io::Result<u64> {
        let line = self.line()?;
        let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
        let digits = str::from_utf8(digits.trim_ascii()).ok();
        digits
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .ok_or_else(|| ErrorKind::InvalidData.into())
    }

    fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        let mut limited = (&mut self.stream).take(MAX_LINE);
        limited.read_until(b'\n', &mut line)?;
        if line.ends_with(b"\n") {
            Ok(line)
        } else if line.len() as u64 == MAX_LINE {
            Err(ErrorKind::InvalidData.into())
        } else {
            Err(ErrorKind::UnexpectedEof.into())
        }
    }

    /// Reads within what has a length; its premature end is an error.
    fn within(&mut self, buf: &mut [u8], left: u64) -> io::Result<(usize, u64)> {
        let wanted = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
        let read = self.stream.read(&mut buf[..wanted])?;
        if read == 0 && wanted > 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok((read, left - read as u64))
    }
}

impl Read for Body {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            match self.framing {
                Framing::Ended | Framing::Length(0) => return Ok(0),
                Framing::UntilClose => return self.stream.read(buf),
                Framing::Length(left) => {
                    let (read, left) = self.within(buf, left)?;
                    self.framing = Framing::Length(left);
                    return Ok(read);
                }
                Framing::Chunked(Some(0)) => {
                    if !self.line()?.trim_ascii().is_empty() {
                        return Err(ErrorKind::InvalidData.into());
                    }
                    self.framing = Framing::Chunked(None);
                }
                Framing::Chunked(Some(left)) => {
                    let (read, left) = self.within(buf, left)?;
                    self.framing = Framing::Chunked(Some(left));
                    return Ok(read);
                }
                Framing::Chunked(None) => match self.chunk_size()? {
                    // Trailers say nothing here, and the connection ends.
                    0 => self.framing = Framing::Ended,
                    size => self.framing = Framing::Chunked(Some(size)),
                },
            }
        }
    }
}

/// Ends a connection whose body somebody else is reading.
#[derive(Debug)]
pub(crate) struct HangUp(TcpStream);

impl HangUp {
    pub(crate) fn now(&self) {
        // It may have ended by itself.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

enum Stream {
    Plain(Socket),
    Tls(Box<StreamOwned<ClientConnection, Socket>>),
}

impl Stream {
    fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.get_ref(),
        }
    }

    fn wait_at_most(&mut self, limit: Option<Duration>) {
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.get_mut(),
        };
        socket.deadline = limit.map(|limit| Instant::now() + limit);
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buf),
            Self::Tls(stream) => stream.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(buf),
            Self::Tls(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// A socket on which nothing is waited for longer than is allowed.
struct Socket {
    tcp: TcpStream,
    stall: Duration,
    /// For everything together.
    deadline: Option<Instant>,
}

impl Socket {
    fn limit(&self) -> io::Result<Duration> {
        let Some(deadline) = self.deadline else {
            return Ok(self.stall);
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        Ok(left.min(self.stall))
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.tcp.set_read_timeout(Some(self.limit()?))?;
        self.tcp.read(buf)
    }
}

impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.tcp.set_write_timeout(Some(self.limit()?))?;
        self.tcp.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

fn connect(url: &Url, route: &Route, timeouts: &Timeouts) -> Result<Stream, HttpError> {
    let deadline = Instant::now() + timeouts.connect;
    let hop = route.proxy.as_ref().map_or(url, |proxy| &proxy.url);
    let tcp = dial(hop, deadline).map_err(HttpError::Connect)?;
    let mut socket = Socket {
        tcp,
        stall: timeouts.stall,
        deadline: Some(deadline),
    };
    let Some(tls) = &route.tls else {
        return Ok(Stream::Plain(socket));
    };
    if let Some(proxy) = &route.proxy {
        socket = tunnel(socket, url, proxy)?;
    }
    let name = ServerName::try_from(url.host.clone())
        .map_err(|_| HttpError::Malformed("its host name cannot be in a certificate"))?;
    let connection = ClientConnection::new(Arc::clone(tls), name);
    let connection = connection.map_err(|error| HttpError::Tls(io::Error::other(error)))?;
    let mut stream = StreamOwned::new(connection, socket);
    while stream.conn.is_handshaking() {
        let (conn, socket) = (&mut stream.conn, &mut stream.sock);
        conn.complete_io(socket).map_err(HttpError::Tls)?;
    }
    Ok(Stream::Tls(Box::new(stream)))
}

fn dial(url: &Url, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::from(ErrorKind::AddrNotAvailable);
    for address in (url.host.as_str(), url.port).to_socket_addrs()? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(tcp) => {
                tcp.set_nodelay(true)?;
                return Ok(tcp);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Asks a proxy to connect through.
fn tunnel(mut socket: Socket, url: &Url, proxy: &Proxy) -> Result<Socket, HttpError> {
    let to = url.host_and_port();
    let mut head = Zeroizing::new(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n"));
    if let Some(authorization) = &proxy.authorization {
        head.push_str("Proxy-Authorization: ");
        head.push_str(authorization);
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    socket.write_all(head.as_bytes()).map_err(HttpError::of)?;
    // Unbuffered: what comes behind the answer is the server's.
    let mut stream = BufReader::with_capacity(1, Stream::Plain(socket));
    let (status, _) = read_head(&mut stream)?;
    let Stream::Plain(socket) = stream.into_inner() else {
        return Err(HttpError::Malformed("a tunnel is plain at first"));
    };
    match status {
        200..300 => Ok(socket),
        407 => Err(HttpError::Proxy(
            "it wants a login; write its URL as `http://USER:PASSWORD@HOST:PORT`".to_owned(),
        )),
        _ => Err(HttpError::Proxy(format!(
            "it answered with status {status}"
        ))),
    }
}

const USER_AGENT: &str = concat!("bottle/", env!("CARGO_PKG_VERSION"));
const BUFFER: usize = 64 << 10;
const MAX_HEAD: u64 = 64 << 10;
const MAX_HEADERS: usize = 128;
const MAX_LINE: u64 = 4096;
const MAX_INTERIM: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = pairs.iter();
        owned
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn a_bodys_end_is_told_in_one_way_only() {
        let told = |pairs: &[(&str, &str)]| framing(200, &headers(pairs)).ok();
        let length = ("content-length", "5");
        let chunked = ("transfer-encoding", "chunked");
        assert_eq!(told(&[]), Some(Framing::UntilClose));
        assert_eq!(told(&[length]), Some(Framing::Length(5)));
        assert_eq!(told(&[chunked]), Some(Framing::Chunked(None)));
        assert_eq!(told(&[length, length]), None);
        assert_eq!(told(&[length, chunked]), None);
        assert_eq!(told(&[chunked, chunked]), None);
        assert_eq!(told(&[("transfer-encoding", "gzip, chunked")]), None);
        assert_eq!(told(&[("content-length", "+5")]), None);
        assert_eq!(told(&[("content-length", "99999999999999999999")]), None);
        assert_eq!(framing(204, &[]).ok(), Some(Framing::Ended));
    }

    #[test]
    fn a_proxys_url_may_hold_a_login() {
        let proxy = Proxy::parse("http://u%40x:p%3Aw@proxy.test:3128/").unwrap();
        assert_eq!(proxy.url.host_and_port(), "proxy.test:3128");
        let basic = format!("Basic {}", STANDARD.encode("u@x:p:w"));
        assert_eq!(proxy.authorization.as_deref(), Some(&basic));
        assert!(
            Proxy::parse("proxy.test:3128")
                .unwrap()
                .authorization
                .is_none()
        );
        assert!(Proxy::parse("https://proxy.test:3128").is_none());
        assert!(Proxy::parse("socks5://proxy.test").is_none());
    }
}
