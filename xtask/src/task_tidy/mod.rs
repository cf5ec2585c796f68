//! `cargo xtask tidy`: house rules that no other tool knows.
//!
//! Each rule is a function over a text, so that a test shows what it refuses.

mod rules;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::lock::Lock;
use crate::report::say;
use crate::run::Run;
use crate::tree::Tree;

/// The top level of the tree. A new entry is a decision, made here and in ARCHITECTURE.md.
const TOP_LEVEL: [&str; 23] = [
    ".cargo",
    ".ci",
    ".config",
    ".gitignore",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "bottle-cli",
    "bottle-core",
    "bottle-krun",
    "clippy.toml",
    "deny.toml",
    "docs",
    "fuzz",
    "images",
    "rustfmt.toml",
    "rustfmt.unstable.toml",
    "tests",
    "xtask",
];

/// Checks the rules and lists every violation.
pub(crate) fn run(tree: &Tree) -> Result<()> {
    let files = tracked(tree)?;
    let mut found: Vec<String> = Vec::new();
    for file in &files {
        let top = file.iter().next().unwrap_or_default().to_string_lossy();
        if !TOP_LEVEL.contains(&top.as_ref()) {
            found.push(format!("`{top}` is not part of the tree's top level"));
        }
        if file.extension().is_some_and(|extension| extension == "rs") {
            let text = read(tree, file)?;
            let kind = rules::Kind::of(file);
            found.extend(
                rules::rust(&text, kind)
                    .into_iter()
                    .map(|(line, what)| format!("{}:{line}: {what}", file.display())),
            );
        }
    }
    for name in TOP_LEVEL {
        if !files.iter().any(|file| file.starts_with(name)) {
            found.push(format!("`{name}` is missing from the tree's top level"));
        }
    }
    for package in tree.packages() {
        let manifest = &package.manifest_path;
        let text = fs::read_to_string(manifest)
            .with_context(|| format!("cannot read `{}`", manifest.display()))?;
        if !rules::has_workspace_lints(&text) {
            found.push(format!(
                "{}: lacks `[lints] workspace = true`",
                package.name
            ));
        }
    }
    if let Err(error) = Lock::read(tree) {
        found.push(format!("{error:#}"));
    }
    found.sort();
    found.dedup();
    for violation in &found {
        say(violation);
    }
    if found.is_empty() {
        return Ok(());
    }
    bail!("{} violations of house rules", found.len())
}

/// Returns the files that git tracks or would track, relative to the root.
fn tracked(tree: &Tree) -> Result<Vec<PathBuf>> {
    let list = Run::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .dir(tree.root())
        .output()?;
    Ok(list
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(PathBuf::from)
        // Deleted, but not yet committed.
        .filter(|file| tree.root().join(file).symlink_metadata().is_ok())
        .collect())
}

fn read(tree: &Tree, file: &Path) -> Result<String> {
    let path = tree.root().join(file);
    fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))
}
