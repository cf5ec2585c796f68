//! The outer guest's kernel: Debian's own, unpacked without installing it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::report;
use crate::run::Run;
use crate::tree::{Tree, which};

/// The package that depends on the current kernel.
const PACKAGE: &str = "linux-image-amd64";

/// An unpacked kernel package.
#[derive(Debug)]
pub(crate) struct Kernel {
    directory: PathBuf,
    version: String,
}

impl Kernel {
    /// Finds the kernel below the target directory, or fetches it by apt.
    pub(crate) fn ensure(tree: &Tree) -> Result<Self> {
        let directory = tree.outer().join("kernel");
        if let Some(version) = version_in(&directory) {
            return Ok(Self { directory, version });
        }
        report::say("fetching Debian's kernel for the outer guest (unpacked, not installed)");
        fs::create_dir_all(tree.outer())?;
        let work = tempfile::Builder::new()
            .prefix("kernel.")
            .tempdir_in(tree.outer())?;
        let depends = Run::new("apt-cache").args(["depends", PACKAGE]).output()?;
        let package = depends
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: "))
            .with_context(|| format!("apt knows no `{PACKAGE}`; run `apt-get update`"))?;
        Run::new("apt-get")
            // Root may not hand this directory to apt's own user.
            .args(["-qq", "-o", "APT::Sandbox::User=root", "download", package])
            .dir(work.path())
            .go()
            .context("if apt's lists are old, run `apt-get update`")?;
        let archive = fs::read_dir(work.path())?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|ext| ext == "deb"))
            .context("apt-get downloaded no package")?;
        let unpacked = work.path().join("kernel");
        Run::new("dpkg-deb")
            .arg("-x")
            .arg(&archive)
            .arg(&unpacked)
            .go()?;
        if !unpacked.join("lib/modules").exists() {
            fs::create_dir_all(unpacked.join("lib"))?;
            symlink("../usr/lib/modules", unpacked.join("lib/modules"))?;
        }
        let version = version_in(&unpacked).context("the kernel package holds no kernel")?;
        Run::new(which("depmod").context("depmod is missing; run `cargo xtask setup`")?)
            .arg("-b")
            .arg(&unpacked)
            .arg(&version)
            .go()?;
        if let Err(error) = fs::rename(&unpacked, &directory) {
            bail!(
                "cannot place the kernel in `{}`: {error}",
                directory.display()
            );
        }
        Ok(Self { directory, version })
    }

    /// Returns the version, as `uname -r` prints it.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Returns the package's root.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the bootable image.
    pub(crate) fn image(&self) -> PathBuf {
        self.directory
            .join(format!("boot/vmlinuz-{}", self.version))
    }

    /// Returns the directory of its modules.
    pub(crate) fn modules(&self) -> PathBuf {
        self.directory.join("lib/modules").join(&self.version)
    }
}

fn version_in(directory: &Path) -> Option<String> {
    fs::read_dir(directory.join("boot"))
        .ok()?
        .filter_map(Result::ok)
        .find_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_prefix("vmlinuz-")
                .map(str::to_owned)
        })
}
