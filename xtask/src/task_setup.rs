//! `cargo xtask setup`: installs what is missing, and says what and why.
//!
//! Nothing happens twice: each need is looked for first, and on a machine that has everything this
//! takes a fraction of a second.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::lock::{KernelWheel, Lock, sha256_of};
use crate::outer;
use crate::report::say;
use crate::run::Run;
use crate::task_smoke::{Place, first_look};
use crate::tree::{Tree, data_home, which};

/// The guest kernel's file name; libkrun loads it by this name.
const KERNEL_FILE: &str = "libkrunfw.so.5";

/// Where a system's own libkrunfw may be.
const SYSTEM_LIBRARIES: [&str; 6] = [
    "/usr/local/lib64",
    "/usr/local/lib",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib",
];

const CARGO_DENY: &str = "0.20.2";

/// A program, the Debian package that has it, and what it is for.
struct Need {
    package: &'static str,
    found: fn() -> bool,
    why: &'static str,
}

const NEEDS: [Need; 11] = [
    Need {
        package: "e2fsprogs",
        found: || which("mkfs.ext4").is_some(),
        why: "makes the writable disk of each bottle",
    },
    Need {
        package: "erofs-utils",
        found: || which("fsck.erofs").is_some(),
        why: "checks the image writer in tests",
    },
    Need {
        package: "mmdebstrap",
        found: || which("mmdebstrap").is_some(),
        why: "makes the root file system of images/base",
    },
    Need {
        package: "docker-registry",
        found: || which("docker-registry").is_some(),
        why: "is a real registry in tests of pulling",
    },
    Need {
        package: "skopeo",
        found: || which("skopeo").is_some(),
        why: "checks image layouts in tests",
    },
    Need {
        package: "umoci",
        found: || which("umoci").is_some(),
        why: "checks image layouts in tests",
    },
    Need {
        package: "iproute2",
        found: || which("ip").is_some(),
        why: "shows network namespaces in tests",
    },
    Need {
        package: "curl",
        found: || which("curl").is_some(),
        why: "is a real client in tests of the gateway",
    },
    Need {
        package: "python3",
        found: || which("python3").is_some(),
        why: "opens the wheel that holds the guest kernel",
    },
    Need {
        package: "python3-pip",
        found: has_pip,
        why: "fetches the guest kernel",
    },
    Need {
        package: "uidmap",
        found: || is_root() || which("newuidmap").is_some(),
        why: "lets mmdebstrap work without root",
    },
];

/// What only the outer guest needs.
const OUTER_NEEDS: [Need; 3] = [
    Need {
        package: "qemu-system-x86",
        found: || which("qemu-system-x86_64").is_some(),
        why: "runs microVMs where KVM is unusable",
    },
    Need {
        package: "busybox-static",
        found: || outer::busybox_works(),
        why: "starts the outer guest",
    },
    Need {
        package: "kmod",
        found: || which("modprobe").is_some() && which("depmod").is_some(),
        why: "finds the outer guest's kernel modules",
    },
];

/// Installs everything.
pub(crate) fn run(tree: &Tree) -> Result<()> {
    for_machines(tree)?;
    cargo_deny(tree)?;
    say("setup: nothing is missing");
    Ok(())
}

/// Installs what building images and running bottles needs; returns the kernel library's path.
pub(crate) fn for_machines(tree: &Tree) -> Result<PathBuf> {
    let place = first_look();
    match place {
        Place::Here => install(&NEEDS)?,
        // All at once: who isn't root is told one command, not two after each other.
        Place::Outer(_) => install(NEEDS.iter().chain(&OUTER_NEEDS))?,
    }
    let kernel = kernel(tree)?;
    match place {
        Place::Here => {}
        Place::Outer(_) => outer::prepare(tree)?,
    }
    Ok(kernel)
}

/// Installs what the outer guest needs.
pub(crate) fn for_outer(tree: &Tree) -> Result<()> {
    install(&OUTER_NEEDS)?;
    outer::prepare(tree)
}

/// Installs system packages, or says the one command that does.
fn install<'a>(needs: impl IntoIterator<Item = &'a Need>) -> Result<()> {
    let missing: Vec<&Need> = needs.into_iter().filter(|need| !(need.found)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for need in &missing {
        say(format!("missing: {} ({})", need.package, need.why));
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    let command = format!(
        "apt-get install --no-install-recommends -y {}",
        packages.join(" ")
    );
    if which("apt-get").is_none() {
        bail!(
            "this is no Debian system; install by its own means: {}",
            packages.join(" ")
        );
    }
    if !is_root() {
        bail!("system packages are missing; as root, run: apt-get update && {command}");
    }
    let attempt = || {
        say(&command);
        Run::new("apt-get")
            .args(["-qq", "install", "--no-install-recommends", "-y"])
            .args(&packages)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .quiet()
            .go()
    };
    if fresh_lists() && attempt().is_ok() {
        return Ok(());
    }
    say("apt-get update");
    Run::new("apt-get").args(["-qq", "update"]).go()?;
    attempt()?;
    match missing.iter().find(|need| !(need.found)()) {
        None => Ok(()),
        Some(need) => bail!(
            "`{}` is installed, but what it is for is still missing",
            need.package
        ),
    }
}

/// Says whether apt's package lists are there and younger than a day.
fn fresh_lists() -> bool {
    let Ok(entries) = fs::read_dir("/var/lib/apt/lists") else {
        return false;
    };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
        .filter_map(|entry| entry.metadata().ok()?.modified().ok())
        .any(|modified| {
            SystemTime::now()
                .duration_since(modified)
                .is_ok_and(|age| age < Duration::from_secs(24 * 3600))
        })
}

/// Finds the guest kernel: ours, else the system's, else the pinned wheel's.
fn kernel(tree: &Tree) -> Result<PathBuf> {
    let directory = data_home()?.join("kernel");
    let ours = directory.join(KERNEL_FILE);
    let lock = Lock::read(tree)?;
    if ours.exists() {
        let pinned = lock.kernel_here()?;
        let found = sha256_of(&ours)?;
        if found == pinned.sha256 {
            return Ok(ours);
        }
        say(format!(
            "`{}` is not the pinned kernel; fetching that one",
            ours.display()
        ));
    } else if let Some(system) = SYSTEM_LIBRARIES
        .iter()
        .map(|dir| Path::new(dir).join(KERNEL_FILE))
        .find(|f| f.exists())
    {
        return Ok(system);
    }
    let pinned = lock.kernel_here()?;
    fetch_kernel(pinned, &directory)?;
    Ok(ours)
}

fn fetch_kernel(pinned: &KernelWheel, directory: &Path) -> Result<()> {
    let KernelWheel {
        arch: _,
        package,
        version,
        wheel_sha256,
        file,
        sha256,
        contents,
        license,
        license_files,
    } = pinned;
    say(format!(
        "missing: the guest kernel; fetching {contents} ({license}) from the wheel {package} {version}"
    ));
    let work = tempfile::tempdir().context("cannot make a temporary directory")?;
    let wheels = work.path().join("wheels");
    let requirement = work.path().join("requirements.txt");
    // With a hash in the file, pip checks the wheel itself before we check the library.
    fs::write(
        &requirement,
        format!("{package}=={version} --hash=sha256:{wheel_sha256}\n"),
    )?;
    pip()?
        .args([
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--require-hashes",
        ])
        .arg("--dest")
        .arg(&wheels)
        .arg("--requirement")
        .arg(&requirement)
        .go()?;
    let wheel = fs::read_dir(&wheels)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension() == Some(OsStr::new("whl")))
        .context("pip downloaded no wheel")?;
    let unpacked = work.path().join("unpacked");
    Run::new("python3")
        .args(["-m", "zipfile", "-e"])
        .arg(&wheel)
        .arg(&unpacked)
        .go()?;

    let library = unpacked.join(file);
    let found = sha256_of(&library)?;
    if found != *sha256 {
        bail!("`{file}` of the wheel has digest {found}, images/lock.toml says {sha256}");
    }
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make `{}`", directory.display()))?;
    for text in license_files {
        let name = Path::new(text)
            .file_name()
            .context("a license file without a name")?;
        place(&unpacked.join(text), &directory.join(name))?;
    }
    // Last, so that a library in place means that its licence is, too.
    place(&library, &directory.join(KERNEL_FILE))
}

/// Copies a file so that the destination is whole or absent.
fn place(from: &Path, to: &Path) -> Result<()> {
    let directory = to.parent().context("a destination without a directory")?;
    let temporary = tempfile::Builder::new()
        .prefix(".new.")
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(directory)?;
    fs::copy(from, temporary.path())
        .with_context(|| format!("cannot copy `{}`", from.display()))?;
    fs::set_permissions(temporary.path(), Permissions::from_mode(0o644))?;
    temporary.as_file().sync_all()?;
    temporary
        .persist(to)
        .with_context(|| format!("cannot write `{}`", to.display()))?;
    Ok(())
}

/// Returns the pip client: a module of the first Python, or a command of its own.
fn pip() -> Result<Run> {
    if Run::new("python3")
        .args(["-m", "pip", "--version"])
        .succeeds()
    {
        return Ok(Run::new("python3").args(["-m", "pip"]));
    }
    for name in ["pip3", "pip"] {
        if Run::new(name).arg("--version").succeeds() {
            return Ok(Run::new(name));
        }
    }
    // Another Python may come first on the PATH than the one that Debian's package is for.
    let debian = Path::new("/usr/bin/python3");
    if Run::new(debian).args(["-m", "pip", "--version"]).succeeds() {
        return Ok(Run::new(debian).args(["-m", "pip"]));
    }
    bail!("no pip client works; install python3-pip")
}

fn has_pip() -> bool {
    pip().is_ok()
}

fn cargo_deny(tree: &Tree) -> Result<()> {
    if deny_version(tree).is_some_and(|version| version.contains(CARGO_DENY)) {
        return Ok(());
    }
    say(format!(
        "missing: cargo-deny {CARGO_DENY} (checks licenses and sources); building it"
    ));
    // Its own profile spends minutes on speed that a check of one lock file does not need.
    tree.cargo()
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
        .args([
            "install",
            "--quiet",
            "--locked",
            "cargo-deny",
            "--version",
            CARGO_DENY,
        ])
        .go()
}

/// Returns what `cargo deny --version` prints, if it is installed.
fn deny_version(tree: &Tree) -> Option<String> {
    let program = which("cargo-deny")?;
    Run::new(program)
        .arg("--version")
        .dir(tree.root())
        .output()
        .ok()
}

/// Says whether this process is root.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placed_file_is_readable_by_everyone() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("a"), directory.path().join("b"));
        fs::write(&from, "x").unwrap();
        place(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "x");
        assert_eq!(fs::metadata(&to).unwrap().mode() & 0o777, 0o644);
    }

    #[test]
    fn every_need_says_why() {
        for need in NEEDS.iter().chain(&OUTER_NEEDS) {
            assert!(!need.why.is_empty(), "{}", need.package);
        }
    }
}
