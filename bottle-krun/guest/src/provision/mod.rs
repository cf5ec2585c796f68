//! Makes the image habitable: time, names, trust, files, and the environment of every process.

pub(crate) mod clock;
pub(crate) mod environment;
mod files;
mod trust;
pub(crate) mod users;

use std::fs::{self, File};
use std::path::Path;

use bottle_wire::guest::Provision;
use nix::unistd::sethostname;

use crate::error::{InitError, failed};
use crate::sys;

/// What every process of the bottle starts from.
#[derive(Debug)]
pub(crate) struct Defaults {
    /// The image's variables, the bottle's, and those that make runtimes trust the bottle's CA.
    pub(crate) env: Vec<(String, String)>,
    /// `USER[:GROUP]`; empty means root.
    pub(crate) user: String,
    /// The working directory.
    pub(crate) cwd: String,
}

/// Does all of it but the network.
pub(crate) fn apply(provision: &Provision) -> Result<Defaults, InitError> {
    let Provision {
        unix_ns,
        hostname,
        ca_pem,
        ports: _,
        env,
        user,
        cwd,
        // Of the end, not of the beginning.
        stop_signal: _,
        entropy,
    } = provision;
    clock::set(*unix_ns)?;
    let random = File::options()
        .write(true)
        .open("/dev/random")
        .map_err(failed("open", "/dev/random"))?;
    sys::credit_entropy(&random, entropy).map_err(failed("feed", "/dev/random"))?;
    sethostname(hostname).map_err(failed("set the host name to", hostname.clone()))?;
    let root = Path::new("/");
    files::write_names(root, hostname)?;
    let trusted = trust::install(root, ca_pem)?;
    let cwd = if cwd.is_empty() {
        "/".to_owned()
    } else {
        cwd.clone()
    };
    // An image may name a directory that it does not have.
    fs::create_dir_all(&cwd).map_err(failed("make the working directory", cwd.clone()))?;
    Ok(Defaults {
        env: environment::with_defaults(env, &trusted),
        user: user.clone(),
        cwd,
    })
}
