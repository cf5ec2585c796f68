//! An image on its way out: into a file that is there once it is whole, or to standard output.

use std::fmt::{self, Display, Formatter};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, anyhow};
use bottle_core::images::{Exported, Images};
use bottle_core::text::{Escaped, EscapedUpTo};
use tempfile::{Builder, TempPath};

use crate::args::ExportArgs;
use crate::commands::image::MAX_NAME;
use crate::exit::Status;
use crate::failure::Failure;
use crate::host::Host;
use crate::printer::Printer;
use crate::progress::Verbosity;
use crate::sizes::{bytes, layers};

/// Runs `image export`.
pub(crate) async fn run(
    images: &dyn Images,
    args: &ExportArgs,
    host: &mut Host,
    printer: &Printer,
    verbosity: Verbosity,
) -> Result<Status, Failure> {
    let since = Instant::now();
    let name = args.image.to_string();
    let (target, stream) = if args.output == Path::new("-") {
        if host.stdout_is_terminal {
            return Err(
                Failure::user(anyhow!("an archive is nothing for a terminal")).hint(
                    "name a file with `--output FILE`, or send standard output to one or a program",
                ),
            );
        }
        (Target::Stdout, printer.stdout())
    } else {
        Target::open(&args.output)?
    };
    let fate = Arc::new(Fate::default());
    let watched = Watched {
        stream,
        fate: Arc::clone(&fate),
    };
    let exported = tokio::select! {
        exported = images.export(&name, Box::new(watched)) => exported,
        Some(signal) = host.signals.recv() => {
            fate.stop.store(true, Ordering::Relaxed);
            return Ok(Status::signaled(signal.number()));
        }
    };
    let exported = match exported {
        // Whoever read it wants no more.
        Err(_) if fate.unread.load(Ordering::Relaxed) => return Ok(Status::DONE),
        exported => exported?,
    };
    let place = target.to_string();
    target.keep()?;
    if verbosity != Verbosity::Quiet {
        let Exported {
            layers: count,
            bytes: size,
            ..
        } = exported;
        let name = EscapedUpTo(&name, MAX_NAME);
        let (layers, size) = (layers(count), bytes(size));
        let took = since.elapsed().as_secs_f64();
        printer.say(&format!(
            "`{name}` is written to {place}: {layers}, {size}, in {took:.1}s"
        ));
    }
    Ok(Status::DONE)
}

/// Where the archive goes.
enum Target {
    /// Until it is kept it has another name, and loses it when it is dropped.
    File {
        temporary: TempPath,
        path: PathBuf,
    },
    Stdout,
}

impl Target {
    fn open(path: &Path) -> Result<(Self, Box<dyn Write + Send>), Failure> {
        let cannot = || format!("cannot write `{}`", Escaped(&path.to_string_lossy()));
        let failed =
            |error: io::Error| Failure::environment(anyhow::Error::new(error).context(cannot()));
        let path = match fs::metadata(path) {
            // What a link leads to is replaced, not the link.
            Ok(found) if found.is_file() => fs::canonicalize(path).map_err(failed)?,
            Ok(_) => {
                let error = anyhow!("it is a directory, a device or a pipe").context(cannot());
                return Err(Failure::user(error).hint("name a file, or write to standard output"));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => path.to_owned(),
            Err(error) => return Err(failed(error)),
        };
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            Some(_) | None => Path::new("."),
        };
        let made = Builder::new()
            .prefix(".bottle-export.")
            // As of any new file: the umask takes from it.
            .permissions(fs::Permissions::from_mode(0o666))
            .tempfile_in(dir);
        let (file, temporary) = made.map_err(failed)?.into_parts();
        Ok((Self::File { temporary, path }, Box::new(Synced(file))))
    }

    /// Gives the file, which is whole, its name.
    fn keep(self) -> Result<(), Failure> {
        match self {
            Self::File { temporary, path } => temporary
                .persist(&path)
                .with_context(|| format!("cannot make `{}`", Escaped(&path.to_string_lossy())))
                .map_err(Failure::environment),
            Self::Stdout => Ok(()),
        }
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, .. } => {
                write!(f, "`{}`", EscapedUpTo(&path.to_string_lossy(), MAX_NAME))
            }
            Self::Stdout => f.write_str("standard output"),
        }
    }
}

/// A file that is on the disk when it was flushed.
struct Synced(File);

impl Write for Synced {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.sync_all()
    }
}

/// What becomes of the stream.
#[derive(Default)]
struct Fate {
    /// Nobody wants it any more.
    stop: AtomicBool,
    /// Its reader has gone.
    unread: AtomicBool,
}

struct Watched {
    stream: Box<dyn Write + Send>,
    fate: Arc<Fate>,
}

impl Watched {
    fn noted<T>(&self, result: io::Result<T>) -> io::Result<T> {
        let is_broken = |error: &io::Error| error.kind() == ErrorKind::BrokenPipe;
        if result.as_ref().is_err_and(is_broken) {
            self.fate.unread.store(true, Ordering::Relaxed);
        }
        result
    }
}

impl Write for Watched {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.fate.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("stopped"));
        }
        let written = self.stream.write(bytes);
        self.noted(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.stream.flush();
        self.noted(flushed)
    }
}
