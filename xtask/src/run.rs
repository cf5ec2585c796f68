//! Running other programs: what was run and how it ended is part of every error.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

/// A command about to be run.
#[derive(Debug)]
pub(crate) struct Run {
    command: Command,
}

impl Run {
    /// Names the program.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        Self { command }
    }

    /// Adds an argument.
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub(crate) fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets the working directory.
    pub(crate) fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Sets a variable.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Removes inherited variables.
    pub(crate) fn without(mut self, names: &[&str]) -> Self {
        for name in names {
            self.command.env_remove(name);
        }
        self
    }

    /// Drops what it prints on stdout.
    pub(crate) fn quiet(mut self) -> Self {
        self.command.stdout(Stdio::null());
        self
    }

    /// Runs it and expects success; its output goes where ours goes.
    pub(crate) fn go(mut self) -> Result<()> {
        let status = self.command.status().with_context(|| self.cannot_run())?;
        if status.success() {
            return Ok(());
        }
        bail!("`{}` failed: {status}", self.line())
    }

    /// Runs it, shows nothing, and says whether it succeeded.
    pub(crate) fn succeeds(mut self) -> bool {
        self.command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }

    /// Runs it, expects success and returns its stdout; stderr goes where ours goes.
    pub(crate) fn output(mut self) -> Result<String> {
        let output = self
            .command
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| self.cannot_run())?;
        if !output.status.success() {
            bail!("`{}` failed: {}", self.line(), output.status);
        }
        String::from_utf8(output.stdout)
            .with_context(|| format!("`{}` printed bytes that are no UTF-8", self.line()))
    }

    /// Starts it with stdout piped.
    pub(crate) fn start(mut self) -> Result<Child> {
        self.command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| self.cannot_run())
    }

    /// Returns the exit status as a shell counts it; output goes where ours goes.
    pub(crate) fn status(mut self) -> Result<u8> {
        use std::os::unix::process::ExitStatusExt as _;
        let status = self.command.status().with_context(|| self.cannot_run())?;
        let code = status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Ok(u8::try_from(code).unwrap_or(u8::MAX))
    }

    fn cannot_run(&self) -> String {
        format!("cannot run `{}`", self.line())
    }

    fn line(&self) -> String {
        let mut line = self.command.get_program().to_string_lossy().into_owned();
        for arg in self.command.get_args() {
            // Writing to a string cannot fail.
            let _infallible = write!(line, " {}", arg.to_string_lossy());
        }
        line
    }
}

/// Quotes a word for a POSIX shell.
pub(crate) fn quoted(word: impl AsRef<OsStr>) -> OsString {
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    let mut out = vec![b'\''];
    for &byte in word.as_ref().as_bytes() {
        if byte == b'\'' {
            out.extend_from_slice(b"'\\''");
        } else {
            out.push(byte);
        }
    }
    out.push(b'\'');
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_word_comes_through_a_shell_unchanged() {
        let word = "a'b \"c\" $d \\ `e`\n*";
        let script = format!("printf %s {}", quoted(word).to_string_lossy());
        assert_eq!(Run::new("sh").args(["-c", &script]).output().unwrap(), word);
    }

    #[test]
    fn a_failure_names_the_command_and_its_status() {
        let error = Run::new("sh").args(["-c", "exit 3"]).go().unwrap_err();
        assert_eq!(error.to_string(), "`sh -c exit 3` failed: exit status: 3");
    }
}
