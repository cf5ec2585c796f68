//! The programs that one `cargo test --no-run` leaves behind.
//!
//! Every task builds the whole workspace with the same flags, so that all of them share one set of
//! compiled dependencies.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::run::Run;
use crate::tree::Tree;

/// The package whose tests need microVMs.
pub(crate) const VM_TESTS: &str = "bottle-tests";

/// The package whose tests of the jail need microVMs, and their program.
pub(crate) const JAIL_TESTS: (&str, &str) = ("bottle-krun", "bottle_krun");

/// A program built as a test.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TestProgram {
    /// The package it belongs to.
    pub(crate) package: String,
    /// The target's name, as `it`.
    pub(crate) target: String,
    /// The package's directory: a test's working directory.
    pub(crate) directory: PathBuf,
    /// The program.
    pub(crate) path: PathBuf,
}

impl TestProgram {
    /// Says whether it is this package's program of this name.
    pub(crate) fn is(&self, (package, target): (&str, &str)) -> bool {
        self.package == package && self.target == target
    }

    /// Returns the program as `cargo test` would run it.
    pub(crate) fn run(&self) -> Run {
        Run::new(&self.path)
            .dir(&self.directory)
            .env("CARGO_MANIFEST_DIR", &self.directory)
            .env("CARGO_PKG_NAME", &self.package)
    }
}

/// What a build left behind.
#[derive(Debug, Default)]
pub(crate) struct Built {
    /// Test programs.
    pub(crate) tests: Vec<TestProgram>,
    /// Ordinary programs and examples: name and path.
    pub(crate) programs: Vec<(String, PathBuf)>,
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    manifest_path: PathBuf,
    #[serde(default)]
    target: Target,
    #[serde(default)]
    profile: Profile,
    executable: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
struct Target {
    name: String,
}

#[derive(Default, Deserialize)]
struct Profile {
    test: bool,
}

impl Built {
    /// Builds every test, program and example of the workspace.
    pub(crate) fn workspace(tree: &Tree) -> Result<Self> {
        let mut built = Self::from_cargo(tree, &["test", "--workspace", "--no-run"])?;
        if built.program("bottle").is_err() {
            // Cargo builds a package's programs for tests only if it has integration tests.
            let programs = Self::from_cargo(tree, &["build", "--package", "bottle-cli"])?;
            built.programs.extend(programs.programs);
        }
        Ok(built)
    }

    /// Builds what the demo needs, and no more.
    pub(crate) fn demo(tree: &Tree) -> Result<Self> {
        // An example needs the tests' dependencies, so features are those of the tests' build.
        let args = [
            "build",
            "--workspace",
            "--bin",
            "bottle",
            "--example",
            "demo",
        ];
        Self::from_cargo(tree, &args)
    }

    /// Returns a program by its name.
    pub(crate) fn program(&self, name: &str) -> Result<&Path> {
        self.programs
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, path)| path.as_path())
            .with_context(|| format!("the build made no program `{name}`"))
    }

    fn from_cargo(tree: &Tree, args: &[&str]) -> Result<Self> {
        let mut cargo = tree
            .cargo()
            .args(args)
            .args(["--locked", "--message-format", "json-render-diagnostics"])
            .start()?;
        let stdout = cargo.stdout.take().context("cargo has no stdout")?;
        let mut built = Self::default();
        for line in BufReader::new(stdout).lines() {
            built.read(&line?, tree)?;
        }
        let status = cargo.wait()?;
        if !status.success() {
            bail!("`cargo {}` failed: {status}", args.join(" "));
        }
        Ok(built)
    }

    fn read(&mut self, line: &str, tree: &Tree) -> Result<()> {
        let message: Message =
            serde_json::from_str(line).context("cannot read one of cargo's messages")?;
        let Message {
            reason,
            manifest_path,
            target,
            profile,
            executable,
        } = message;
        let Some(path) = executable.filter(|_| reason == "compiler-artifact") else {
            return Ok(());
        };
        if !profile.test {
            self.programs.push((target.name, path));
            return Ok(());
        }
        let package = tree
            .packages()
            .iter()
            .find(|package| package.manifest_path == manifest_path)
            .context("cargo built a test of an unknown package")?;
        let directory = manifest_path
            .parent()
            .context("a manifest without a directory")?;
        self.tests.push(TestProgram {
            package: package.name.clone(),
            target: target.name,
            directory: directory.to_owned(),
            path,
        });
        Ok(())
    }
}
