//! What the kernel makes of the disks, compared with `tar`'s extraction and with overlayfs.
//!
//! These tests mount, so they need root; without it each says that it was skipped and why.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::slice;

use bottle_image::ImageDisk;
use rustix::fs::{
    AtFlags, CWD, FileType, Timespec, Timestamps, XattrFlags, lsetxattr, makedev, mknodat,
    utimensat,
};
use rustix::process::geteuid;
use serde_json::Value;

use crate::calls::to_disk;
use crate::corpus::{Item, Kind, nasty, simple, tar};
use crate::facts::{Tree, assert_same};
use crate::reader::{joined, read};
use crate::scan::scan;

/// Runs a program; the error is what it said.
fn run(program: &str, args: &[&OsStr]) -> Result<String, String> {
    let output = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if output.status.success() {
        Ok(text)
    } else {
        Err(format!("{program}: {text}"))
    }
}

/// A mount that ends with the test.
struct Mounted(PathBuf);

impl Mounted {
    fn new(kind: &str, options: &str, source: &Path, dir: &Path) -> Result<Self, String> {
        if !geteuid().is_root() {
            return Err("mounting needs root".to_owned());
        }
        fs::create_dir_all(dir).unwrap();
        let args = ["-t", kind, "-o", options].map(OsStr::new);
        run(
            "mount",
            &[&args[..], &[source.as_os_str(), dir.as_os_str()]].concat(),
        )?;
        Ok(Self(dir.to_owned()))
    }

    fn erofs(image: &Path, dir: &Path) -> Result<Self, String> {
        Self::new("erofs", "loop,ro", image, dir)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(message) = run("umount", &[self.0.as_os_str()]) {
            eprintln!("{message}");
        }
    }
}

/// Unpacks a tar archive with GNU tar, as root.
fn extract(archive: &Path, dir: &Path) -> Result<(), String> {
    fs::create_dir_all(dir).unwrap();
    let args = [
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
        // Hard links may come into a directory that seemed finished.
        "--delay-directory-restore",
        "-p",
        "-x",
        "-f",
    ];
    let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
    run(
        "tar",
        &[
            &args[..],
            &[archive.as_os_str(), OsStr::new("-C"), dir.as_os_str()],
        ]
        .concat(),
    )
    .map(drop)
}

/// Joins a disk into one file, which the checker accepts, as it does each layer by itself.
#[track_caller]
pub(crate) fn checked(disk: &ImageDisk, dir: &Path) -> PathBuf {
    let path = dir.join("joined.erofs");
    fs::write(&path, joined(disk)).unwrap();
    fsck(&path);
    for layer in &disk.parts[1..] {
        fsck(layer);
    }
    path
}

#[track_caller]
fn fsck(image: &Path) {
    match run("fsck.erofs", &[image.as_os_str()]) {
        Ok(_) => {}
        Err(message) if message.contains("os error 2") => {
            eprintln!("skipped: fsck.erofs is not installed");
        }
        Err(message) => panic!("{message}"),
    }
}

#[test]
fn every_kind_of_entry_comes_out_as_tar_extracts_it() {
    let dir = tempfile::tempdir().unwrap();
    let items = nasty();
    simple(dir.path(), slice::from_ref(&items));
    let disk = to_disk(dir.path(), None, &dir.path().join("store")).unwrap();
    let path = checked(&disk, dir.path());
    let ours = read(&disk);

    let mount = match Mounted::erofs(&path, &dir.path().join("mnt")) {
        Ok(mount) => mount,
        Err(reason) => return eprintln!("skipped: comparison with the kernel: {reason}"),
    };
    assert_same(&scan(&mount.0), &ours, "the kernel's view and the reader's");
    let archive = dir.path().join("layer.tar");
    fs::write(&archive, tar(&items)).unwrap();
    let extracted = dir.path().join("extracted");
    extract(&archive, &extracted).unwrap();
    assert_same(&scan(&extracted), &ours, "tar's extraction and the disk");
}

/// What layers in the form of overlayfs would be called, for the oracle.
fn as_overlay_layer(dir: &Path) {
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            } else if name == ".wh..wh..opq" {
                let times = times_of(&dir);
                fs::remove_file(entry.path()).unwrap();
                let flags = XattrFlags::empty();
                lsetxattr(&dir, "trusted.overlay.opaque", b"y", flags).unwrap();
                set_times(&dir, &times);
            } else if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
                let times = times_of(&dir);
                fs::remove_file(entry.path()).unwrap();
                let path = dir.join(OsStr::from_bytes(hidden));
                if path.is_dir() {
                    let flags = XattrFlags::empty();
                    lsetxattr(&path, "trusted.overlay.opaque", b"y", flags).unwrap();
                } else if fs::symlink_metadata(&path).is_err() {
                    let (mode, dev) = (0o600.into(), makedev(0, 0));
                    let kind = FileType::CharacterDevice;
                    mknodat(CWD, &path, kind, mode, dev).unwrap();
                }
                set_times(&dir, &times);
            }
        }
    }
}

fn times_of(path: &Path) -> Timestamps {
    let found = fs::symlink_metadata(path).unwrap();
    let time = Timespec {
        tv_sec: found.mtime(),
        tv_nsec: found.mtime_nsec(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn set_times(path: &Path, times: &Timestamps) {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    utimensat(CWD, path, times, flags).unwrap();
}

/// Without what overlayfs reports differently: link counts and inode identity.
fn without_links(mut tree: Tree) -> Tree {
    for facts in tree.values_mut() {
        facts.links = 0;
        facts.same_as.clear();
    }
    tree
}

/// Compares the merged disk of `layers` with overlayfs over their extractions; a skip's reason.
fn compare_with_overlayfs(layers: &[Vec<Item>]) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    simple(dir.path(), layers);
    let disk = to_disk(dir.path(), None, &dir.path().join("store")).unwrap();
    let path = checked(&disk, dir.path());
    let ours = read(&disk);

    // overlayfs wants two layers at least.
    let mut lower = vec!["empty".to_owned()];
    fs::create_dir(dir.path().join("empty")).unwrap();
    if !geteuid().is_root() {
        return Err("mounting needs root".to_owned());
    }
    for (number, items) in layers.iter().enumerate() {
        let name = format!("layer-{number}");
        let archive = dir.path().join(format!("{name}.tar"));
        fs::write(&archive, tar(items)).unwrap();
        extract(&archive, &dir.path().join(&name)).unwrap();
        as_overlay_layer(&dir.path().join(&name));
        lower.insert(0, name);
    }
    let lower: Vec<String> = lower
        .iter()
        .map(|name| dir.path().join(name).to_str().unwrap().to_owned())
        .collect();
    let options = format!("ro,lowerdir={}", lower.join(":"));
    let mounted = Mounted::new(
        "overlay",
        &options,
        Path::new("overlay"),
        &dir.path().join("ovl"),
    )?;
    assert_same(
        &without_links(scan(&mounted.0)),
        &without_links(ours.clone()),
        "overlayfs and the merged disk",
    );
    let mounted = Mounted::erofs(&path, &dir.path().join("mnt"))?;
    assert_same(
        &scan(&mounted.0),
        &ours,
        "the kernel's view and the reader's",
    );
    stack(&disk, dir.path(), &ours)
}

/// Mounts every layer's own image, and overlayfs over all of them: the same tree again.
fn stack(disk: &ImageDisk, dir: &Path, merged: &Tree) -> Result<(), String> {
    let mut mounts = Vec::new();
    let mut lower = vec![dir.join("empty").to_str().unwrap().to_owned()];
    for (number, layer) in disk.parts[1..].iter().enumerate() {
        let at = dir.join(format!("own-{number}"));
        mounts.push(Mounted::erofs(layer, &at)?);
        lower.insert(0, at.to_str().unwrap().to_owned());
    }
    let options = format!("ro,lowerdir={}", lower.join(":"));
    let at = dir.join("stack");
    let mounted = Mounted::new("overlay", &options, Path::new("overlay"), &at)?;
    assert_same(
        &without_links(scan(&mounted.0)),
        &without_links(merged.clone()),
        "overlayfs over the layers' images and the merged disk",
    );
    Ok(())
}

fn whiteout(path: &str) -> Item {
    Item::file(path, "").mode(0o600)
}

#[test]
fn layers_merge_as_overlayfs_merges_them() {
    let layers = [
        vec![
            Item::dir("./").mode(0o755),
            Item::dir("kept").owner(1, 2).mtime(1, 2),
            Item::file("kept/a", "1"),
            Item::file("kept/b", "1").xattr("user.one", "1"),
            Item::dir("gone"),
            Item::file("gone/deep", "1"),
            Item::dir("opaque").mode(0o700),
            Item::dir("opaque/sub"),
            Item::file("opaque/sub/old", "1"),
            Item::file("opaque/old", "1"),
            Item::file("file-to-dir", "1"),
            Item::dir("dir-to-file"),
            Item::file("dir-to-file/x", "1"),
            Item::symlink("lib", "usr/lib"),
            Item::dir("usr"),
            Item::dir("usr/lib"),
            Item::file("usr/lib/old", "1"),
            Item::dir("again"),
            Item::file("again/old", "1"),
            Item::node("device", Kind::Char(5, 1)),
            Item::file("hard-1", "shared"),
            Item::link("hard-2", "hard-1"),
        ],
        vec![
            Item::dir("./").mode(0o711).mtime(77, 0),
            Item::dir("kept").owner(3, 4).mode(0o750).mtime(-5, 1),
            Item::file("kept/b", "22").xattr("user.two", "2"),
            whiteout(".wh.gone"),
            Item::dir("opaque").mode(0o701),
            Item::file("opaque/new", "2"),
            Item::dir("opaque/sub"),
            // Behind what it must not hide.
            whiteout("opaque/.wh..wh..opq"),
            Item::file("opaque/later", "2"),
            Item::dir("file-to-dir"),
            Item::file("file-to-dir/x", "2"),
            Item::file("dir-to-file", "2"),
            Item::dir("lib"),
            Item::file("lib/new", "2"),
            whiteout("usr/.wh.never-was"),
            Item::dir("usr").mtime(3, 3),
            whiteout(".wh.again"),
            Item::dir("again"),
            Item::file("again/new", "2"),
            whiteout(".wh.device"),
            whiteout(".wh.hard-1"),
        ],
        vec![
            // Without it the root would be what the layer implies.
            Item::dir("./").mode(0o555),
            Item::file("gone", "a file now"),
            Item::symlink("device", "dangling"),
            Item::file("hard-2", "parted"),
            whiteout("kept/.wh.a"),
            Item::dir("kept").mtime(9, 9),
        ],
    ];
    if let Err(reason) = compare_with_overlayfs(&layers) {
        eprintln!("skipped: comparison with overlayfs: {reason}");
    }
}

#[test]
fn a_real_image_comes_out_as_tar_extracts_it() {
    let Some(layout) = env::var_os("BOTTLE_TEST_LAYOUT").map(PathBuf::from) else {
        return eprintln!("skipped: BOTTLE_TEST_LAYOUT names no OCI layout with a one-layer image");
    };
    let dir = tempfile::tempdir().unwrap();
    let disk = to_disk(&layout, None, &dir.path().join("store")).unwrap();
    let path = checked(&disk, dir.path());
    let mount = match Mounted::erofs(&path, &dir.path().join("mnt")) {
        Ok(mount) => mount,
        Err(reason) => return eprintln!("skipped: comparison with the kernel: {reason}"),
    };
    let blob = |digest: &str| layout.join("blobs/sha256").join(&digest[7..]);
    let manifest = fs::read(blob(&disk.image.manifest)).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    if layers.len() != 1 {
        return eprintln!("skipped: the image has {} layers, not one", layers.len());
    }
    let extracted = dir.path().join("extracted");
    extract(&blob(layers[0]["digest"].as_str().unwrap()), &extracted).unwrap();
    let ours = scan(&mount.0);
    assert_same(&scan(&extracted), &ours, "tar's extraction and the disk");
    eprintln!("{} paths are equal", ours.len());
}
