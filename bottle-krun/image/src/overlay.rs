//! The writable disk of a bottle: a sparse ext4 file.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{self, Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::error::{ImageError, io_at};

/// Makes a sparse ext4 file of `bytes` virtual size with serial-independent, empty content.
///
/// The file must not exist yet; it gets mode 0600. Its root belongs to root, no blocks are
/// reserved, and the inode tables count as zeroed (a sparse file is), so that neither this nor
/// the guest's first mount writes much: milliseconds, and a few megabytes on the host.
///
/// # Errors
///
/// [`ImageError`] if `mkfs.ext4` is missing or fails; the file is removed then.
pub fn make_overlay(path: &Path, bytes: u64) -> Result<(), ImageError> {
    let search = env::var_os("PATH").unwrap_or_default();
    let program = find_program(&search).ok_or(ImageError::MkfsMissing)?;
    make_overlay_with(&program, path, bytes)
}

fn make_overlay_with(program: &Path, path: &Path, bytes: u64) -> Result<(), ImageError> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(io_at("make", path))?;
    let made = file
        .set_len(bytes)
        .map_err(io_at("write", path))
        .and_then(|()| format(program, path));
    if made.is_err() {
        // What stopped the work is the better report of the two.
        let _ = fs::remove_file(path);
    }
    made
}

fn format(program: &Path, path: &Path) -> Result<(), ImageError> {
    // e2fsprogs before 1.47 do not know that a file may be known to be zero.
    let options = [
        "assume_storage_prezeroed=1,",
        "lazy_itable_init=1,lazy_journal_init=1,",
    ];
    let mut message = String::new();
    for option in options {
        let output = run(program, path, option).map_err(io_at("run", program))?;
        if output.status.success() {
            return Ok(());
        }
        message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if message.is_empty() {
            message = output.status.to_string();
        }
        if !message.contains("assume_storage_prezeroed") {
            break;
        }
    }
    Err(ImageError::MkfsFailed {
        program: program.to_owned(),
        path: path.to_owned(),
        message,
    })
}

fn run(program: &Path, path: &Path, option: &str) -> io::Result<Output> {
    // A leading dash would be an option; and nothing of the host's environment matters.
    let path = path::absolute(path)?;
    Command::new(program)
        .args([
            "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0",
        ])
        .arg("-E")
        .arg(format!("{option}nodiscard,root_owner=0:0"))
        .arg("--")
        .arg(path)
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
}

/// `mkfs.ext4` in `search`, a value of PATH, or where it is without being in a user's PATH.
fn find_program(search: &OsStr) -> Option<PathBuf> {
    env::split_paths(search)
        .filter(|dir| dir.is_absolute())
        .chain(["/sbin", "/usr/sbin"].map(PathBuf::from))
        .map(|dir| dir.join("mkfs.ext4"))
        .find(|program| {
            fs::metadata(program)
                .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn fake_mkfs(dir: &Path, script: &str) -> PathBuf {
        let program = dir.join("mkfs.ext4");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        program
    }

    #[test]
    fn a_program_in_the_path_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let program = fake_mkfs(dir.path(), "exit 0");
        assert_eq!(find_program(dir.path().as_os_str()), Some(program.clone()));
        fs::set_permissions(&program, PermissionsExt::from_mode(0o644)).unwrap();
        assert_ne!(find_program(dir.path().as_os_str()), Some(program));
    }

    #[test]
    fn a_failure_says_what_the_program_said_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let program = fake_mkfs(dir.path(), "echo no luck today >&2; exit 3");
        let path = dir.path().join("overlay");
        let error = make_overlay_with(&program, &path, 1 << 30).unwrap_err();
        assert!(error.to_string().contains("no luck today"), "{error}");
        assert!(!path.exists());
        let program = fake_mkfs(dir.path(), "exit 3");
        let error = make_overlay_with(&program, &path, 1 << 30).unwrap_err();
        assert!(error.to_string().contains("exit status: 3"), "{error}");
        let missing = dir.path().join("missing");
        let error = make_overlay_with(&missing, &path, 1 << 30).unwrap_err();
        assert!(matches!(error, ImageError::Io { op: "run", .. }), "{error}");
        assert!(!path.exists());
    }

    #[test]
    fn an_old_program_is_asked_again_without_the_new_option() {
        let dir = tempfile::tempdir().unwrap();
        let script = "case \"$*\" in *assume_storage_prezeroed*) \
                      echo 'Bad option(s): assume_storage_prezeroed' >&2; exit 1;; esac";
        let program = fake_mkfs(dir.path(), script);
        make_overlay_with(&program, &dir.path().join("overlay"), 1 << 30).unwrap();
    }

    #[test]
    fn a_file_that_exists_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("overlay");
        fs::write(&path, "precious").unwrap();
        let error = make_overlay(&path, 1 << 30).unwrap_err();
        assert!(
            matches!(error, ImageError::Io { op: "make", .. }),
            "{error}"
        );
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn an_overlay_is_sparse() {
        if find_program(OsStr::new("")).is_none() {
            eprintln!("skipped: mkfs.ext4 is not installed");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("overlay");
        make_overlay(&path, 20 << 30).unwrap();
        let found = fs::metadata(&path).unwrap();
        assert_eq!(found.len(), 20 << 30);
        assert!(
            found.blocks() * 512 < 16 << 20,
            "{} sectors",
            found.blocks()
        );
        let check = Command::new("/sbin/e2fsck")
            .args(["-fn"])
            .arg(&path)
            .output();
        match check {
            Ok(output) => assert!(output.status.success(), "{output:?}"),
            Err(error) => eprintln!("skipped: e2fsck: {error}"),
        }
    }

    #[test]
    fn too_small_is_an_error_that_says_so() {
        if find_program(OsStr::new("")).is_none() {
            eprintln!("skipped: mkfs.ext4 is not installed");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("overlay");
        let error = make_overlay(&path, 4096).unwrap_err();
        assert!(matches!(error, ImageError::MkfsFailed { .. }), "{error}");
        assert!(!path.exists());
    }
}
