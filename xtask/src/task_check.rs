//! `cargo xtask check`: everything that can be proved without running a test.
//!
//! All checks run, whatever the first one says; the failures are listed at the end.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::report::{say, took};
use crate::tree::{Tree, which};
use crate::{task_bindings, task_tidy};

/// How a check ended when it did not fail.
pub(crate) enum Outcome {
    /// It holds.
    Passed,
    /// It could not be made, for this reason.
    Skipped(&'static str),
}

type Check = (&'static str, fn(&Tree) -> Result<Outcome>);

const CHECKS: [Check; 7] = [
    ("tidy", tidy),
    ("fmt", fmt),
    ("clippy", clippy),
    ("clippy, core alone", clippy_core),
    ("doc", doc),
    ("deny", deny),
    ("bindings", bindings),
];

/// Runs the checks.
///
/// # Errors
///
/// Names every check that failed.
pub(crate) fn run(tree: &Tree) -> Result<()> {
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        let start = Instant::now();
        let result = check(tree);
        let time = took(start.elapsed());
        match result {
            Ok(Outcome::Passed) => say(format!("check {name}: passed ({time})")),
            Ok(Outcome::Skipped(why)) => say(format!("check {name}: skipped, {why}")),
            Err(error) => {
                say(format!("check {name}: FAILED ({time}): {error:#}"));
                failed.push(name);
            }
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("these checks failed: {}", failed.join("; "))
}

fn tidy(tree: &Tree) -> Result<Outcome> {
    task_tidy::run(tree)?;
    Ok(Outcome::Passed)
}

fn fmt(tree: &Tree) -> Result<Outcome> {
    tree.cargo().args(["fmt", "--all", "--check"]).go()?;
    Ok(Outcome::Passed)
}

fn clippy(tree: &Tree) -> Result<Outcome> {
    tree.cargo()
        .args([
            "clippy",
            "--quiet",
            "--locked",
            "--workspace",
            "--all-targets",
        ])
        .args(["--", "--deny", "warnings"])
        .go()?;
    Ok(Outcome::Passed)
}

/// The workspace turns `testing` on for everyone; the library must hold together without it.
fn clippy_core(tree: &Tree) -> Result<Outcome> {
    tree.cargo()
        .args([
            "clippy",
            "--quiet",
            "--locked",
            "--package",
            "bottle-core",
            "--lib",
        ])
        .args(["--no-default-features", "--", "--deny", "warnings"])
        .go()?;
    Ok(Outcome::Passed)
}

fn doc(tree: &Tree) -> Result<Outcome> {
    tree.cargo()
        .args(["doc", "--quiet", "--locked", "--workspace", "--no-deps"])
        .arg("--document-private-items")
        .env("RUSTDOCFLAGS", "--deny warnings")
        .go()?;
    Ok(Outcome::Passed)
}

/// Licenses, duplicate and banned crates, sources; advisories would need a network.
fn deny(tree: &Tree) -> Result<Outcome> {
    if which("cargo-deny").is_none() {
        bail!("cargo-deny is missing; run `cargo xtask setup`");
    }
    tree.cargo()
        .args(["deny", "--log-level", "error", "--all-features", "--locked"])
        .args(["check", "licenses", "bans", "sources"])
        .go()?;
    Ok(Outcome::Passed)
}

/// Compares the checked-in declarations with what bindgen makes of `krun.h`.
fn bindings(tree: &Tree) -> Result<Outcome> {
    if !task_bindings::ffi(tree).join("krun.h").exists() {
        bail!("bottle-krun/src/ffi/krun.h is missing");
    }
    if !has_libclang() {
        return Ok(Outcome::Skipped(
            "there is no libclang (Debian: libclang-dev)",
        ));
    }
    task_bindings::run(tree, &task_bindings::Args { check: true })?;
    Ok(Outcome::Passed)
}

/// Says whether bindgen can load libclang and the headers that belong to it.
fn has_libclang() -> bool {
    let Ok(entries) = fs::read_dir("/usr/lib") else {
        return false;
    };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("llvm-"))
        .map(|entry| entry.path().join("lib"))
        .any(|library| library.join("clang").is_dir() && holds_libclang(&library))
}

/// Looks for `libclang.so…` or `libclang-14.so…`, not for `libclang-cpp.so…`, which is another.
fn holds_libclang(library: &Path) -> bool {
    fs::read_dir(library).is_ok_and(|files| {
        files.filter_map(Result::ok).any(|file| {
            let name = file.file_name();
            name.to_str()
                .and_then(|name| name.strip_prefix("libclang"))
                .is_some_and(|rest| {
                    rest.starts_with(".so")
                        || rest
                            .strip_prefix('-')
                            .is_some_and(|v| v.starts_with(char::is_numeric))
                })
        })
    })
}
