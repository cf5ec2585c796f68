//! Where the guest kernel's library is.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::ffi::KERNEL_NAME;

/// Directories of the system's libraries, in order.
const SYSTEM: [&str; 7] = [
    "/usr/local/lib64",
    "/usr/local/lib",
    "/usr/local/lib/MULTIARCH",
    "/usr/lib64",
    "/usr/lib/MULTIARCH",
    "/usr/lib",
    "/lib64",
];

/// Returns the absolute path of `libkrunfw.so.5`: `explicit` if given, else the one below the
/// user's data directory (`$XDG_DATA_HOME`, which defaults to `~/.local/share`), else the system's.
///
/// `data_home` is the user's data directory, if there is one.
///
/// # Errors
///
/// [`KernelMissing`] says where it was looked for and how to get it.
///
/// # Security
///
/// The library runs in the vmm's process, before the jail is closed. Neither the working directory
/// nor `LD_LIBRARY_PATH` is searched.
pub(crate) fn find_kernel(
    explicit: Option<&Path>,
    data_home: Option<&Path>,
) -> Result<PathBuf, KernelMissing> {
    if let Some(path) = explicit {
        let found = fs::canonicalize(path).ok().filter(|path| path.is_file());
        return found.ok_or_else(|| KernelMissing {
            searched: vec![path.to_owned()],
        });
    }
    let multiarch = format!("{}-linux-gnu", env::consts::ARCH);
    let own = data_home
        .filter(|home| home.is_absolute())
        .map(|home| home.join("bottle/kernel"));
    let system = SYSTEM
        .iter()
        .map(|dir| PathBuf::from(dir.replace("MULTIARCH", &multiarch)));
    let searched: Vec<PathBuf> = own
        .into_iter()
        .chain(system)
        .map(|dir| dir.join(KERNEL_NAME))
        .collect();
    let found = searched
        .iter()
        .filter(|path| path.is_file())
        .find_map(|path| fs::canonicalize(path).ok());
    found.ok_or(KernelMissing { searched })
}

/// There is no guest kernel on this host.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("cannot find the guest kernel; looked for {}", listed(searched))]
pub(crate) struct KernelMissing {
    /// The paths that were tried.
    pub(crate) searched: Vec<PathBuf>,
}

impl KernelMissing {
    /// Returns what a person can do about it.
    pub(crate) fn hint(&self) -> &'static str {
        "`cargo xtask setup` fetches it, or install your distribution's package `libkrunfw`"
    }
}

fn listed(paths: &[PathBuf]) -> String {
    let quoted: Vec<String> = paths
        .iter()
        .map(|path| format!("`{}`", path.display()))
        .collect();
    quoted.join(", ")
}
