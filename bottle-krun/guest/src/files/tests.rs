//! Trees packed and unpacked in directories of the test, and hostile archives.

use std::cell::Cell;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{env, process};

use bottle_wire::guest::FromHost;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use tar::{EntryType, Header};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::yield_now;

use super::*;
use crate::control::testing::{Host, is_root, with_init};

/// A directory of one test's.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        thread_local!(static COUNT: Cell<u32> = const { Cell::new(0) });
        let number = COUNT.replace(COUNT.get() + 1);
        let name = format!(
            "bottle-files-{}-{:?}-{number}",
            process::id(),
            thread::current().id()
        );
        let path = env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, path: &str, content: &[u8]) -> PathBuf {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.0.join(path)).unwrap()
    }

    fn root(&self) -> Root {
        Root::open(&self.0).unwrap()
    }

    /// Packs a path of this directory as if it were the root.
    fn pack(&self, path: &str) -> Vec<u8> {
        let root = self.root();
        let mut bytes = Vec::new();
        let mut packer = Packer::new(&mut bytes);
        packer
            .tree(name_of(path).as_bytes(), |flags| {
                root.resolve(path.as_bytes(), flags | OFlag::O_NOFOLLOW)
            })
            .unwrap();
        packer.finish().unwrap();
        bytes
    }

    /// Unpacks at a path of this directory as if it were the root.
    fn unpack(&self, path: &str, owner: Owner, archive: &[u8]) -> Result<Counts, Problem> {
        let destination = self.root().destination(path.as_bytes());
        let destination = destination.map_err(|e| Problem::system(path.as_bytes(), e))?;
        let mut unpacker = Unpacker::new(destination, owner);
        unpacker.all(archive).map(|()| unpacker.counts)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

const OWN: Owner = Owner::User { uid: 0, gid: 0 };

/// Everything about a tree that a copy has to keep, a line each.
fn described(tree: &Path) -> Vec<String> {
    described_to(tree, 1)
}

/// The same with times that are a multiple of so many nanoseconds.
fn described_to(tree: &Path, tick: i64) -> Vec<String> {
    let mut lines = Vec::new();
    let mut inodes: Vec<u64> = Vec::new();
    let mut todo = vec![tree.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_dir() {
            todo.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
            "directory".to_owned()
        } else if meta.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else if meta.is_file() {
            if meta.nlink() > 1 {
                inodes.push(meta.ino());
            }
            let bytes = fs::read(&path).unwrap();
            format!(
                "{} bytes, {:?}",
                bytes.len(),
                bytes.iter().map(|b| u64::from(*b)).sum::<u64>()
            )
        } else {
            "special".to_owned()
        };
        let name = path
            .strip_prefix(tree)
            .unwrap()
            .as_os_str()
            .as_bytes()
            .escape_ascii();
        let (mode, uid, gid, links) = (meta.mode(), meta.uid(), meta.gid(), meta.nlink());
        let (seconds, nanos) = (meta.mtime(), meta.mtime_nsec() / tick * tick);
        lines.push(format!(
            "{name} {mode:o} {uid}:{gid} {links} {seconds}.{nanos} {content}"
        ));
    }
    lines.sort();
    inodes.sort_unstable();
    inodes.dedup();
    lines.push(format!("{} files with several names", inodes.len()));
    lines
}

/// A tree with one of everything.
fn zoo() -> Dir {
    let dir = Dir::new();
    let long = format!(
        "zoo/{}/{}/ü {}",
        "d".repeat(200),
        "e".repeat(90),
        "f".repeat(240)
    );
    dir.write(&long, b"long name");
    dir.write("zoo/new\nline \u{1F37E}", b"odd name");
    fs::hard_link(dir.0.join(&long), dir.0.join("zoo/z-second-name")).unwrap();
    let program = dir.write("zoo/program", &[7; 100_000]);
    chown(&program, Some(1234), Some(4321)).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o6751)).unwrap();
    let old = SystemTime::UNIX_EPOCH - Duration::from_millis(1500);
    File::open(&program).unwrap().set_modified(old).unwrap();
    dir.write("zoo/empty", b"");
    symlink("../nowhere//./odd", dir.0.join("zoo/link")).unwrap();
    symlink("t".repeat(300), dir.0.join("zoo/long-link")).unwrap();
    lchown(dir.0.join("zoo/link"), Some(3_000_000), Some(3_000_001)).unwrap();
    mkfifo(&dir.0.join("zoo/pipe"), Mode::from_bits_truncate(0o622)).unwrap();
    let sparse = File::create(dir.0.join("zoo/sparse")).unwrap();
    for part in 0..30 {
        sparse
            .write_all_at(b"data", part * (1 << 20) + 4096)
            .unwrap();
    }
    sparse.set_len((64 << 20) + 5).unwrap();
    File::create(dir.0.join("zoo/hole"))
        .unwrap()
        .set_len(12_345)
        .unwrap();
    fs::create_dir(dir.0.join("zoo/closed")).unwrap();
    dir.write("zoo/closed/inner", b"inner");
    fs::set_permissions(dir.0.join("zoo/closed"), Permissions::from_mode(0o1500)).unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    File::open(dir.0.join("zoo/closed"))
        .unwrap()
        .set_modified(then)
        .unwrap();
    dir
}

#[test]
fn a_tree_that_goes_through_an_archive_is_the_same() {
    if !is_root() {
        return;
    }
    let (here, there) = (zoo(), Dir::new());
    let archive = here.pack("/zoo");
    assert!(
        archive.len() < 4 << 20,
        "holes were sent: {} bytes",
        archive.len()
    );
    there.unpack("/", Owner::Archive, &archive).unwrap();
    assert_eq!(
        described(&here.0.join("zoo")),
        described(&there.0.join("zoo"))
    );
    let sparse = fs::metadata(there.0.join("zoo/sparse")).unwrap();
    assert!(sparse.blocks() * 512 < 1 << 20, "holes were filled");
}

/// What other programs read, and what they write.
#[test]
fn gnu_tar_and_python_understand_what_is_packed_and_are_understood() {
    if !is_root() {
        return;
    }
    let here = zoo();
    let archive = here.write("archive", &here.pack("/zoo"));
    let run = |program: &str, args: &[&str]| {
        let output = process::Command::new(program).args(args).output();
        output.is_ok_and(|output| output.status.success())
    };
    let archive = archive.to_str().unwrap();
    let expected = described(&here.0.join("zoo"));
    let there = Dir::new();
    let to = there.0.to_str().unwrap();
    if run("tar", &["-xpf", archive, "-C", to, "--numeric-owner"]) {
        assert_eq!(described(&there.0.join("zoo")), expected);
    }
    let list = "import sys, tarfile; print(len(tarfile.open(sys.argv[1]).getmembers()))";
    assert!(run("python3", &["-c", list, archive]) || !run("python3", &["--version"]));
    let from = here.0.to_str().unwrap();
    for (format, understood) in [("--format=gnu", true), ("--format=pax", false)] {
        if !run("tar", &[format, "-cSf", archive, "-C", from, "zoo"]) {
            continue;
        }
        let (there, bytes) = (Dir::new(), fs::read(archive).unwrap());
        match there.unpack("/", Owner::Archive, &bytes) {
            // Whole seconds are all that it has.
            Ok(_) if understood => assert_eq!(
                described_to(&there.0.join("zoo"), 1_000_000_000),
                described_to(&here.0.join("zoo"), 1_000_000_000)
            ),
            // Holes as PAX records, and a line's end in one.
            Err(problem) if !understood => assert_eq!(problem.problem, CopyProblem::Archive),
            other => panic!("{format}: {other:?}"),
        }
    }
}

#[test]
fn files_become_the_users_and_lose_what_would_make_them_somebody() {
    if !is_root() {
        return;
    }
    let (here, there) = (Dir::new(), Dir::new());
    let program = here.write("dir/program", b"x");
    chown(&program, Some(1), Some(2)).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o6755)).unwrap();
    let owner = Owner::User { uid: 77, gid: 78 };
    there.unpack("/", owner, &here.pack("/dir")).unwrap();
    for (path, mode) in [("dir", 0o40755), ("dir/program", 0o100_755)] {
        let meta = fs::metadata(there.0.join(path)).unwrap();
        assert_eq!(
            (meta.uid(), meta.gid(), meta.mode()),
            (77, 78, mode),
            "{path}"
        );
    }
}

/// As `cp` names things.
#[test]
fn a_copy_is_named_by_what_is_at_its_destination() {
    let here = Dir::new();
    here.write("file", b"file");
    here.write("tree/inner", b"inner");
    let (file, tree, content) = (
        here.pack("/file"),
        here.pack("/tree"),
        here.pack("/tree/.."),
    );
    let there = Dir::new();
    fs::create_dir(there.0.join("dir")).unwrap();
    let put = |path: &str, archive: &[u8]| {
        there
            .unpack(path, OWN, archive)
            .map(drop)
            .map_err(|p| p.problem)
    };
    put("/dir", &file).unwrap();
    put("/dir/renamed", &file).unwrap();
    put("/dir", &tree).unwrap();
    put("/dir/other", &tree).unwrap();
    put("/dir/content", &content).unwrap();
    put("dir/renamed", &file).unwrap();
    for path in ["dir/file", "dir/renamed", "dir/content/file"] {
        assert_eq!(there.read(path), "file", "{path}");
    }
    for path in [
        "dir/tree/inner",
        "dir/other/inner",
        "dir/content/tree/inner",
    ] {
        assert_eq!(there.read(path), "inner", "{path}");
    }
    assert_eq!(put("/dir/new/", &file), Err(CopyProblem::NotFound));
    assert_eq!(put("/dir/no/such", &file), Err(CopyProblem::NotFound));
    assert_eq!(put("/dir/file/", &file), Err(CopyProblem::NotADirectory));
    assert_eq!(put("/dir/file/x", &file), Err(CopyProblem::NotADirectory));
    // A directory does not replace a file, nor a file a directory.
    assert_eq!(put("/dir/file", &tree), Err(CopyProblem::Refused));
    fs::create_dir(there.0.join("dir/other/file")).unwrap();
    assert_eq!(put("/dir/other", &file), Err(CopyProblem::Refused));
    // Links to the destination are those of this root, and lead to what is meant.
    symlink("/dir", there.0.join("absolute")).unwrap();
    symlink("dir/target", there.0.join("dangling")).unwrap();
    symlink("../../../dir/file", there.0.join("dir/upwards")).unwrap();
    put("/absolute/one", &file).unwrap();
    put("/dangling", &file).unwrap();
    there.write("dir/file", b"old");
    put("/dir/upwards", &file).unwrap();
    for path in ["dir/one", "dir/target", "dir/file"] {
        assert_eq!(there.read(path), "file", "{path}");
    }
    assert!(there.0.join("dir/upwards").is_symlink());
}

fn entry(kind: EntryType, name: &str, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    let gnu = header.as_gnu_mut().unwrap();
    gnu.name[..name.len()].copy_from_slice(name.as_bytes());
    gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_size(content.len() as u64);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(name: &str) -> Vec<u8> {
    entry(EntryType::Regular, name, "", b"evil")
}

/// Each is unpacked at `/in` of a directory with `/in/there` and `/out/secret`. Fails for the
/// links if they are followed, and for the names if `..` is.
#[test]
fn no_archive_writes_outside_of_its_destination() {
    let link = |name, to| entry(EntryType::Symlink, name, to, b"");
    let hard = |name, to| entry(EntryType::Link, name, to, b"");
    let attacks: [(&str, Vec<u8>, Result<(), CopyProblem>); 12] = [
        ("upwards", file("../out/secret"), Err(CopyProblem::Refused)),
        (
            "upwards within",
            file("a/../../out/secret"),
            Err(CopyProblem::Refused),
        ),
        ("absolute", file("/out/secret"), Ok(())),
        (
            "through a link of its own",
            [link("a", "../out"), file("a/secret")].concat(),
            Err(CopyProblem::Refused),
        ),
        (
            "through an absolute link",
            [link("a", "/out"), file("a/secret")].concat(),
            Err(CopyProblem::Refused),
        ),
        (
            "through a link that was there",
            file("to-out/secret"),
            Err(CopyProblem::Refused),
        ),
        (
            "onto a link to a file",
            [link("a", "../out/secret"), file("a")].concat(),
            Ok(()),
        ),
        ("onto a link that was there", file("to-secret"), Ok(())),
        (
            "a directory onto a link",
            entry(EntryType::Directory, "to-out/", "", b""),
            Err(CopyProblem::Refused),
        ),
        (
            "onto a hard link upwards",
            [hard("a", "../out/secret"), file("a")].concat(),
            Err(CopyProblem::Refused),
        ),
        (
            "onto a hard link through a link",
            [hard("a", "to-out/secret"), file("a")].concat(),
            Err(CopyProblem::Refused),
        ),
        (
            "onto a hard link to a link",
            [hard("a", "to-secret"), file("a")].concat(),
            Ok(()),
        ),
    ];
    for (what, archive, expected) in attacks {
        let dir = Dir::new();
        dir.write("in/there", b"there");
        dir.write("out/secret", b"secret");
        symlink("../out", dir.0.join("in/to-out")).unwrap();
        symlink("/out/secret", dir.0.join("in/to-secret")).unwrap();
        let result = dir
            .unpack("/in", OWN, &archive)
            .map(drop)
            .map_err(|p| p.problem);
        assert_eq!(result, expected, "{what}");
        assert_eq!(dir.read("out/secret"), "secret", "{what}");
        assert_eq!(
            fs::read_dir(dir.0.join("out")).unwrap().count(),
            1,
            "{what}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn a_damaged_archive_never_panics_and_stays_inside(
        damage in vec((any::<Index>(), any::<u8>()), 1..6),
        resummed in any::<bool>(),
    ) {
        let mut archive = [
            entry(EntryType::GNULongName, "././@LongLink", "", &[b'n'; 700]),
            file("short"),
            entry(EntryType::XHeader, "pax", "", b"20 mtime=1234.567890\n"),
            entry(EntryType::Directory, "dir/", "", b""),
            entry(EntryType::Symlink, "dir/link", "../../out", b""),
            file("dir/link/x"),
            entry(EntryType::Link, "hard", "dir/link", b""),
        ]
        .concat();
        for (at, byte) in damage {
            let at = at.index(archive.len());
            archive[at] = byte;
            if resummed {
                resum(&mut archive[at / 512 * 512..][..512]);
            }
        }
        let dir = Dir::new();
        dir.write("in/there", b"there");
        dir.write("out/secret", b"secret");
        let _ = dir.unpack("/in", OWN, &archive);
        prop_assert_eq!(dir.read("out/secret"), "secret");
        prop_assert_eq!(fs::read_dir(dir.0.join("out")).unwrap().count(), 1);
        prop_assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 2);
    }
}

/// Makes the checksum of a header right.
fn resum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

#[test]
fn devices_and_damaged_archives_are_refused_and_say_where() {
    let dir = Dir::new();
    let device = entry(EntryType::Char, "dev", "", b"");
    let whole = [file("a"), file("b")].concat();
    let mut damaged = whole.clone();
    damaged[1024 + 150] ^= 1;
    let long = entry(EntryType::GNULongName, "x", "", &vec![b'n'; 2 << 20]);
    let pax = entry(EntryType::XHeader, "x", "", b"9 mtime=x\n");
    let cases = [
        ([file("a"), device].concat(), CopyProblem::Refused, "dev", 1),
        (damaged, CopyProblem::Archive, "", 1),
        (whole[..1024 + 100].to_vec(), CopyProblem::Archive, "", 1),
        (whole[..512 + 2].to_vec(), CopyProblem::Archive, "a", 0),
        ([long, file("a")].concat(), CopyProblem::Archive, "", 0),
        ([pax, file("a")].concat(), CopyProblem::Archive, "a", 0),
    ];
    for (archive, problem, path, done) in cases {
        let mut unpacker = Unpacker::new(dir.root().destination(b"/").unwrap(), OWN);
        let found = unpacker.all(&*archive).unwrap_err();
        assert_eq!(
            (found.problem, &*found.path),
            (problem, path.as_bytes()),
            "{found:?}"
        );
        assert_eq!(unpacker.counts.entries, done, "{found:?}");
    }
}

#[test]
fn a_name_is_that_of_the_last_component() {
    for (path, name) in [
        ("/a/b", "b"),
        ("a/b/", "b"),
        ("/a/b/.", "b"),
        ("b", "b"),
        ("/", "."),
        ("", "."),
        ("/a/..", "."),
    ] {
        assert_eq!(name_of(path), name, "{path}");
    }
}

async fn reports(mut stream: MuxStream) -> Vec<CopyReport> {
    let mut reports = Vec::new();
    while let Some(report) = message::read(&mut stream).await.unwrap() {
        reports.push(report);
    }
    reports
}

async fn stdio(host: &Host, exec: u32, fd: u8) -> MuxStream {
    host.opener
        .open(&FromHost::Stdio { exec, fd })
        .await
        .unwrap()
}

async fn copy_out(host: &Host, path: &Path) -> (Vec<CopyReport>, Vec<u8>) {
    let exec = host.number();
    let mut archive = stdio(host, exec, 1).await;
    let request = FromHost::CopyOut(CopyOut {
        exec,
        path: path.to_str().unwrap().to_owned(),
        follow: false,
    });
    let stream = host.opener.open(&request).await.unwrap();
    let mut bytes = Vec::new();
    let read = async { archive.read_to_end(&mut bytes).await.map(drop) };
    let (told, read) = tokio::join!(reports(stream), read);
    read.unwrap();
    (told, bytes)
}

fn copy_in(exec: u32, path: &Path) -> FromHost {
    FromHost::CopyIn(CopyIn {
        exec,
        path: path.to_str().unwrap().to_owned(),
        archive: false,
    })
}

#[test]
fn files_go_out_and_in_through_streams_with_their_reports() {
    with_init(|host| async move {
        let dir = Dir::new();
        let content: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[1] | 1).collect();
        let path = dir.write("big", &content);
        let (told, archive) = copy_out(&host, &path).await;
        let ready = CopyReport::Ready {
            kind: FileKind::File,
            name: "big".to_owned(),
            size: 3_000_000,
        };
        let done = CopyReport::Done {
            entries: 1,
            bytes: 3_000_000,
        };
        assert_eq!(told, [ready, done.clone()]);

        let exec = host.number();
        let mut stream = stdio(&host, exec, 0).await;
        let to = dir.0.join("copy");
        let told = host.opener.open(&copy_in(exec, &to)).await.unwrap();
        stream.write_all(&archive).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(reports(told).await, [done]);
        assert_eq!(fs::read(&to).unwrap(), content);

        let (told, archive) = copy_out(&host, &dir.0.join("nothing")).await;
        let fits = matches!(
            &told[..],
            [CopyReport::Failed {
                problem: CopyProblem::NotFound,
                ..
            }]
        );
        assert!(fits && archive.is_empty(), "{told:?}");
    });
}

#[test]
fn an_archive_that_the_host_does_not_end_is_cut_off() {
    with_init(|host| async move {
        let dir = Dir::new();
        let exec = host.number();
        let mut stream = stdio(&host, exec, 0).await;
        let told = host.opener.open(&copy_in(exec, &dir.0)).await.unwrap();
        stream.write_all(&file("a")).await.unwrap();
        stream.flush().await.unwrap();
        while !dir.0.join("a").exists() {
            yield_now().await;
        }
        drop(stream);
        let told = reports(told).await;
        let [
            CopyReport::Failed {
                problem, entries, ..
            },
        ] = &told[..]
        else {
            panic!("{told:?}")
        };
        assert_eq!((*problem, *entries), (CopyProblem::Archive, 1));
    });
}

#[test]
fn a_copy_that_the_host_gives_up_ends() {
    with_init(|host| async move {
        let dir = Dir::new();
        let noise = dir.write("noise", &vec![1; 64 << 20]);
        let exec = host.number();
        let mut archive = stdio(&host, exec, 1).await;
        let request = FromHost::CopyOut(CopyOut {
            exec,
            path: noise.to_str().unwrap().to_owned(),
            follow: false,
        });
        let stream = host.opener.open(&request).await.unwrap();
        archive.read_exact(&mut [0; 1000]).await.unwrap();
        drop(archive);
        let told = reports(stream).await;
        assert!(matches!(told[1], CopyReport::Failed { .. }), "{told:?}");
    });
}

#[test]
fn without_a_stream_a_path_is_only_looked_at() {
    with_init(|host| async move {
        let dir = Dir::new();
        symlink("/etc", dir.0.join("link")).unwrap();
        for (follow, expected) in [(false, FileKind::Symlink), (true, FileKind::Directory)] {
            let request = FromHost::CopyOut(CopyOut {
                exec: host.number(),
                path: dir.0.join("link").to_str().unwrap().to_owned(),
                follow,
            });
            let told = reports(host.opener.open(&request).await.unwrap()).await;
            let fits = matches!(&told[0], CopyReport::Ready { kind, .. } if *kind == expected);
            assert!(fits, "{told:?}");
        }
    });
}
