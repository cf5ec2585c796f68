//! PID 1 of the microVM: the guest's end of a bottle.
//!
//! ```text
//! boot ──► control: hello ──► provision ──► exec, files, dial … ──► shut down ──► goodbye
//!  disks, one root     │        files, trust, users      │
//!                      └─► net: the workload's namespace, capture, DNS stub, UDP watch
//! ```
//!
//! It is one static binary that needs nothing of the image: no shell, no tool, no C library. It
//! runs one thread, and one more for each copy of files; what it says is believed by nobody, what
//! it is told comes from the host process that embeds it. A fatal error is one line on the console
//! and the end of the VM.

mod boot;
mod carry;
mod control;
mod descriptor;
mod disks;
mod error;
mod exec;
mod files;
mod net;
mod out_of_memory;
mod provision;
mod reap;
mod shutdown;
mod sys;
mod vsock;

use std::convert::Infallible;
use std::error::Error;
use std::fs::OpenOptions;
use std::io::Write;
use std::panic;
use std::process;

use nix::sys::reboot::{RebootMode, reboot};

use crate::error::InitError;

fn main() {
    panic::set_hook(Box::new(|panic| die(&format!("panic: {panic}"))));
    let Err(error) = run();
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    die(&line);
}

fn run() -> Result<Infallible, InitError> {
    if process::id() != 1 {
        return Err(InitError::NotPid1);
    }
    let booted = boot::boot()?;
    control::serve(booted)
}

/// Says the last word on the console and ends the VM.
fn die(why: &str) {
    if let Ok(mut console) = OpenOptions::new().write(true).open("/dev/console") {
        let line: String = why
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let _ = writeln!(console, "bottle-init: fatal: {line}");
    }
    if process::id() == 1 {
        let _ = reboot(RebootMode::RB_AUTOBOOT);
    }
}
