//! The shim: one process per bottle, the only one that holds policy, secrets and CA.
//!
//! ```text
//! descriptors at birth: 0 the client's socket, 1 the bottle's lock, 2 its log
//!
//! first client ── Launch ──► launch::start ──► Running ──► serve until one of
//!                                │                           · its owner goes, if it has one (Killed)
//!                                └─ failed: undone           · a Stop request, its time limit, the
//!                                                              end of a detached main process (Goodbye)
//!                                                            · the VM ends by itself   (Crashed)
//!                                                            · the guest breaks the protocol
//! ```
//!
//! It leaves nothing behind but the record, and what a bottle that is kept needs to start again. If it is killed, the warden kills the VM, and its
//! client (or the next start) removes the files.

mod clients;
mod clock;
mod console;
mod guest_link;
mod launch;
mod main_process;
mod ports;
pub(crate) mod room;
mod running;
mod screen;

use std::env;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;

use bottle_wire::client::{Launch, Open, greet};
use bottle_wire::mux::{self, MuxStream, Side};
use nix::unistd::{dup2_stdin, dup2_stdout, setsid};
use tokio::net::UnixStream;
use tokio::runtime::Builder;
use tracing_subscriber::EnvFilter;

/// Runs the shim to its end and returns its exit code.
pub(crate) fn run() -> u8 {
    start_log();
    let result = take_descriptors().and_then(|(client, lock)| {
        // A shell that ends its job must not end the bottle; only a closed socket does.
        setsid()?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let result = runtime.block_on(serve(client, lock));
        // Connections in mid-air have nobody left to serve.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!(%error, "shim failed");
            1
        }
    }
}

/// Sends what the shim has to say to its descriptor 2, the bottle's log.
fn start_log() {
    let wanted = env::var("BOTTLE_LOG").unwrap_or_else(|_| "warn".to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(wanted))
        .with_ansi(false)
        .with_writer(io::stderr)
        .init();
}

/// Takes socket and lock from the descriptors that a child would inherit.
fn take_descriptors() -> io::Result<(StdUnixStream, OwnedFd)> {
    let client = io::stdin().as_fd().try_clone_to_owned()?;
    let lock = io::stdout().as_fd().try_clone_to_owned()?;
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&nothing)?;
    dup2_stdout(&nothing)?;
    let client = StdUnixStream::from(client);
    client.set_nonblocking(true)?;
    Ok((client, lock))
}

/// Serves the client that started us, and after a launch everybody, until the bottle has ended.
///
/// `lock` is held until this returns: it is what makes the bottle alive for others.
async fn serve(client: StdUnixStream, lock: OwnedFd) -> io::Result<()> {
    let mut client = UnixStream::from_std(client)?;
    greet(&mut client).await.map_err(io::Error::other)?;
    let (_opener, mut incoming, driver) = mux::start::<_, (), Open>(client, Side::Listener);
    let client_gone = tokio::spawn(driver);
    let Some((launch, reports)) = first(incoming.accept().await) else {
        return Err(io::Error::other(
            "the client went away before it said what to launch",
        ));
    };
    launch::run(launch, reports, incoming, client_gone).await;
    drop(lock);
    Ok(())
}

fn first(opened: Option<(Open, MuxStream)>) -> Option<(Launch, MuxStream)> {
    match opened {
        Some((Open::Launch(launch), reports)) => Some((*launch, reports)),
        Some(_) | None => None,
    }
}
