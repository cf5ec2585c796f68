//! `cargo xtask images build NAME`: recipes to OCI layouts, without Docker.
//!
//! The packages come through this machine's own apt configuration where it has the recipe's suite.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde::Deserialize;

use crate::lock::sha256;
use crate::oci::{self, About};
use crate::report::{line, say, took};
use crate::run::Run;
use crate::task_setup;
use crate::tree::Tree;

/// Part of the key of a built image: raise it when the same recipe is built differently.
const BUILDER: u32 = 1;

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Build images/NAME into an OCI layout; prints its path
    Build {
        /// The recipe's directory below images/
        name: String,
    },
}

/// A recipe as written, `images/NAME/recipe.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    /// The Debian suite.
    suite: String,
    /// The packages besides the essential ones.
    packages: Vec<String>,
    /// The time that every file is clamped to, in seconds since the epoch.
    source_date_epoch: u64,
    /// The same as RFC 3339, for the image's configuration.
    created: String,
    /// The ordinary user.
    user: User,
    /// The environment of commands.
    env: BTreeMap<String, String>,
    /// The default command.
    cmd: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct User {
    name: String,
    uid: u32,
    shell: String,
    /// Whether sudo asks for no password.
    sudo: bool,
}

/// Runs the task.
pub(crate) fn run(tree: &Tree, task: &Task) -> Result<()> {
    match task {
        Task::Build { name } => {
            task_setup::for_machines(tree)?;
            let layout = ensure(tree, name)?;
            line(layout.display().to_string());
            Ok(())
        }
    }
}

/// Returns the image's OCI layout, built if its recipe has changed.
pub(crate) fn ensure(tree: &Tree, name: &str) -> Result<PathBuf> {
    let recipe_path = tree.root().join("images").join(name).join("recipe.toml");
    let text = fs::read_to_string(&recipe_path).with_context(|| {
        format!(
            "there is no image `{name}`: cannot read `{}`",
            recipe_path.display()
        )
    })?;
    let recipe: Recipe = toml::from_str(&text)
        .with_context(|| format!("`{}` is not valid", recipe_path.display()))?;
    check(&recipe).with_context(|| format!("`{}` is not valid", recipe_path.display()))?;
    let layout = tree.image(name);
    let stamp = layout.with_extension("key");
    let key = sha256(format!("{BUILDER}\0{text}").as_bytes());
    if layout.join("index.json").exists() && fs::read_to_string(&stamp).is_ok_and(|old| old == key)
    {
        return Ok(layout);
    }
    let start = Instant::now();
    say(format!(
        "building images/{name} from Debian {}",
        recipe.suite
    ));
    let parent = layout
        .parent()
        .context("an image without a parent directory")?;
    fs::create_dir_all(parent)?;
    let work = tempfile::Builder::new()
        .prefix("build.")
        .tempdir_in(parent)?;
    let tar = work.path().join("rootfs.tar");
    root_file_system(&recipe, &tar)?;
    let fresh = work.path().join("layout");
    oci::write(&fresh, &tar, &about(name, recipe))?;
    if layout.exists() {
        let _absent = fs::remove_file(&stamp);
        fs::remove_dir_all(&layout)?;
    }
    fs::rename(&fresh, &layout).with_context(|| format!("cannot place `{}`", layout.display()))?;
    fs::write(&stamp, key)?;
    say(format!("built images/{name} in {}", took(start.elapsed())));
    Ok(layout)
}

/// Refuses what would not be a plain word in the scripts that mmdebstrap runs.
fn check(recipe: &Recipe) -> Result<()> {
    let plain = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.+/".contains(&byte))
            && !text.starts_with('-')
    };
    let words = [&recipe.suite, &recipe.user.name, &recipe.user.shell];
    match recipe
        .packages
        .iter()
        .chain(words)
        .find(|word| !plain(word))
    {
        None => Ok(()),
        Some(word) => bail!("`{}` is no plain name", word.escape_debug()),
    }
}

fn root_file_system(recipe: &Recipe, tar: &Path) -> Result<()> {
    let User {
        name,
        uid,
        shell,
        sudo,
    } = &recipe.user;
    let mut command = Run::new("mmdebstrap")
        .args(["--quiet", "--variant=minbase", "--format=tar"])
        .arg(if task_setup::is_root() {
            "--mode=root"
        } else {
            "--mode=unshare"
        })
        .arg(format!("--include={}", recipe.packages.join(",")))
        // No documentation but the copyright files.
        .arg("--dpkgopt=path-exclude=/usr/share/man/*")
        .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
        .arg("--dpkgopt=path-exclude=/usr/share/doc/*")
        .arg("--dpkgopt=path-include=/usr/share/doc/*/copyright")
        .arg(format!(
            "--customize-hook=chroot \"$1\" useradd --create-home --uid {uid} --user-group \
             --shell {shell} {name}"
        ))
        .env("SOURCE_DATE_EPOCH", recipe.source_date_epoch.to_string());
    if *sudo {
        command = command.arg(format!(
            "--customize-hook=echo '{name} ALL=(ALL:ALL) NOPASSWD: ALL' >\"$1/etc/sudoers.d/{name}\" \
             && chmod 440 \"$1/etc/sudoers.d/{name}\""
        ));
    }
    command = command
        // The build machine's names and resolver are of no use to a bottle; its init writes them.
        .arg("--customize-hook=rm -f \"$1/etc/resolv.conf\" \"$1/etc/hostname\" \"$1/etc/machine-id\"")
        .arg("--customize-hook=: >\"$1/etc/resolv.conf\"; : >\"$1/etc/machine-id\"")
        // Logs and the backups of passwd differ from build to build.
        .arg("--customize-hook=rm -rf \"$1\"/var/log/* \"$1\"/var/cache/ldconfig/* \"$1\"/etc/*-")
        .arg(&recipe.suite)
        .arg(tar);
    command.args(sources(&recipe.suite)).go()
}

/// Returns the sources of the suite that this machine's apt is configured with.
///
/// None means that mmdebstrap names Debian's own.
fn sources(suite: &str) -> Vec<String> {
    let targets = Run::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)",
        ])
        .arg("Created-By: Packages")
        .output()
        .unwrap_or_default();
    sources_from(&targets, suite)
}

fn sources_from(targets: &str, suite: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for target in targets.lines() {
        let [origin, uri, release, component, signed_by] =
            target.split('|').collect::<Vec<_>>()[..]
        else {
            continue;
        };
        let ours = release == suite
            || release
                .strip_prefix(suite)
                .is_some_and(|rest| matches!(rest, "-updates" | "-security" | "/updates"));
        if origin != "Debian" || component != "main" || !ours {
            continue;
        }
        let key = if signed_by.starts_with('/') {
            format!("[signed-by={signed_by}] ")
        } else {
            String::new()
        };
        let line = format!("deb {key}{uri} {release} main");
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    // Without the suite itself the rest is useless.
    if lines
        .iter()
        .any(|line| line.ends_with(&format!(" {suite} main")))
    {
        lines
    } else {
        Vec::new()
    }
}

fn about(name: &str, recipe: Recipe) -> About {
    About {
        reference: name.to_owned(),
        architecture: if cfg!(target_arch = "aarch64") {
            "arm64"
        } else {
            "amd64"
        },
        created: recipe.created,
        created_by: format!(
            "cargo xtask images build {name} # mmdebstrap {}",
            recipe.suite
        ),
        working_dir: format!("/home/{}", recipe.user.name),
        user: recipe.user.name,
        env: recipe
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect(),
        cmd: recipe.cmd,
        labels: BTreeMap::from([(
            "org.opencontainers.image.title".to_owned(),
            format!("bottle/{name}"),
        )]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_in_the_tree_is_valid() {
        let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images");
        let mut count = 0;
        for entry in fs::read_dir(images).unwrap() {
            let path = entry.unwrap().path().join("recipe.toml");
            if let Ok(text) = fs::read_to_string(&path) {
                check(&toml::from_str(&text).unwrap()).unwrap();
                count += 1;
            }
        }
        assert!(count > 0);
    }

    #[test]
    fn the_machines_own_sources_of_the_suite_are_used() {
        let targets = "Debian|http://mirror.test/debian|bookworm|main|/usr/share/keyrings/d.gpg\n\
                       Debian|http://mirror.test/debian|bookworm|contrib|\n\
                       Debian|http://mirror.test/debian|bookworm-backports|main|\n\
                       Debian|http://mirror.test/security|bookworm-security|main|\n\
                       Other|http://other.test|bookworm|main|\n";
        assert_eq!(
            sources_from(targets, "bookworm"),
            [
                "deb [signed-by=/usr/share/keyrings/d.gpg] http://mirror.test/debian bookworm main",
                "deb http://mirror.test/security bookworm-security main",
            ]
        );
    }

    #[test]
    fn a_machine_without_the_suite_leaves_the_choice_to_mmdebstrap() {
        assert!(sources_from("Debian|http://m.test|trixie|main|\n", "bookworm").is_empty());
        assert!(
            sources_from("Debian|http://m.test|bookworm-security|main|\n", "bookworm").is_empty()
        );
    }
}
