//! `bottle start`.

use std::path::PathBuf;

use bottle_core::id::BottleId;
use bottle_core::images::Pull;
use bottle_core::listing::Label;
use bottle_core::policy::Rule;
use bottle_core::ports::Publish;
use bottle_core::spec::{ImageSource, Resolve, UserName};
use bottle_core::units::{MiB, Vcpus};
use clap::Args;

use super::{EnvArg, SecretRef};
use crate::terminal::DetachKeys;

/// Flags of `start`.
#[derive(Args, Debug)]
#[command(after_help = "\
Standard input, output and error are the command's. Its status becomes the exit status.
Control-C goes to the command; a second one within 2 s, or SIGTERM, stops the bottle.")]
pub(crate) struct StartArgs {
    /// Boot this image: of a registry (`debian:12`), a layout (`oci:DIR[:TAG]`), a file
    /// (`oci-archive:FILE`, `docker-archive:FILE`) or standard input (`-`)
    #[arg(value_name = "IMAGE")]
    pub(crate) image: Option<ImageSource>,
    /// Ask the registry for the image if it is not here, always, or never [default: missing]
    #[arg(long, value_name = "missing|always|never")]
    pub(crate) pull: Option<Pull>,
    /// Name the bottle, `a-z`, `0-9` and `-` (default: made up)
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<BottleId>,
    /// Start it in the background and print its id; it is kept when it has ended
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Keep standard input open even if nobody is attached
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give it a terminal; the keys `ctrl-p,ctrl-q` detach from it
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Detach when these keys are typed, as `ctrl-],q`
    #[arg(long, value_name = "KEYS", requires = "tty")]
    pub(crate) detach_keys: Option<DetachKeys>,
    /// Keep its disk and log when it has ended, so that it can be started again
    #[arg(long, conflicts_with = "rm")]
    pub(crate) keep: bool,
    /// Remove it when it has ended, even if it was detached
    #[arg(long)]
    pub(crate) rm: bool,
    /// Write this on it (can be repeated)
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub(crate) label: Vec<Label>,
    /// Stop it after this time, as `90s` or `2h`
    #[arg(long, value_name = "TIME")]
    pub(crate) timeout: Option<humantime::Duration>,
    /// Let a port of this host lead to a server in it; of this host alone, unless ADDR is named
    /// (can be repeated)
    #[arg(short, long, value_name = "[ADDR:][HOST:]GUEST")]
    pub(crate) publish: Vec<Publish>,
    /// Let it reach this host, or with `*.` all hosts below it, on port 443 or PORT; it can reach
    /// nothing else (can be repeated)
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) allow: Vec<Rule>,
    /// Set a variable, or take it over from here if it is set (can be repeated)
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<EnvArg>,
    /// Refuse requests in which this value stands, in any encoding; it is named here by where it
    /// is found (can be repeated)
    #[arg(long, value_name = "env:NAME|file:PATH")]
    pub(crate) secret: Vec<SecretRef>,
    /// Set the variables of this file, one `NAME[=VALUE]` a line (can be repeated)
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Run as this user of the image (default: the image's)
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<UserName>,
    /// Give it this many virtual CPUs (default: 1)
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<Vcpus>,
    /// Give it this much memory (default: 1g)
    #[arg(short, long, value_name = "SIZE")]
    pub(crate) memory: Option<MiB>,
    /// Give it a writable disk of this size, of which only what is used takes up space here
    /// (default: 20g)
    #[arg(long, value_name = "SIZE")]
    pub(crate) disk: Option<MiB>,
    /// Keep what is written in its memory, and on no disk
    #[arg(long, conflicts_with = "disk")]
    pub(crate) ephemeral: bool,
    /// Also trust the CA certificates of this PEM file for the hosts it reaches (can be repeated)
    #[arg(long, value_name = "FILE")]
    pub(crate) upstream_ca: Vec<PathBuf>,
    /// Connect to ADDR for this host and port, even if the address is a private one, instead of
    /// asking DNS (can be repeated)
    #[arg(long, value_name = "HOST:PORT:ADDR[:PORT]")]
    pub(crate) resolve: Vec<Resolve>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the plan as JSON
    #[arg(long, requires = "dry_run")]
    pub(crate) json: bool,
    /// Run this command (default: the image's)
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}
