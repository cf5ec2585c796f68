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
    use crate::run::Run;
    use anyhow::{Context as _, bail};
    use std::fs;

    let directory = ffi(tree);
    let (header, generated) = (directory.join("krun.h"), directory.join("sys.rs"));
    let header = header.to_str().context("the header's path is no UTF-8")?;
    let old = fs::read_to_string(&generated).unwrap_or_default();
    // What the file says about itself stays: its comment up to the first empty line.
    let opening: Vec<&str> = old
        .lines()
        .take_while(|line| line.starts_with("//"))
        .collect();
    let bindings = bindgen::Builder::default()
        .header(header)
        .allowlist_function("krun_.*")
        .allowlist_var("KRUN_.*")
        .use_core()
        .generate_comments(false)
        .layout_tests(false)
        .disable_header_comment()
        .raw_line(opening.join("\n"))
        .rust_edition(bindgen::RustEdition::Edition2024)
        .rust_target(bindgen::RustTarget::stable(89, 0).map_err(anyhow::Error::msg)?)
        .formatter(bindgen::Formatter::None)
        .generate()
        .with_context(|| format!("bindgen cannot read `{header}` (is libclang-dev installed?)"))?
        .to_string();
    let work = tempfile::tempdir().context("cannot make a temporary directory")?;
    let fresh = work.path().join("sys.rs");
    fs::write(&fresh, bindings)?;
    Run::new("rustfmt")
        .arg("--config-path")
        .arg(tree.root())
        .arg(&fresh)
        .go()?;
    let fresh = fs::read_to_string(&fresh)?;
    if fresh == old {
        return Ok(());
    }
    if check {
        bail!(
            "`{}` is not what `krun.h` gives; run `cargo xtask bindings`",
            generated.display()
        );
    }
    fs::write(&generated, fresh).with_context(|| format!("cannot write `{}`", generated.display()))
}

/// Returns the directory of the libkrun declarations.
pub(crate) fn ffi(tree: &Tree) -> PathBuf {
    tree.root().join("bottle-krun/src/ffi")
}
