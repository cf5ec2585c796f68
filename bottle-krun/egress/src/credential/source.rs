//! Where values come from: the seam to the host.

use std::fmt::{self, Debug, Formatter};
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use zeroize::Zeroizing;

/// Gives the value of one credential, on the host.
///
/// # Security
///
/// Neither an error nor `Debug` of an implementation may hold the value or what a program printed.
#[async_trait]
pub trait CredentialSource: Send + Sync + Debug {
    /// Returns the value as it is now; white space around it does not count.
    ///
    /// # Errors
    ///
    /// [`SourceError`] says what did not work.
    async fn fetch(&self) -> Result<Zeroizing<Vec<u8>>, SourceError>;

    /// Says whether asking again may give another value.
    fn is_renewable(&self) -> bool;
}

/// A value that its holder was given, as from a variable of the environment.
pub struct FixedSource(Zeroizing<Vec<u8>>);

impl FixedSource {
    /// Takes the value.
    pub fn new(value: Vec<u8>) -> Self {
        Self(Zeroizing::new(value))
    }
}

/// Shows nothing of the value.
impl Debug for FixedSource {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("FixedSource(..)")
    }
}

#[async_trait]
impl CredentialSource for FixedSource {
    async fn fetch(&self) -> Result<Zeroizing<Vec<u8>>, SourceError> {
        Ok(self.0.clone())
    }

    fn is_renewable(&self) -> bool {
        false
    }
}

/// What a file holds whenever it is asked for.
#[derive(Debug)]
pub struct FileSource(PathBuf);

impl FileSource {
    /// Takes the path; nothing is read yet.
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }
}

#[async_trait]
impl CredentialSource for FileSource {
    async fn fetch(&self) -> Result<Zeroizing<Vec<u8>>, SourceError> {
        let path = self.0.clone();
        let read = move || -> io::Result<Zeroizing<Vec<u8>>> {
            // Of full size from the start: a vector that grows leaves copies behind.
            let mut value = Zeroizing::new(Vec::with_capacity(MAX_VALUE + 1));
            File::open(path)?
                .take(MAX_VALUE as u64 + 1)
                .read_to_end(&mut value)?;
            Ok(value)
        };
        let value = spawn_blocking(read)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into()))
            .map_err(|source| SourceError::Read {
                path: self.0.clone(),
                source,
            })?;
        within(value)
    }

    fn is_renewable(&self) -> bool {
        true
    }
}

/// What a program prints whenever it is run.
#[derive(Debug)]
pub struct CommandSource {
    program: String,
    arguments: Vec<String>,
}

impl CommandSource {
    /// Takes a program, by path or name, and its arguments; nothing is run yet, and never a shell.
    pub fn new(program: String, arguments: Vec<String>) -> Self {
        Self { program, arguments }
    }
}

#[async_trait]
impl CredentialSource for CommandSource {
    async fn fetch(&self) -> Result<Zeroizing<Vec<u8>>, SourceError> {
        let failed = |why: String| SourceError::Command {
            program: self.program.clone(),
            why,
        };
        let run = async {
            let mut child = Command::new(&self.program)
                .args(&self.arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                // It may print what it should not.
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()?;
            let mut value = Zeroizing::new(Vec::with_capacity(MAX_VALUE + 1));
            if let Some(stdout) = &mut child.stdout {
                let mut limited = stdout.take(MAX_VALUE as u64 + 1);
                limited.read_to_end(&mut value).await?;
            }
            if value.len() > MAX_VALUE {
                // Dropping it ends it: it may never have been read to its end.
                return Ok((None, value));
            }
            Ok::<_, io::Error>((Some(child.wait().await?), value))
        };
        let (status, value) = timeout(COMMAND_TIMEOUT, run)
            .await
            .map_err(|_| {
                failed(format!(
                    "it ran for more than {} s",
                    COMMAND_TIMEOUT.as_secs()
                ))
            })?
            .map_err(|error| failed(error.to_string()))?;
        match status {
            Some(status) if !status.success() => Err(failed(status.to_string())),
            Some(_) | None => within(value),
        }
    }

    fn is_renewable(&self) -> bool {
        true
    }
}

fn within(value: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, SourceError> {
    if value.len() > MAX_VALUE {
        Err(SourceError::TooLong)
    } else {
        Ok(value)
    }
}

/// Why there is no value.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The program did not do its work.
    #[error("`{program}` gave no credential: {why}")]
    Command {
        /// The program, without its arguments.
        program: String,
        /// How it ended.
        why: String,
    },
    /// The value has bytes that no header can carry.
    #[error("the value cannot stand in a header")]
    NotForAHeader,
    /// The file could not be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What stopped it.
        source: io::Error,
    },
    /// The value is longer than any credential.
    #[error("the value has more than {MAX_VALUE} bytes")]
    TooLong,
    /// The value is so short that it would be found everywhere.
    #[error("the value has fewer than 8 bytes")]
    TooShort,
}

/// So that a value in its longest encoding can be held back while it is scrubbed from an answer.
const MAX_VALUE: usize = 4 << 10;
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);
