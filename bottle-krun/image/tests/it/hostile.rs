//! Layers that no honest tool writes: each is one clear error or has a defined meaning.

use std::fs;
use std::path::Path;

use bottle_image::{EntryProblem, ImageDisk, ImageError};
use serde_json::json;

use crate::calls::to_disk;
use crate::corpus::{CONFIG, Item, Kind, MANIFEST, Pack, blob, digest, image, layout, simple, tar};
use crate::facts::Tree;
use crate::reader::read;

fn convert(archive: Vec<u8>, dir: &Path) -> Result<ImageDisk, ImageError> {
    let manifest = image(dir, &[(archive, Pack::Gzip)], &json!({}));
    layout(dir, &[manifest]);
    to_disk(dir, None, &dir.join("store"))
}

/// The files of a store, without the versions in their names.
pub(crate) fn stored(store: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for dir in ["images", "layers"] {
        let Ok(entries) = fs::read_dir(store.join(dir)) else {
            continue;
        };
        for entry in entries {
            let name = entry.unwrap().file_name().into_string().unwrap();
            names.push(format!("{dir}/{name}"));
        }
    }
    names.sort();
    names
}

/// The problem and the path it was found at. Nothing may be left in the store, but for a layer
/// that is whole by itself: its links could be to layers below it.
#[track_caller]
fn problem_of(archive: Vec<u8>) -> (EntryProblem, String) {
    let dir = tempfile::tempdir().unwrap();
    let error = convert(archive, dir.path()).unwrap_err();
    let left = stored(&dir.path().join("store"));
    assert!(error.is_bad_image());
    let ImageError::BadEntry { source, path, .. } = error else {
        panic!("{error:?}");
    };
    if source == EntryProblem::LinkToNothing {
        let whole = left.iter().all(|name| name.starts_with("layers/"));
        assert!(whole && left.len() == 2, "{left:?}");
    } else {
        assert_eq!(left, [""; 0]);
    }
    (source, path)
}

#[track_caller]
fn problem(items: &[Item]) -> EntryProblem {
    problem_of(tar(items)).0
}

#[track_caller]
fn tree(layers: &[Vec<Item>]) -> Tree {
    let dir = tempfile::tempdir().unwrap();
    simple(dir.path(), layers);
    read(&to_disk(dir.path(), None, &dir.path().join("store")).unwrap())
}

fn paths(tree: &Tree) -> Vec<String> {
    let names = tree.keys().filter(|path| !path.is_empty());
    names
        .map(|path| String::from_utf8(path.clone()).unwrap())
        .collect()
}

#[test]
fn a_path_that_leaves_the_root_is_refused_and_named() {
    for path in ["../evil", "a/../../evil", "a/..", "/../evil", "./../x"] {
        let (problem, named) = problem_of(tar(&[Item::file("fine", ""), Item::file(path, "x")]));
        assert_eq!(
            (problem, named.as_str()),
            (EntryProblem::EscapingPath, path)
        );
    }
    assert_eq!(
        problem(&[Item::link("a", "../../etc/shadow")]),
        EntryProblem::EscapingPath
    );
    assert_eq!(
        problem(&[Item::file("../.wh.x", "")]),
        EntryProblem::EscapingPath
    );
}

#[test]
fn the_message_says_which_layer_and_which_path() {
    let dir = tempfile::tempdir().unwrap();
    let error = convert(tar(&[Item::file("../\u{1b}[2Jevil", "x")]), dir.path()).unwrap_err();
    let message = error.to_string();
    assert!(message.starts_with("layer sha256:"), "{message}");
    assert!(
        message.ends_with("has a bad entry `../\\u{1b}[2Jevil`"),
        "{message}"
    );
}

#[test]
fn an_absolute_path_is_below_the_images_root() {
    let tree = tree(&[vec![
        Item::file("/etc//./passwd", "x"),
        Item::link("//b", "/etc/passwd"),
    ]]);
    assert_eq!(paths(&tree), ["b", "etc", "etc/passwd"]);
    assert_eq!(tree[&b"etc/passwd"[..]].links, 2);
}

#[test]
fn an_entry_through_a_link_of_its_layer_stays_within_the_image() {
    let tree = tree(&[vec![
        Item::dir("usr/lib"),
        Item::symlink("lib", "usr/lib"),
        Item::file("lib/a", "a"),
        Item::symlink("up", "../../../.."),
        Item::file("up/b", "b"),
        Item::symlink("etc", "/usr/../etc-real"),
        Item::file("etc/c", "c"),
    ]]);
    assert_eq!(
        paths(&tree),
        [
            "b",
            "etc",
            "etc-real",
            "etc-real/c",
            "lib",
            "up",
            "usr",
            "usr/lib",
            "usr/lib/a"
        ]
    );
}

#[test]
fn an_entry_through_a_link_of_a_lower_layer_hides_the_link() {
    let tree = tree(&[
        vec![Item::dir("usr/lib"), Item::symlink("lib", "usr/lib")],
        vec![Item::file("lib/a", "a")],
    ]);
    assert_eq!(paths(&tree), ["lib", "lib/a", "usr", "usr/lib"]);
}

#[test]
fn links_in_a_circle_are_refused() {
    let loops = [
        Item::symlink("a", "b"),
        Item::symlink("b", "a"),
        Item::file("a/x", ""),
    ];
    assert_eq!(problem(&loops), EntryProblem::LinkLoop);
    let growing = [Item::symlink("a", "a/a/a/a/a/a"), Item::file("a/x", "")];
    assert_eq!(problem(&growing), EntryProblem::LinkLoop);
}

#[test]
fn an_entry_below_a_file_is_refused() {
    for kind in [Kind::File(vec![1]), Kind::Fifo, Kind::Char(1, 3)] {
        let items = [Item::node("a", kind), Item::file("a/b", "")];
        assert_eq!(problem(&items), EntryProblem::BelowNonDirectory);
    }
}

#[test]
fn only_a_directory_can_be_the_root() {
    for item in [
        Item::file(".", "x"),
        Item::symlink("/", "x"),
        Item::node("./", Kind::Fifo),
    ] {
        assert_eq!(problem(&[item]), EntryProblem::NotTheRoot);
    }
    let link = [Item::file("a", ""), Item::link("/", "a")];
    assert_eq!(problem(&link), EntryProblem::NotTheRoot);
}

#[test]
fn hard_links_need_a_file_to_link_to() {
    assert_eq!(
        problem(&[Item::link("a", "b")]),
        EntryProblem::LinkToNothing
    );
    assert_eq!(
        problem(&[Item::link("a", "a")]),
        EntryProblem::LinkToNothing
    );
    let to_dir = [Item::dir("d"), Item::link("a", "d")];
    assert_eq!(problem(&to_dir), EntryProblem::LinkToDirectory);
    assert_eq!(
        problem(&[Item::link("a", "/")]),
        EntryProblem::LinkToDirectory
    );
    assert_eq!(problem(&[Item::symlink("a", "")]), EntryProblem::LinkTarget);
    assert_eq!(
        problem(&[Item::symlink("a", "x".repeat(4096))]),
        EntryProblem::LinkTarget
    );
}

#[test]
fn a_link_to_itself_or_over_its_targets_parent_keeps_the_file() {
    let tree = tree(&[vec![
        Item::file("self", "s"),
        Item::link("self", "self"),
        Item::file("d/x", "kept"),
        Item::link("d", "d/x"),
    ]]);
    assert_eq!(paths(&tree), ["d", "self"]);
    assert_eq!((tree[&b"self"[..]].links, tree[&b"d"[..]].links), (1, 1));
    assert_eq!(tree[&b"d"[..]].size, 4);
}

#[test]
fn hard_links_reach_lower_layers_and_hidden_names() {
    let tree = tree(&[
        vec![
            Item::file("old", "shared"),
            Item::file("hidden", "h"),
            Item::file("first", "f"),
        ],
        vec![
            Item::link("new", "old"),
            Item::file(".wh.hidden", ""),
            Item::link("alias", "hidden"),
            Item::link("second", "first"),
        ],
        vec![Item::file(".wh.old", ""), Item::file("first", "changed")],
    ]);
    assert_eq!(paths(&tree), ["alias", "first", "new", "second"]);
    assert_eq!(tree[&b"new"[..]].size, 6);
    assert_eq!(tree[&b"alias"[..]].links, 1);
    assert_ne!(tree[&b"first"[..]].sha256, tree[&b"second"[..]].sha256);
}

#[test]
fn names_and_paths_have_linuxs_limits() {
    let too_long = |what| EntryProblem::PathTooLong { what, limit: 255 };
    assert_eq!(
        problem(&[Item::file("n".repeat(256), "")]),
        too_long("bytes in one name")
    );
    let long = vec!["d"; 2100].join("/");
    let limit = |what, limit| EntryProblem::PathTooLong { what, limit };
    assert_eq!(
        problem(&[Item::file(&long, "")]),
        limit("bytes in all", 4095)
    );
    let deep = vec!["d"; 600].join("/");
    let deep = problem(&[Item::file(&deep, "")]);
    assert_eq!(deep, limit("directories within directories", 512));
    // Names that only a symbolic link's target brings in.
    let items = [Item::symlink("a", "n".repeat(300)), Item::file("a/b", "")];
    assert_eq!(problem(&items), too_long("bytes in one name"));
}

#[test]
fn extended_attributes_have_a_limit() {
    let items = [Item::file("a", "")
        .xattr("user.a", vec![0; 40_000])
        .xattr("user.b", vec![0; 40_000])];
    assert_eq!(problem(&items), EntryProblem::Xattrs { limit: 65_535 });
    let name = format!("user.{}", "n".repeat(300));
    assert_eq!(
        problem(&[Item::file("a", "").xattr(&name, "")]),
        EntryProblem::Xattrs { limit: 65_535 }
    );
    let tree = tree(&[vec![Item::file("a", "x").xattr("user.a", vec![7; 60_000])]]);
    assert_eq!(tree[&b"a"[..]].xattrs[&b"user.a"[..]].len(), 60_000);
}

#[test]
fn attributes_that_command_the_overlay_driver_are_dropped() {
    let item = Item::dir("a")
        .xattr("trusted.overlay.redirect", "/etc")
        .xattr("system.nonsense", "x")
        .xattr("trusted.mine", "x");
    let tree = tree(&[vec![item]]);
    let names: Vec<_> = tree[&b"a"[..]].xattrs.keys().collect();
    assert_eq!(names, [&b"trusted.mine"[..]]);
}

#[test]
fn whiteouts_must_name_something() {
    for name in [".wh.", "d/.wh.", ".wh..", "d/.wh..."] {
        assert_eq!(problem(&[Item::file(name, "")]), EntryProblem::Whiteout);
    }
    // AUFS kept its books in the layers of its time.
    let tree = tree(&[vec![
        Item::file(".wh..wh.aufs", ""),
        Item::file(".wh..wh.plnk/1.2", "x"),
    ]]);
    assert_eq!(paths(&tree), [""; 0]);
}

#[test]
fn sparse_and_foreign_entries_are_refused() {
    let mut sparse = tar::Builder::new(Vec::new());
    sparse
        .append_pax_extensions([("GNU.sparse.major", &b"1"[..])])
        .unwrap();
    let archive = [
        &sparse.into_inner().unwrap()[..1024],
        &tar(&[Item::file("a", "x")]),
    ]
    .concat();
    assert_eq!(problem_of(archive), (EntryProblem::Sparse, "a".to_owned()));
    for flag in *b"SDMVZ" {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::new(flag));
        header.set_path("odd").unwrap();
        header.set_size(0);
        header.set_mode(0);
        header.set_cksum();
        let expected = match flag {
            b'S' => EntryProblem::Sparse,
            other => EntryProblem::Type(other),
        };
        assert_eq!(
            problem_of(header.as_bytes().to_vec()),
            (expected, "odd".to_owned())
        );
    }
}

#[test]
fn bytes_that_are_no_archive_are_refused() {
    assert_eq!(problem_of(vec![b'x'; 2048]).0, EntryProblem::Checksum);
    assert_eq!(problem_of(vec![b'x'; 100]).0, EntryProblem::Truncated);
}

#[test]
fn an_archive_that_ends_early_is_refused_wherever_it_ends() {
    let whole = tar(&[
        Item::file("n".repeat(200), vec![1; 3000]).mtime(1, 1),
        Item::file("b", vec![2; 600]),
    ]);
    // Two records end the archive; at the end of an entry it may end without them.
    let end = whole.len() - 1024;
    for cut in (1..end).step_by(97) {
        let dir = tempfile::tempdir().unwrap();
        match convert(whole[..cut].to_vec(), dir.path()) {
            Err(ImageError::BadEntry {
                source: EntryProblem::Truncated,
                ..
            }) => {}
            Ok(_) if cut % 512 == 0 => {}
            other => panic!("{cut}: {other:?}"),
        }
    }
    let dir = tempfile::tempdir().unwrap();
    convert(whole[..end].to_vec(), dir.path()).unwrap();
}

#[test]
fn gnu_long_names_and_large_numbers_are_read() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o640);
    header.set_uid(3_000_000_000);
    header.set_gid(5);
    header.set_mtime(1 << 34);
    let name = vec!["long".repeat(20); 5].join("/");
    builder
        .append_data(&mut header, &name, &b"abc"[..])
        .unwrap();
    header.set_size(0);
    header.set_entry_type(tar::EntryType::Symlink);
    builder
        .append_link(&mut header, "link", "t".repeat(300))
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let tree = read(&convert(builder.into_inner().unwrap(), dir.path()).unwrap());
    let file = &tree[name.as_bytes()];
    assert_eq!((file.mode, file.size), (0o100_640, 3));
    assert_eq!((file.owner, file.mtime), ((3_000_000_000, 5), (1 << 34, 0)));
    assert_eq!(tree[&b"link"[..]].target, vec![b't'; 300]);
}

#[test]
fn a_size_that_no_disk_has_is_refused_before_it_is_read() {
    for (size, what) in [
        (1u64 << 40, "bytes of all layers, decompressed"),
        (u64::MAX >> 1, "bytes of all layers, decompressed"),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_path("huge").unwrap();
        header.set_mode(0o644);
        header.set_size(size);
        header.set_cksum();
        // As much as proves that it is not the end that is noticed.
        let archive = [header.as_bytes().as_slice(), &[0; 1 << 20]].concat();
        let dir = tempfile::tempdir().unwrap();
        let error = convert(archive, dir.path()).unwrap_err();
        assert!(
            matches!(error, ImageError::Limit { what: found, .. } if found == what),
            "{error:?}"
        );
        assert_eq!(stored(&dir.path().join("store")), [""; 0]);
    }
}

#[test]
fn a_whiteout_of_nothing_is_nothing() {
    let tree = tree(&[
        vec![Item::file("a", "a")],
        vec![Item::file("d/.wh.never", ""), Item::file(".wh.was", "")],
    ]);
    assert_eq!(paths(&tree), ["a", "d"]);
}

#[test]
fn a_zstd_window_that_does_not_fit_into_memory_is_refused() {
    // A frame that asks for a window of 1 GiB, and a raw block of nothing that ends it.
    let frame = [
        0x28,
        0xb5,
        0x2f,
        0xfd,
        0x00,
        (30 - 10) << 3,
        0x01,
        0x00,
        0x00,
    ];
    let dir = tempfile::tempdir().unwrap();
    let layer = blob(dir.path(), Pack::Zstd.oci(), &frame);
    let config = json!({"rootfs": {"diff_ids": [digest(b"")]}});
    let config = blob(dir.path(), CONFIG, config.to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    layout(
        dir.path(),
        &[blob(dir.path(), MANIFEST, manifest.to_string().as_bytes())],
    );
    let error = to_disk(dir.path(), None, &dir.path().join("store")).unwrap_err();
    let ImageError::UnreadableLayer { source, .. } = error else {
        panic!("{error:?}");
    };
    assert!(source.to_string().contains("memory"), "{source}");
}
