//! `cargo xtask fuzz`: looks for inputs that break a promise of a parser or writer.
//!
//! A target is a file `fuzz/targets/NAME.rs`; it calls a function of a crate's module `fuzzing`,
//! and so does an ordinary test of that crate with every file of `fuzz/seeds/NAME/`. What a search
//! learns stays in `target/fuzz/NAME/corpus`, and what it finds in `target/fuzz/NAME/found`, with
//! which the next search begins.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::report::say;
use crate::run::Run;
use crate::tree::Tree;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run only this target
    target: Option<String>,
    /// Search for so long in each target
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u32,
}

/// Makes the compiler count which way a program goes, as libFuzzer wants it. No sanitizer, and so
/// no nightly compiler: targets are safe code, which panics where C would read on.
const FLAGS: [&str; 7] = [
    "--cfg=fuzzing",
    "-Ccodegen-units=1",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// The most memory that a target may take.
const LIMIT_MIB: u32 = 512;
/// The most time for one input, in seconds.
const PATIENCE: u32 = 20;
/// The longest input, in bytes.
const MAX_LEN: u32 = 8192;
/// Where temporary files cost no disk.
const SHM: &str = "/dev/shm";

pub(crate) fn run(tree: &Tree, args: &Args) -> Result<()> {
    let fuzz = tree.root().join("fuzz");
    let mut targets = stems(&fuzz.join("targets"))?;
    if let Some(wanted) = &args.target {
        if !targets.contains(wanted) {
            bail!(
                "there is no target `{wanted}`; there are: {}",
                targets.join(", ")
            );
        }
        targets.retain(|target| target == wanted);
    }
    let programs = build(tree, &fuzz)?;
    let mut broken = Vec::new();
    for target in &targets {
        let place = tree.target().join("fuzz").join(target);
        let (corpus, found) = (place.join("corpus"), place.join("found"));
        for dir in [&corpus, &found] {
            fs::create_dir_all(dir).with_context(|| format!("cannot make `{}`", dir.display()))?;
        }
        say(format!("{target}: searching for {} s", args.seconds));
        let mut search = Run::new(programs.join(target))
            .arg(format!("-max_total_time={}", args.seconds))
            .arg(format!("-rss_limit_mb={LIMIT_MIB}"))
            .arg(format!("-timeout={PATIENCE}"))
            .arg(format!("-max_len={MAX_LEN}"))
            .arg("-verbosity=0")
            .arg(format!("-artifact_prefix={}/", found.display()))
            .args([&corpus, &found, &fuzz.join("seeds").join(target)]);
        if Path::new(SHM).is_dir() {
            search = search.env("TMPDIR", SHM);
        }
        if search.status()? == 0 {
            // What was found before was run, and passed.
            for path in files(&found)? {
                fs::remove_file(path)?;
            }
            say(format!("{target}: nothing found"));
        } else {
            broken.push(target.as_str());
            for path in files(&found)? {
                say(format!("{target}: found `{}`", path.display()));
            }
        }
    }
    if broken.is_empty() {
        return Ok(());
    }
    bail!(
        "found something in {}; mend it, and put the input into `fuzz/seeds`",
        broken.join(", ")
    )
}

/// Builds all targets; returns where they are.
fn build(tree: &Tree, fuzz: &Path) -> Result<PathBuf> {
    let target = format!("{ARCH}-unknown-linux-gnu");
    let out = tree.target().join("fuzz/build");
    tree.cargo()
        .args(["build", "--release", "--quiet", "--locked", "--bins"])
        // With a target named, build scripts are spared the flags.
        .args(["--target", &target])
        .arg("--target-dir")
        .arg(&out)
        .arg("--manifest-path")
        .arg(fuzz.join("Cargo.toml"))
        .env("RUSTFLAGS", FLAGS.join(" "))
        .go()?;
    Ok(out.join(target).join("release"))
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let read = || format!("cannot read `{}`", dir.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).with_context(read)? {
        paths.push(entry.with_context(read)?.path());
    }
    paths.sort();
    Ok(paths)
}

fn stems(dir: &Path) -> Result<Vec<String>> {
    let stem = |path: PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
    Ok(files(dir)?.into_iter().filter_map(stem).collect())
}
