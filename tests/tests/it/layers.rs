//! An image of as many layers as docker allows is, in the guest, the tree that they add up to.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use bottle_core::spec::ImageSource;
use bottle_tests::bench::Bench;
use bottle_tests::given::vm;
use bottle_tests::host::run_dir;
use bottle_tests::layout::{count_layers, layered};
use tar::{Builder, EntryType, Header};

/// Docker's own limit.
const LAYERS: usize = 127;

/// Prints a line for everything below `/stack`, as [`Stack::expected`] has them.
const PROGRAM: &str = "
import os, stat
paths = ['stack']
for root, dirs, files in os.walk('/stack'):
    paths += [os.path.join(root, name)[1:] for name in dirs + files]
first = {}
for path in sorted(paths):
    full = '/' + path
    found = os.lstat(full)
    mode = found.st_mode
    what = '-'
    if stat.S_ISLNK(mode):
        what = os.readlink(full)
    elif stat.S_ISREG(mode):
        what = open(full).read()
    elif stat.S_ISCHR(mode):
        what = f'{os.major(found.st_rdev)}.{os.minor(found.st_rdev)}'
    names = [] if stat.S_ISLNK(mode) else os.listxattr(full)
    for name in sorted(name for name in names if name.startswith('user.')):
        what += ',' + name + '=' + os.getxattr(full, name).decode()
    links = 0 if stat.S_ISDIR(mode) else found.st_nlink
    same = first.setdefault((found.st_dev, found.st_ino), path)
    owner = f'{found.st_uid}:{found.st_gid}'
    print(path, f'{mode:o}', owner, found.st_mtime_ns // 10**9, what, links, same)
";

/// Fails if a layer is left out or in another's place, if a whiteout, an opaque directory or a link
/// to a file of a lower layer is not what overlayfs and docker make of it.
#[test]
fn the_tree_of_127_layers_is_what_they_add_up_to() {
    vm(async |given| {
        let dir = tempfile::Builder::new()
            .prefix("layers")
            .tempdir_in(run_dir()?)?;
        let mut stack = Stack::default();
        let more = LAYERS.saturating_sub(count_layers(&given.image)?);
        let layers: Result<Vec<_>> = (0..more).map(|number| stack.layer(number)).collect();
        let count = layered(&given.image, dir.path(), &layers?)?;
        ensure!(
            count == LAYERS && more > 100,
            "{count} layers, {more} of them ours"
        );
        let image = ImageSource::OciLayout {
            dir: dir.path().to_owned(),
            reference: None,
        };
        let bench = Bench::start(given, "layers", |spec| spec.image = image).await?;
        let seen = bench.run_as_root(["python3", "-c", PROGRAM]).await?;
        let seen = seen.success()?;
        bench.bottle.remove().await?;
        let seen: Vec<&str> = seen.lines().collect();
        let expected = stack.expected();
        let wrong: Vec<_> = expected
            .iter()
            .filter(|line| !seen.contains(&line.as_str()))
            .map(|line| format!("missing: {line}"))
            .chain(
                seen.iter()
                    .filter(|line| !expected.iter().any(|other| other == *line))
                    .map(|line| format!("seen:    {line}")),
            )
            .take(20)
            .collect();
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        ensure!(
            seen.len() == expected.len() && seen.len() > 100,
            "{}",
            seen.len()
        );
        Ok(())
    });
}

/// What all layers so far add up to.
#[derive(Default)]
struct Stack {
    tree: BTreeMap<String, Held>,
    /// How many inodes there were.
    inodes: usize,
}

/// What has a name; names with the same inode are links.
#[derive(Clone)]
struct Held {
    inode: usize,
    is_dir: bool,
    /// Mode, owner, time, content or target, attributes: as the guest prints them.
    text: String,
}

impl Stack {
    /// Makes the next layer; whiteouts come first in each.
    fn layer(&mut self, number: usize) -> Result<Vec<u8>> {
        let mut layer = Layer {
            stack: self,
            tar: Builder::new(Vec::new()),
            number,
        };
        if number == 0 {
            for dir in ["stack", "stack/kept", "stack/links", "stack/opaque"] {
                layer.dir(dir)?;
            }
        }
        layer.whiteout("stack/kept/never-was")?;
        if number % 3 == 2 {
            layer.whiteout(&format!("stack/kept/f{}", number - 2))?;
        }
        if number % 10 == 5 {
            layer.opaque("stack/opaque")?;
        }
        if number % 20 == 13 {
            layer.whiteout("stack/gone")?;
        }
        // Files, their successors under the same name, and what is in directories of all layers.
        layer.file(&format!("stack/kept/f{number}"), 0o600)?;
        layer.file("stack/last", 0o4711)?;
        layer.file(&format!("stack/opaque/n{number}"), 0o644)?;
        if number % 4 == 1 {
            layer.dir("stack/gone")?;
            layer.file(&format!("stack/gone/g{number}"), 0o640)?;
        }
        layer.symlink(
            &format!("stack/symlink{}", number % 5),
            &format!("kept/f{number}"),
        )?;
        // Links within the layer, to the layer below, and to far below.
        for (below, name) in [(0, "own"), (1, "below"), (30, "far")] {
            if number % 7 == 3 && number > below {
                let target = format!("stack/kept/f{}", number - below);
                layer.link(&format!("stack/links/{name}{number}"), &target)?;
            }
        }
        // A directory in the place of a file, and a file in the place of a directory.
        match number % 11 {
            4 => layer.file("stack/turn", 0o644)?,
            9 => {
                layer.dir("stack/turn")?;
                layer.file("stack/turn/inside", 0o644)?;
            }
            _ => {}
        }
        if number % 50 == 6 {
            layer.node(&format!("stack/fifo{number}"), EntryType::Fifo)?;
            layer.node(&format!("stack/null{number}"), EntryType::Char)?;
        }
        Ok(layer.tar.into_inner()?)
    }

    /// A line for each path, sorted.
    fn expected(&self) -> Vec<String> {
        let mut first = BTreeMap::new();
        let lines = self.tree.iter().map(|(path, held)| {
            let Held {
                inode,
                is_dir,
                text,
            } = held;
            let links = match is_dir {
                true => 0,
                false => self.tree.values().filter(|it| it.inode == *inode).count(),
            };
            let same = first.entry(inode).or_insert(path);
            format!("{path} {text} {links} {same}")
        });
        lines.collect()
    }

    /// Takes a name away, and all that is below it.
    fn remove(&mut self, path: &str) {
        self.remove_below(path);
        self.tree.remove(path);
    }

    fn remove_below(&mut self, dir: &str) {
        self.tree.retain(|path, _| {
            !path
                .strip_prefix(dir)
                .is_some_and(|rest| rest.starts_with('/'))
        });
    }

    fn put(&mut self, path: &str, is_dir: bool, text: String) {
        let merges = is_dir && self.tree.get(path).is_some_and(|held| held.is_dir);
        if !merges {
            self.remove(path);
        }
        self.inodes += 1;
        let held = Held {
            inode: self.inodes,
            is_dir,
            text,
        };
        self.tree.insert(path.to_owned(), held);
    }
}

/// A layer that is made, and put on the stack at once.
struct Layer<'s> {
    stack: &'s mut Stack,
    tar: Builder<Vec<u8>>,
    number: usize,
}

impl Layer<'_> {
    fn append(&mut self, path: &str, kind: EntryType, mode: u32, content: &str) -> Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_path(path)?;
        header.set_mode(mode);
        header.set_uid(self.number.try_into()?);
        header.set_gid(7);
        header.set_mtime(self.time());
        if matches!(kind, EntryType::Link | EntryType::Symlink) {
            header.set_link_name(content)?;
        }
        if kind == EntryType::Char {
            header.set_device_major(1)?;
            header.set_device_minor(3)?;
        }
        let body = if kind == EntryType::Regular {
            content
        } else {
            ""
        };
        header.set_size(body.len() as u64);
        header.set_cksum();
        self.tar.append(&header, body.as_bytes())?;
        Ok(())
    }

    fn time(&self) -> u64 {
        1_600_000_000 + self.number as u64
    }

    fn put(&mut self, path: &str, kind: u32, mode: u32, what: &str) {
        let text = format!(
            "{:o} {}:7 {} {what}",
            kind << 12 | mode,
            self.number,
            self.time()
        );
        self.stack.put(path, kind == 4, text);
    }

    fn dir(&mut self, path: &str) -> Result<()> {
        self.append(path, EntryType::Directory, 0o755, "")?;
        self.put(path, 4, 0o755, "-");
        Ok(())
    }

    /// Every file has content and an attribute of its own.
    fn file(&mut self, path: &str, mode: u32) -> Result<()> {
        let number = self.number.to_string();
        let attributes = [("SCHILY.xattr.user.layer", number.as_bytes())];
        self.tar.append_pax_extensions(attributes)?;
        let content = format!("{path}-of-{number}");
        self.append(path, EntryType::Regular, mode, &content)?;
        self.put(path, 8, mode, &format!("{content},user.layer={number}"));
        Ok(())
    }

    fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        self.append(path, EntryType::Symlink, 0o777, target)?;
        self.put(path, 10, 0o777, target);
        Ok(())
    }

    fn node(&mut self, path: &str, kind: EntryType) -> Result<()> {
        self.append(path, kind, 0o622, "")?;
        let (kind, what) = if kind == EntryType::Char {
            (2, "1.3")
        } else {
            (1, "-")
        };
        self.put(path, kind, 0o622, what);
        Ok(())
    }

    /// Links to what is there; there is nothing to link to if a layer between has hidden it.
    fn link(&mut self, path: &str, target: &str) -> Result<()> {
        if let Some(held) = self.stack.tree.get(target).cloned() {
            self.append(path, EntryType::Link, 0o600, target)?;
            self.stack.tree.insert(path.to_owned(), held);
        }
        Ok(())
    }

    fn whiteout(&mut self, path: &str) -> Result<()> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        self.append(&format!("{dir}/.wh.{name}"), EntryType::Regular, 0o644, "")?;
        self.stack.remove(path);
        Ok(())
    }

    fn opaque(&mut self, dir: &str) -> Result<()> {
        self.append(
            &format!("{dir}/.wh..wh..opq"),
            EntryType::Regular,
            0o644,
            "",
        )?;
        self.stack.remove_below(dir);
        Ok(())
    }
}
