//! Builds the guest's init for its own target and profile and hands its path to the crate.
//!
//! The inner cargo works in one directory shared by `build`, `clippy`, `test` and every profile:
//! `guest-init` below the nearest directory that cargo marked with `CACHEDIR.TAG`. It locks only
//! that directory, and nobody who holds it waits for an outer lock, so the two cannot deadlock.
//! Nothing that the outer cargo set for this script reaches it: not clippy's driver, not coverage
//! flags, not the outer target directory.
//!
//! `BOTTLE_INIT_PREBUILT=PATH` embeds a finished binary instead (distributors, cross builds).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// What the inner build depends on, relative to the workspace.
const INPUTS: &[&str] = &[
    "bottle-krun/guest/src",
    "bottle-krun/guest/Cargo.toml",
    "bottle-krun/wire/src",
    "bottle-krun/wire/Cargo.toml",
    "Cargo.lock",
    "Cargo.toml",
];

/// Outer variables that the inner cargo keeps although their names look like cargo's own.
const KEPT: &[&str] = &["CARGO_HOME", "CARGO_MAKEFLAGS"];
const KEPT_PREFIXES: &[&str] = &[
    "CARGO_HTTP_",
    "CARGO_NET_",
    "CARGO_REGISTR",
    "CARGO_SOURCE_",
];

/// Outer variables that the inner cargo never sees.
const DROPPED: &[&str] = &[
    "DEBUG",
    "HOST",
    "LLVM_PROFILE_FILE",
    "NUM_JOBS",
    "OPT_LEVEL",
    "OUT_DIR",
    "PROFILE",
    "RUSTFLAGS",
    "TARGET",
];
const DROPPED_PREFIXES: &[&str] = &["CARGO", "RUSTC", "RUSTDOC"];

fn main() {
    println!("cargo::rerun-if-env-changed=BOTTLE_INIT_PREBUILT");
    if let Some(prebuilt) = env::var_os("BOTTLE_INIT_PREBUILT") {
        let prebuilt = fs::canonicalize(&prebuilt)
            .unwrap_or_else(|error| panic!("BOTTLE_INIT_PREBUILT={prebuilt:?}: {error}"));
        println!("cargo::rerun-if-changed={}", prebuilt.display());
        println!("cargo::rustc-env=BOTTLE_INIT={}", prebuilt.display());
        return;
    }

    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let workspace = manifest_dir
        .parent()
        .expect("the crate lies in the workspace");
    for input in INPUTS {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(input).display()
        );
    }
    let out_dir = PathBuf::from(variable("OUT_DIR"));
    let embedded = out_dir.join("bottle-guest");
    let built = build(workspace, &out_dir);
    fs::copy(&built, &embedded)
        .unwrap_or_else(|error| panic!("cannot copy `{}`: {error}", built.display()));
    println!("cargo::rustc-env=BOTTLE_INIT={}", embedded.display());
}

/// Runs the inner cargo and returns where the static binary lies.
fn build(workspace: &Path, out_dir: &Path) -> PathBuf {
    let target = format!("{}-unknown-linux-gnu", variable("CARGO_CFG_TARGET_ARCH"));
    let inner = out_dir
        .ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").exists())
        .unwrap_or(out_dir)
        .join("guest-init");

    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .args(["build", "--locked", "--package", "bottle-guest"])
        .args(["--profile", "guest", "--target", &target])
        .arg("--target-dir")
        .arg(&inner)
        .current_dir(workspace);
    for (name, _) in env::vars_os() {
        if name.to_str().is_none_or(is_dropped) {
            cargo.env_remove(&name);
        }
    }
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    let status = cargo
        .status()
        .unwrap_or_else(|error| panic!("cannot start the inner cargo: {error}"));
    assert!(
        status.success(),
        "the guest's init did not build (`{cargo:?}`): see the messages above; a missing `libc.a` \
         is in Debian's libc6-dev and Fedora's glibc-static"
    );
    inner.join(target).join("guest").join("bottle-guest")
}

fn is_dropped(name: &str) -> bool {
    let kept = KEPT.contains(&name) || KEPT_PREFIXES.iter().any(|p| name.starts_with(p));
    !kept && (DROPPED.contains(&name) || DROPPED_PREFIXES.iter().any(|p| name.starts_with(p)))
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("cargo did not set {name}: {error}"))
}
