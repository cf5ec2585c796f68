//! Tasks for contributors: everything that is done to this repository more than once.
//!
//! `cargo xtask --help` lists them; each lives in a file `task_<name>.rs`. The modules beside them
//! are what several tasks need: the tree, the outer guest, the OCI layout writer.

#![forbid(unsafe_code)]

mod built;
mod kvm;
mod lock;
mod oci;
mod outer;
mod report;
mod run;
mod task_bench;
mod task_bindings;
mod task_check;
mod task_demo;
mod task_fuzz;
mod task_images;
mod task_setup;
mod task_smoke;
mod task_test;
mod task_tidy;
mod tree;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use tree::Tree;

/// Tasks for contributors
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Measure ourselves, side by side with others
    Bench(task_bench::Args),
    /// Regenerate bottle-krun's libkrun declarations from its `krun.h` (needs libclang)
    Bindings(task_bindings::Args),
    /// Check format, lints, docs, licenses, bindings and house rules; lists every failure
    Check,
    /// Show a bottle at work: one host allowed; another, a token and the host's loopback refused
    Demo,
    /// Search for inputs that break a promise of a parser or writer
    Fuzz(task_fuzz::Args),
    /// Build the images that bottles boot
    #[command(subcommand)]
    Images(task_images::Task),
    /// Run a shell script as root in the outer guest, which has a working /dev/kvm
    Outer {
        /// The script
        script: PathBuf,
        /// Kill the guest after this many minutes
        #[arg(long, value_name = "MINUTES", default_value_t = 10)]
        timeout: u64,
    },
    /// Install what is missing, saying what and why
    Setup,
    /// Run the tests that need real microVMs, in the outer guest where KVM is unusable
    Smoke(task_smoke::Args),
    /// Run everything: setup, check, tests on the host, tests in real microVMs
    Test,
    /// Check the house rules that no other tool knows
    Tidy,
}

fn main() -> ExitCode {
    match work(&Args::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            report::say(format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs the task and returns its exit status.
fn work(args: &Args) -> Result<u8> {
    let tree = Tree::find()?;
    match &args.task {
        Task::Bench(args) => task_bench::run(&tree, args)?,
        Task::Bindings(args) => task_bindings::run(&tree, args)?,
        Task::Check => task_check::run(&tree)?,
        Task::Demo => return task_demo::run(&tree),
        Task::Fuzz(args) => task_fuzz::run(&tree, args)?,
        Task::Images(task) => task_images::run(&tree, task)?,
        Task::Outer { script, timeout } => {
            task_setup::for_outer(&tree)?;
            let script = fs::read_to_string(script)
                .with_context(|| format!("cannot read `{}`", script.display()))?;
            let timeout = Duration::from_secs(timeout * 60);
            return outer::run(&tree, &outer::Job { script, timeout });
        }
        Task::Setup => task_setup::run(&tree)?,
        Task::Smoke(args) => return task_smoke::run(&tree, args),
        Task::Test => return task_test::run(&tree),
        Task::Tidy => task_tidy::run(&tree)?,
    }
    Ok(0)
}
