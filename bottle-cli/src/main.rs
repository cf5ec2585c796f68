//! The `bottle` command: parse, run, exit.
#![forbid(unsafe_code)]

use std::env::args_os;
use std::io::{IsTerminal, stderr};
use std::process::ExitCode;

use bottle_cli::backends;
use bottle_cli::host::Host;
use tokio::runtime::Builder;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // Must come first: this program is also the shim, the warden and the VMM of its bottles.
    backends::reexec();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::from_env("BOTTLE_LOG"))
        .with_ansi(stderr().is_terminal())
        .with_writer(stderr)
        .init();
    let runtime = match Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return bottle_cli::cannot_begin(error).into(),
    };
    let status = runtime.block_on(async {
        let host = Host::current(backends::registry());
        bottle_cli::run(args_os(), host).await
    });
    // A read of standard input may never return; nobody waits for it.
    runtime.shutdown_background();
    status.into()
}
