//! The host's side of one test: directories of its own, and a backend and a command line in them.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::OnceLock;
use std::thread;

use anyhow::{Context, Result, bail};
use bottle_core::id::BottleId;
use bottle_krun::{KrunBackend, KrunOptions};
use tempfile::TempDir;

use crate::given::Given;

/// Directories and programs of one test. They are removed with it, unless the test fails.
#[derive(Debug)]
pub struct TestHost {
    /// What the run was given.
    pub given: &'static Given,
    /// Holds everything below; short, because the paths of sockets are.
    pub dir: PathBuf,
    temp: Option<TempDir>,
}

impl TestHost {
    /// Makes the directories.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn new(given: &'static Given) -> Result<Self> {
        let temp = tempfile::Builder::new()
            .prefix("t")
            .tempdir_in(run_dir()?)?;
        for dir in ["home", "run"] {
            fs::create_dir(temp.path().join(dir))?;
        }
        let kernel = temp.path().join(KERNEL);
        fs::create_dir_all(kernel.parent().context("it is below a directory")?)?;
        symlink(&given.kernel, kernel)?;
        Ok(Self {
            given,
            dir: temp.path().to_owned(),
            temp: Some(temp),
        })
    }

    /// Returns the options with which the command line finds the same bottles as [`Self::bottle`].
    ///
    /// # Errors
    ///
    /// If the options cannot be told from the directories.
    pub fn options(&self) -> Result<KrunOptions> {
        let mut options = KrunOptions::from_env(|name| {
            let (_, value) = self
                .variables()
                .into_iter()
                .find(|(known, _)| *known == name)?;
            Some(value.into())
        })
        .context("the directories of the test are not enough for the backend")?;
        options.helper = Some(self.given.bottle.clone());
        options.kernel = Some(self.given.kernel.clone());
        options.image_store = store()?;
        Ok(options)
    }

    /// Makes a backend that works in these directories.
    ///
    /// # Errors
    ///
    /// As [`Self::options`].
    pub fn backend(&self) -> Result<KrunBackend> {
        Ok(KrunBackend::new(self.options()?))
    }

    /// Returns the variables that lead a program of the user to these directories.
    pub fn variables(&self) -> Vec<(&'static str, PathBuf)> {
        let below = |name| self.dir.join(name);
        // The store of images is the run's: converting one takes longer than a boot.
        let cache = run_dir().unwrap_or_else(|_| self.dir.clone()).join("cache");
        vec![
            ("HOME", below("home")),
            ("XDG_STATE_HOME", below("state")),
            ("XDG_RUNTIME_DIR", below("run")),
            ("XDG_CACHE_HOME", cache),
            ("XDG_DATA_HOME", below("data")),
        ]
    }

    /// Returns the directory that holds what a bottle leaves on the disk.
    pub fn state_of(&self, id: &BottleId) -> PathBuf {
        self.dir.join("state/bottle/bottles").join(id.as_str())
    }

    /// Returns the id of the one bottle that these directories have seen.
    ///
    /// # Errors
    ///
    /// If they have seen none, or several.
    pub fn only_bottle(&self) -> Result<BottleId> {
        let dir = self.dir.join("state/bottle/bottles");
        let names: Result<Vec<_>, _> = fs::read_dir(&dir)?.collect();
        match &names?[..] {
            [one] => Ok(one.file_name().to_string_lossy().parse()?),
            other => bail!("not one bottle in `{}`: {other:?}", dir.display()),
        }
    }

    /// Returns the lines of a bottle's record.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn record_of(&self, id: &BottleId) -> Result<Vec<String>> {
        let path = self.state_of(id).join("record.jsonl");
        let text = fs::read_to_string(&path)
            .with_context(|| format!("cannot read the record `{}`", path.display()))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Lists every file, socket and directory that bottles have in these directories, records and
    /// the directories that lead to them apart.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn leftovers(&self) -> Result<Vec<PathBuf>> {
        leftovers(&self.dir)
    }

    /// Keeps the directories until the next run, so that a person can look.
    pub fn keep(&mut self) {
        if let Some(temp) = self.temp.take() {
            let _ = temp.keep();
        }
    }

    /// Returns the last lines of everything textual that bottles wrote here, for a failure.
    pub fn tails(&self) -> String {
        let mut paths = Vec::new();
        let _ = list(&self.dir.join("state"), &mut paths);
        let mut text = String::new();
        for path in paths {
            let is_text = path
                .extension()
                .is_some_and(|end| end == "jsonl" || end == "log");
            if let Some(content) = is_text.then(|| fs::read_to_string(&path).ok()).flatten() {
                let lines: Vec<_> = content.lines().collect();
                let tail = &lines[lines.len().saturating_sub(15)..];
                text.push_str(&format!("--- {}\n{}\n", path.display(), tail.join("\n")));
            }
        }
        text
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        if thread::panicking() {
            drop(writeln!(io::stderr(), "{}", self.tails()));
            self.keep();
        }
    }
}

/// Lists what [`TestHost::leftovers`] lists, for the host of this directory.
///
/// # Errors
///
/// What the file system says.
pub fn leftovers(of: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for dir in ["state/bottle/bottles", "run/bottle"] {
        let dir = of.join(dir);
        if dir.exists() {
            list(&dir, &mut found)?;
        }
    }
    found.retain(|path| {
        let is_record = path.ends_with("record.jsonl");
        let holds_record = path.is_dir() && path.join("record.jsonl").exists();
        !is_record && !holds_record
    });
    Ok(found)
}

/// Returns the store of images that all tests of this run share.
///
/// # Errors
///
/// What the file system says.
pub fn store() -> Result<PathBuf> {
    Ok(run_dir()?.join("cache/bottle/images"))
}

/// Returns the directory of this run of the tests; those of runs that are over are removed.
///
/// # Errors
///
/// What the file system says.
pub fn run_dir() -> Result<PathBuf> {
    static DIR: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let made = DIR.get_or_init(|| make_run_dir().map_err(|error| error.to_string()));
    made.clone().map_err(anyhow::Error::msg)
}

fn make_run_dir() -> Result<PathBuf> {
    let temp = env::temp_dir();
    for entry in fs::read_dir(&temp)?.flatten() {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX))
            .map(str::parse::<u32>);
        if let Some(Ok(pid)) = pid
            && !Path::new("/proc").join(pid.to_string()).exists()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let dir = temp.join(format!("{PREFIX}{}", process::id()));
    fs::create_dir(&dir).with_context(|| format!("cannot create `{}`", dir.display()))?;
    Ok(dir)
}

fn list(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        found.push(entry.path());
        if entry.file_type()?.is_dir() {
            list(&entry.path(), found)?;
        }
    }
    Ok(())
}

/// Where the command line finds the kernel library, below the directory of a host.
pub const KERNEL: &str = "data/bottle/kernel/libkrunfw.so.5";

/// What directories of runs are called, before the number of the process.
const PREFIX: &str = "bottle-t";
