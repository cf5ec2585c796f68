//! The `bottle` command as a child of the test.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bottle_core::backend::ExitStatus;
use nix::libc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::bench::Output;
use crate::host::TestHost;
use crate::upstream::Upstream;

/// How long one `bottle` command may take, a start and the first conversion of an image included.
pub const PATIENCE: Duration = Duration::from_secs(120);

impl TestHost {
    /// Prepares `bottle ARGS…` in these directories, killed when it is dropped.
    pub fn bottle<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.given.bottle);
        command.args(args);
        self.prepare(&mut command);
        command
    }

    /// Gives a command the directories of this host, pipes, and an end with the test.
    pub fn prepare(&self, command: &mut Command) {
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(self.variables())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
    }

    /// Returns the arguments of a start of the run's image, up to the `--` of the workload.
    pub fn start_args(&self, name: &str) -> Vec<String> {
        let image = format!("oci:{}", self.given.image.display());
        ["--backend", "krun", "start", &image, "--name", name]
            .map(str::to_owned)
            .to_vec()
    }

    /// Returns the arguments that allow `allowed.test` and lead it to this upstream.
    ///
    /// # Errors
    ///
    /// If the root cannot be written to the disk.
    pub fn allow_args(&self, upstream: &Upstream) -> Result<Vec<String>> {
        let root = self.dir.join("upstream-ca.pem");
        fs::write(&root, &upstream.ca_pem)?;
        Ok(vec![
            "--allow".to_owned(),
            "allowed.test".to_owned(),
            "--upstream-ca".to_owned(),
            root.display().to_string(),
            "--resolve".to_owned(),
            format!("allowed.test:443:{}", upstream.address),
        ])
    }
}

/// Runs a prepared command to its end; `input` is its standard input if it is not empty.
///
/// # Errors
///
/// If it does not start or does not end.
pub async fn run(mut command: Command, input: &[u8]) -> Result<Output> {
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    let argv = words(&command);
    let child = command
        .spawn()
        .with_context(|| format!("cannot start {argv:?}"))?;
    match timeout(PATIENCE, finish(argv.clone(), child, input)).await {
        Ok(output) => output,
        Err(_) => bail!("{argv:?} did not end within {PATIENCE:?}"),
    }
}

/// Waits for a child with its output.
///
/// # Errors
///
/// What the pipes say.
pub async fn finish(argv: Vec<String>, mut child: Child, input: &[u8]) -> Result<Output> {
    let stdin = child.stdin.take();
    let out = child.stdout.take();
    let err = child.stderr.take();
    let mut stdout = Vec::new();
    let mut stderr = Vec::new();
    let write = async {
        if let Some(mut stdin) = stdin {
            let _ = stdin.write_all(input).await;
        }
        Ok::<_, io::Error>(0)
    };
    let read_out = async {
        match out {
            Some(mut out) => out.read_to_end(&mut stdout).await,
            None => Ok(0),
        }
    };
    let read_err = async {
        match err {
            Some(mut err) => err.read_to_end(&mut stderr).await,
            None => Ok(0),
        }
    };
    tokio::try_join!(write, read_out, read_err)?;
    let status = child.wait().await?;
    let status = match (status.code(), status.signal()) {
        (Some(code), _) => ExitStatus::Exited(u8::try_from(code)?),
        (None, signal) => ExitStatus::Signaled(u8::try_from(signal.unwrap_or(libc::SIGKILL))?),
    };
    Ok(Output {
        argv,
        status,
        stdout,
        stderr,
    })
}

/// Returns program and arguments of a command.
pub fn words(command: &Command) -> Vec<String> {
    let command = command.as_std();
    let words = [command.get_program()]
        .into_iter()
        .chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect()
}
