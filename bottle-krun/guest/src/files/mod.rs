//! Files of the bottle for the host, and of the host's for the bottle: tar streams.
//!
//! ```text
//! out:  thread: tree ─► tar ─► pipe ─► carry ─► stream 1       in:  stream 0 ─► carry ─► pipe
//!                └─ reports ─► stream of the request                  ─► thread: tar ─► tree
//! ```
//!
//! Files block, so that each copy has a thread; what it has to say goes through pipes, which carry
//! the host's credit to it.

mod pack;
mod root;
#[cfg(test)]
mod tests;
mod unpack;

use std::io::{self, BufWriter, PipeReader, PipeWriter};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use bottle_wire::guest::{CopyIn, CopyOut, CopyProblem, CopyReport, FileKind};
use bottle_wire::message;
use bottle_wire::mux::MuxStream;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag, fstat};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use self::pack::Packer;
use self::root::{Root, kind};
use self::unpack::{Owner, Unpacker};
use crate::carry::{drain, feed};
use crate::control::Habitat;
use crate::error::chain;
use crate::provision::users;

/// One of the copies that may run at once, until both of its halves have ended.
pub(crate) type Copying = Arc<OwnedSemaphorePermit>;

/// What is gathered before it goes into a pipe, in bytes.
const BUFFER: usize = 64 << 10;

/// Sends files; without a stream for the archive only says what there is.
///
/// # Errors
///
/// What the host's streams say.
pub(crate) async fn copy_out(
    room: Result<(Copying, &Habitat), String>,
    request: CopyOut,
    archive: Option<MuxStream>,
    mut stream: MuxStream,
) -> io::Result<()> {
    let copying = match room {
        Ok((copying, _)) => copying,
        Err(why) => return refuse(stream, request.path, &why).await,
    };
    let (reader, writer) = io::pipe()?;
    let writer = archive.is_some().then_some(writer);
    let (report, mut reports) = mpsc::unbounded_channel();
    let also = Arc::clone(&copying);
    thread::Builder::new().spawn(move || {
        let _also = also;
        let ready = |ready| drop(report.send(ready));
        let last = Root::open(Path::new("/"))
            .map_err(|error| Problem::system(b"/", error))
            .and_then(|root| pack(&root, &request, writer, ready));
        let _ = report.send(last.unwrap_or_else(Problem::report));
    })?;
    let carried = async {
        if let Some(archive) = archive {
            drain(pipe::Receiver::from_owned_fd(reader.into())?, archive).await?;
        }
        Ok(())
    };
    let told = async {
        while let Some(report) = reports.recv().await {
            message::write(&mut stream, &report).await?;
        }
        stream.shutdown().await
    };
    let ended = tokio::try_join!(carried, told).map(drop);
    drop(copying);
    ended
}

/// Takes files.
///
/// # Errors
///
/// What the host's streams say.
pub(crate) async fn copy_in(
    room: Result<(Copying, &Habitat), String>,
    request: CopyIn,
    archive: Option<MuxStream>,
    mut stream: MuxStream,
) -> io::Result<()> {
    let (copying, habitat) = match room {
        Ok(room) => room,
        Err(why) => return refuse(stream, request.path, &why).await,
    };
    let Some(archive) = archive else {
        return refuse(stream, request.path, "there is no stream for the archive").await;
    };
    let owner = match (request.archive, users::resolve(&habitat.defaults.user)) {
        (true, _) => Owner::Archive,
        (false, Ok(user)) => Owner::User {
            uid: user.uid,
            gid: user.gid,
        },
        (false, Err(error)) => return refuse(stream, request.path, &chain(&error)).await,
    };
    let (reader, writer) = io::pipe()?;
    let (report, mut reports) = mpsc::unbounded_channel();
    let also = Arc::clone(&copying);
    thread::Builder::new().spawn(move || {
        let _also = also;
        let last = Root::open(Path::new("/"))
            .map_err(|error| Problem::system(b"/", error))
            .and_then(|root| unpack(&root, &request.path, owner, reader));
        let _ = report.send(last.unwrap_or_else(Problem::report));
    })?;
    let pipe = pipe::Sender::from_owned_fd(writer.into())?;
    let (carried, last) = tokio::join!(feed(archive, pipe), reports.recv());
    let last = match (carried, last) {
        // The thread took it for the end.
        (Err(_), Some(CopyReport::Done { entries, bytes })) => {
            let problem = Problem::archive(b"", "it was cut off");
            problem.after(Counts { entries, bytes }).report()
        }
        (_, Some(last)) => last,
        (_, None) => return Err(io::ErrorKind::BrokenPipe.into()),
    };
    message::write(&mut stream, &last).await?;
    let ended = stream.shutdown().await;
    drop(copying);
    ended
}

async fn refuse(mut stream: MuxStream, path: String, why: &str) -> io::Result<()> {
    let report = Problem::refused(path.as_bytes(), why).report();
    message::write(&mut stream, &report).await?;
    stream.shutdown().await
}

/// Says what there is, and writes it to `output`, if there is one.
fn pack(
    root: &Root,
    request: &CopyOut,
    output: Option<PipeWriter>,
    ready: impl FnOnce(CopyReport),
) -> Result<CopyReport, Problem> {
    let CopyOut {
        exec: _,
        path,
        follow,
    } = request;
    let follow = if *follow {
        OFlag::empty()
    } else {
        OFlag::O_NOFOLLOW
    };
    let open = |flags| root.resolve(path.as_bytes(), flags | follow);
    let stat = open(OFlag::O_PATH).and_then(fstat);
    let stat = stat.map_err(|error| Problem::system(path.as_bytes(), error))?;
    let name = name_of(path);
    ready(CopyReport::Ready {
        kind: file_kind(&stat),
        name: name.to_owned(),
        size: match kind(&stat) {
            SFlag::S_IFREG => u64::try_from(stat.st_size).unwrap_or(0),
            _ => 0,
        },
    });
    let Some(output) = output else {
        return Ok(Counts::default().done());
    };
    let mut packer = Packer::new(BufWriter::with_capacity(BUFFER, output));
    let written = packer.tree(name.as_bytes(), open);
    let written = written.map_err(|problem| problem.after(packer.counts));
    written?;
    let counts = packer.finish();
    counts
        .map(Counts::done)
        .map_err(|error| Problem::system(path.as_bytes(), error))
}

/// Makes files of `input`.
fn unpack(root: &Root, path: &str, owner: Owner, input: PipeReader) -> Result<CopyReport, Problem> {
    let destination = root
        .destination(path.as_bytes())
        .map_err(|error| Problem::system(path.as_bytes(), error))?;
    let mut unpacker = Unpacker::new(destination, owner);
    match unpacker.all(input) {
        Ok(()) => Ok(unpacker.counts.done()),
        Err(problem) => Err(problem.after(unpacker.counts)),
    }
}

/// The last component of a path that is a name.
fn name_of(path: &str) -> &str {
    let named = path
        .rsplit('/')
        .find(|component| !matches!(*component, "" | "."));
    match named {
        None | Some("..") => ".",
        Some(name) => name,
    }
}

fn file_kind(stat: &FileStat) -> FileKind {
    match kind(stat) {
        SFlag::S_IFDIR => FileKind::Directory,
        SFlag::S_IFREG => FileKind::File,
        SFlag::S_IFLNK => FileKind::Symlink,
        _ => FileKind::Special,
    }
}

/// How much was done.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    entries: u64,
    bytes: u64,
}

impl Counts {
    fn done(self) -> CopyReport {
        let Self { entries, bytes } = self;
        CopyReport::Done { entries, bytes }
    }
}

/// What stopped a copy, and where.
#[derive(Debug)]
struct Problem {
    problem: CopyProblem,
    path: Vec<u8>,
    why: String,
    entries: u64,
}

impl Problem {
    fn new(problem: CopyProblem, path: &[u8], why: String) -> Self {
        Self {
            problem,
            path: path.to_vec(),
            why,
            entries: 0,
        }
    }

    /// The archive's fault.
    fn archive(path: &[u8], why: &str) -> Self {
        Self::new(CopyProblem::Archive, path, why.to_owned())
    }

    /// Not done, though it could be.
    fn refused(path: &[u8], why: &str) -> Self {
        Self::new(CopyProblem::Refused, path, why.to_owned())
    }

    /// The system's word.
    fn system(path: &[u8], error: impl Into<io::Error>) -> Self {
        let error = error.into();
        let problem = match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT) => CopyProblem::NotFound,
            Some(Errno::ENOTDIR) => CopyProblem::NotADirectory,
            _ => CopyProblem::System,
        };
        Self::new(problem, path, error.to_string())
    }

    fn after(self, counts: Counts) -> Self {
        Self {
            entries: counts.entries,
            ..self
        }
    }

    fn report(self) -> CopyReport {
        let Self {
            problem,
            path,
            why,
            entries,
        } = self;
        CopyReport::Failed {
            problem,
            path: String::from_utf8_lossy(&path).into_owned(),
            why,
            entries,
        }
    }
}
