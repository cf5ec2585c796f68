//! `cargo xtask bindings`: `krun.h` to `sys.rs`, the only place that needs libclang.
//!
//! bindgen takes more than a minute to build, so it is behind the feature `bindings`; without it
//! this task runs cargo again with it.

use std::path::PathBuf;

use anyhow::Result;

use crate::tree::Tree;

/// Arguments of the task.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write nothing; fail if the generated file differs from the one in the tree
    #[arg(long)]
    pub(crate) check: bool,
}

/// Runs the task.
pub(crate) fn run(tree: &Tree, args: &Args) -> Result<()> {
    generate(tree, args.check)
}

#[cfg(not(feature = "bindings"))]
fn generate(tree: &Tree, check: bool) -> Result<()> {
    // A target directory of its own keeps this build from replacing the program that runs now.
    tree.cargo()
        .args([
            "run",
            "--quiet",
            "--locked",
            "--package",
            "xtask",
            "--features",
            "bindings",
        ])
        .arg("--target-dir")
        .arg(tree.target().join("bindings"))
        .args(["--", "bindings"])
        .args(check.then_some("--check"))
        .go()
}

#[cfg(feature = "bindings")]
fn generate(tree: &Tree, check: bool) -> Result<()> {
    use anyhow::{Context as _, bail};
    use std::fs;

    let directory = ffi(tree);
    let (header, generated) = (directory.join("krun.h"), directory.join("sys.rs"));
    let text = header.to_str().context("the header's path is no UTF-8")?;
    let bindings = bindgen::Builder::default()
        .header(text)
        .allowlist_file(text)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .rust_target(bindgen::RustTarget::stable(85, 0).map_err(anyhow::Error::msg)?)
        .use_core()
        .generate_comments(false)
        .layout_tests(false)
        .formatter(bindgen::Formatter::Prettyplease)
        .disable_header_comment()
        .raw_line(
            "//! libkrun's C interface as `krun.h` declares it; made by `cargo xtask bindings`.",
        )
        .generate()
        .with_context(|| format!("bindgen cannot read `{text}` (is libclang-dev installed?)"))?
        .to_string();
    if !check {
        return fs::write(&generated, bindings)
            .with_context(|| format!("cannot write `{}`", generated.display()));
    }
    if fs::read_to_string(&generated).is_ok_and(|old| old == bindings) {
        return Ok(());
    }
    bail!(
        "`{}` is not what `krun.h` gives; run `cargo xtask bindings`",
        generated.display()
    )
}

/// Returns the directory of the libkrun declarations.
pub(crate) fn ffi(tree: &Tree) -> PathBuf {
    tree.root().join("bottle-krun/src/ffi")
}
