//! A person at a terminal: a real pseudo-terminal with the `bottle` command on it, its screen read.

use std::fmt::{self, Debug, Formatter};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use pty_process::{Pty, Size};
use rustix::termios::{LocalModes, tcgetattr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Child;
use tokio::time::{Instant, timeout_at};
use vt100::Parser;

use crate::host::TestHost;

/// How long one thing may take to show, a boot included.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A terminal with a command on it, which is killed when this is dropped.
pub struct Terminal {
    pty: Pty,
    child: Child,
    screen: Parser,
    /// All that was ever shown, for a failure.
    seen: Vec<u8>,
}

impl Terminal {
    /// Runs `bottle ARGS…` on a terminal of this many lines and characters a line.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn start(host: &TestHost, args: &[&str], (rows, cols): (u16, u16)) -> Result<Self> {
        let (pty, pts) = pty_process::open()?;
        pty.resize(Size::new(rows, cols))?;
        let child = pty_process::Command::new(&host.given.bottle)
            .args(args)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("TERM", "xterm-256color")
            .envs(host.variables())
            .current_dir("/")
            .kill_on_drop(true)
            .spawn(pts)?;
        let size = |side: u16| side.try_into().context("a terminal has a size");
        Ok(Self {
            pty,
            child,
            screen: Parser::new(size(rows)?, size(cols)?, 0),
            seen: Vec::new(),
        })
    }

    /// Types.
    ///
    /// # Errors
    ///
    /// If the terminal has gone.
    pub async fn type_in(&mut self, keys: &str) -> Result<()> {
        self.pty.write_all(keys.as_bytes()).await?;
        Ok(())
    }

    /// Gives the terminal another size.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn resize(&mut self, (rows, cols): (u16, u16)) -> Result<()> {
        self.pty.resize(Size::new(rows, cols))?;
        let size = |side: u16| side.try_into().context("a terminal has a size");
        self.screen.screen_mut().set_size(size(rows)?, size(cols)?);
        Ok(())
    }

    /// Waits until the screen shows what is wanted.
    ///
    /// # Errors
    ///
    /// If it does not in time; says what it shows.
    pub async fn wait_for(&mut self, what: &str, shows: impl Fn(&str) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut chunk = vec![0; 4096];
        loop {
            let contents = self.screen.screen().contents().to_string();
            if shows(&contents) {
                return Ok(());
            }
            let read = timeout_at(deadline, self.pty.read(&mut chunk)).await;
            // A terminal that nobody has open any more gives an error.
            let Ok(Ok(length @ 1..)) = read else {
                let seen = String::from_utf8_lossy(&self.seen);
                return Err(anyhow!(
                    "the screen never showed {what}; it shows:\n{contents}\nall: {seen:?}"
                ));
            };
            let bytes = chunk.get(..length).unwrap_or_default();
            self.seen.extend_from_slice(bytes);
            self.screen.process(bytes);
        }
    }

    /// Waits until a line begins with this text.
    ///
    /// # Errors
    ///
    /// As [`Self::wait_for`].
    pub async fn wait_for_line(&mut self, start: &str) -> Result<()> {
        let shows = |contents: &str| contents.lines().any(|line| line.starts_with(start));
        self.wait_for(&format!("a line `{start}…`"), shows).await
    }

    /// Waits for the end of the command, and returns its exit code.
    ///
    /// # Errors
    ///
    /// If it does not end in time, or by a signal.
    pub async fn end(&mut self) -> Result<i32> {
        let deadline = Instant::now() + PATIENCE;
        let mut chunk = vec![0; 4096];
        loop {
            tokio::select! {
                status = timeout_at(deadline, self.child.wait()) => {
                    let status = status.context("the command does not end")??;
                    return status.code().with_context(|| format!("it ended by {status}"));
                }
                Ok(length @ 1..) = self.pty.read(&mut chunk) => {
                    let bytes = chunk.get(..length).unwrap_or_default();
                    self.seen.extend_from_slice(bytes);
                    self.screen.process(bytes);
                }
            }
        }
    }

    /// Returns the screen as it is.
    pub fn contents(&self) -> String {
        self.screen.screen().contents().to_string()
    }

    /// Says whether the terminal shows what is typed and takes it by lines, as it does for a shell.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn is_usual(&self) -> Result<bool> {
        let modes = tcgetattr(&self.pty)?.local_modes;
        Ok(modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG))
    }
}

impl Debug for Terminal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminal").finish_non_exhaustive()
    }
}
