//! Where things are: the workspace, its target directory, and the user's data directory.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::run::Run;

/// The workspace that this program was built from.
#[derive(Debug)]
pub(crate) struct Tree {
    root: PathBuf,
    target: PathBuf,
    packages: Vec<Package>,
}

/// A member of the workspace.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    /// Its manifest.
    pub(crate) manifest_path: PathBuf,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    target_directory: PathBuf,
    workspace_root: PathBuf,
}

impl Tree {
    /// Asks cargo.
    pub(crate) fn find() -> Result<Self> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let json = Run::new(cargo())
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .dir(here)
            .output()?;
        let found: Metadata =
            serde_json::from_str(&json).context("cannot read what `cargo metadata` printed")?;
        Ok(Self {
            root: found.workspace_root,
            target: found.target_directory,
            packages: found.packages,
        })
    }

    /// Returns the workspace's root.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns cargo's target directory.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Returns the workspace's members.
    pub(crate) fn packages(&self) -> &[Package] {
        &self.packages
    }

    /// Returns where the kernel and the initrd of the outer guest are kept.
    pub(crate) fn outer(&self) -> PathBuf {
        self.target.join("outer")
    }

    /// Returns where `images build NAME` puts its OCI layout.
    pub(crate) fn image(&self, name: &str) -> PathBuf {
        self.target.join("images").join(name)
    }

    /// Starts a cargo command in the workspace's root.
    pub(crate) fn cargo(&self) -> Run {
        // `cargo run` sets variables for this program that would make the inner cargo believe it
        // runs for the package xtask; build scripts that look at them would run again.
        Run::new(cargo()).dir(&self.root).without(&[
            "CARGO_MANIFEST_DIR",
            "CARGO_MANIFEST_PATH",
            "RUST_RECURSION_COUNT",
        ])
    }
}

fn cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// Returns `$XDG_DATA_HOME/bottle`, or its default under the home directory.
pub(crate) fn data_home() -> Result<PathBuf> {
    if let Some(named) = env::var_os("XDG_DATA_HOME")
        && Path::new(&named).is_absolute()
    {
        return Ok(PathBuf::from(named).join("bottle"));
    }
    let home = env::var_os("HOME")
        .context("neither XDG_DATA_HOME nor HOME is set, so there is no data directory")?;
    Ok(PathBuf::from(home).join(".local/share/bottle"))
}

/// Finds a program the way a shell does, and in the directories that a user's PATH often lacks.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}
