//! The merged tree of an image: layer upon layer, as overlayfs would show them.
//!
//! Entries of one layer act like the extraction of an archive into an empty directory (the later
//! one wins; symbolic links *of the same layer* lead where they point, within the root). Layers
//! act like overlayfs: an upper directory merges with a lower directory and hides anything else;
//! anything else hides all below it; whiteouts and opaque marks hide what lower layers have,
//! wherever in the layer they stand. Unlike in overlayfs a hard link may name a file of a lower
//! layer: both names then share it, even if a later layer hides one of them.

mod children;

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};
use std::io;
use std::mem;
use std::path::Path;

pub(crate) use self::children::Children;
use crate::error::EntryProblem;
use crate::record::{Kind, Leaf, read_leaf, read_meta, write_leaf, write_meta};
use crate::spill::{Place, Spill};
use crate::tar::{MAX_NAME, Rdev};

/// How much of an image this program is willing to take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Entries of all layers, hidden ones and implied directories included.
    pub(crate) entries: u64,
    /// Bytes of link targets and extended attributes.
    pub(crate) metadata: u64,
    /// Bytes of names, which are kept in memory.
    pub(crate) names: u64,
    /// Bytes of all layers, decompressed.
    pub(crate) bytes: u64,
}

impl Limits {
    /// Several times what large images have.
    pub(crate) const DEFAULT: Self = Self {
        entries: 2_000_000,
        metadata: 512 << 20,
        names: 128 << 20,
        bytes: 256 << 30,
    };
}

/// What there is too many of.
pub(crate) const ENTRIES: &str = "entries";
/// What there is too many of.
pub(crate) const NAMES: &str = "bytes of names";

/// Extended attributes, sorted by name.
pub(crate) type Xattrs = Vec<(Box<[u8]>, Box<[u8]>)>;

/// What every inode has.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Meta {
    /// Permission bits, set-id and sticky bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since the epoch, rounded down.
    pub(crate) mtime: i64,
    pub(crate) nanos: u32,
    pub(crate) xattrs: Xattrs,
}

impl Meta {
    /// A directory that no layer describes.
    fn implied() -> Self {
        Self {
            mode: 0o755,
            ..Self::default()
        }
    }
}

/// Number of a node.
pub(crate) type Ino = u32;

/// What is looked at while the tree grows; there are many.
#[derive(Debug)]
struct Node {
    /// Where the details are, [`Place`] by parts: together they would be larger.
    at: u64,
    length: u32,
    /// Names that lead here; the root has one more than its none.
    names: u32,
    /// Of a directory.
    children: Option<Box<Children>>,
    /// Of a directory; the root is its own.
    parent: Ino,
    /// The layer that the metadata is from.
    described: u16,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Child {
    pub(crate) ino: Ino,
    /// The last layer that said something about this name or something below it.
    layer: u16,
}

/// What else is known of a node.
#[derive(Debug)]
pub(crate) struct Details {
    pub(crate) meta: Meta,
    /// `None` if it is a directory.
    pub(crate) leaf: Option<Leaf>,
}

/// Why an entry cannot become part of the tree.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum PutError {
    Limit {
        what: &'static str,
        limit: u64,
    },
    Problem(EntryProblem),
    /// The temporary file failed.
    Spill(io::ErrorKind),
}

impl From<io::Error> for PutError {
    fn from(error: io::Error) -> Self {
        Self::Spill(error.kind())
    }
}

impl From<EntryProblem> for PutError {
    fn from(problem: EntryProblem) -> Self {
        Self::Problem(problem)
    }
}

/// The tree while it grows.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    details: Spill,
    /// Of a directory that no layer describes.
    implied: Place,
    layer: u16,
    /// Whiteouts (with a name) and opaque marks of the current layer.
    hidden: BTreeSet<(Ino, Option<Box<[u8]>>)>,
    limits: Limits,
    entries: u64,
    metadata: u64,
    names: u64,
}

impl Tree {
    pub(crate) const ROOT: Ino = 0;

    /// Makes a tree that keeps in `spill`, in a file without a name, what is too much for memory.
    pub(crate) fn new(limits: &Limits, spill: &Path) -> Self {
        let mut details = Spill::new(spill);
        let mut record = Vec::new();
        let kept = write_meta(&mut record, &Meta::implied()).and_then(|()| details.add(&record));
        let implied = kept.expect("what comes first is kept in memory");
        let root = Node {
            at: implied.at,
            length: implied.length,
            names: 1,
            children: Some(Box::default()),
            parent: Self::ROOT,
            described: 0,
            kind: Kind::Dir,
        };
        Self {
            nodes: vec![root],
            details,
            implied,
            layer: 0,
            hidden: BTreeSet::new(),
            limits: *limits,
            entries: 0,
            metadata: 0,
            names: 0,
        }
    }

    pub(crate) fn kind(&self, ino: Ino) -> Kind {
        self.node(ino).kind
    }

    /// What a directory holds; `None` of anything else.
    pub(crate) fn entries(&self, ino: Ino) -> Option<&Children> {
        self.node(ino).children.as_deref()
    }

    /// Of a directory; the root is its own.
    pub(crate) fn parent(&self, ino: Ino) -> Ino {
        self.node(ino).parent
    }

    /// Reads what is not kept at hand.
    pub(crate) fn details(&self, ino: Ino) -> io::Result<Details> {
        let node = self.node(ino);
        let (at, length) = (node.at, node.length);
        let record = self.details.read(Place { at, length })?;
        let input = &mut &record[..];
        Ok(Details {
            meta: read_meta(input)?,
            leaf: read_leaf(input, node.kind)?,
        })
    }

    /// How many nodes there ever were: an upper bound of every [`Ino`].
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// How many entries and bytes of names there were so far, as [`Limits`] count them.
    pub(crate) fn counted(&self) -> (u64, u64) {
        (self.entries, self.names)
    }

    /// Makes a directory, or gives the one that is there new metadata.
    pub(crate) fn put_dir(&mut self, path: &[&[u8]], meta: &Meta) -> Result<(), PutError> {
        let Some((name, parents)) = path.split_last() else {
            self.count(meta, 0)?;
            return self.describe(Self::ROOT, meta);
        };
        let dir = self.enter(parents)?;
        let layer = self.layer;
        if let Some(child) = self.children_mut(dir).get_mut(name) {
            let ino = child.ino;
            child.layer = layer;
            if self.kind(ino) == Kind::Dir {
                self.count(meta, 0)?;
                self.describe(ino, meta)?;
                self.node_mut(ino).described = layer;
                return Ok(());
            }
        }
        let place = self.keep(meta, None)?;
        let ino = self.add(meta, place, Kind::Dir, 0)?;
        self.attach(dir, name, ino)
    }

    /// Makes anything but a directory; what had the name before loses it.
    pub(crate) fn put(&mut self, path: &[&[u8]], meta: &Meta, leaf: &Leaf) -> Result<(), PutError> {
        let (name, parents) = path.split_last().ok_or(EntryProblem::NotTheRoot)?;
        let dir = self.enter(parents)?;
        let ino = self.add_leaf(meta, leaf)?;
        self.attach(dir, name, ino)
    }

    /// Gives what `target` names, in this layer or the ones below, another name.
    pub(crate) fn link(&mut self, path: &[&[u8]], target: &[&[u8]]) -> Result<(), PutError> {
        let (name, parents) = path.split_last().ok_or(EntryProblem::NotTheRoot)?;
        let ino = self.link_target(target)?;
        // The new name's parents may replace what leads to the target: hold it meanwhile.
        self.node_mut(ino).names += 1;
        let dir = self.enter(parents)?;
        self.count(&Meta::default(), 0)?;
        self.attach(dir, name, ino)?;
        self.release(ino);
        Ok(())
    }

    /// What a hard link to `target` would share.
    pub(crate) fn link_target(&mut self, target: &[&[u8]]) -> Result<Ino, PutError> {
        let Some((name, parents)) = target.split_last() else {
            return Err(EntryProblem::LinkToDirectory.into());
        };
        let dir = self.walk(parents, Missing::Refuse)?;
        let found = self.children(dir).get(name);
        let ino = found.ok_or(EntryProblem::LinkToNothing)?.ino;
        if self.kind(ino) == Kind::Dir {
            return Err(EntryProblem::LinkToDirectory.into());
        }
        Ok(ino)
    }

    /// Takes a name away: what this layer says about it is not to be seen in it.
    pub(crate) fn vacate(&mut self, path: &[&[u8]]) -> Result<(), PutError> {
        let (name, parents) = path.split_last().ok_or(EntryProblem::NotTheRoot)?;
        let dir = self.enter(parents)?;
        self.count(&Meta::default(), 0)?;
        if let Some(child) = self.children_mut(dir).remove(name) {
            self.release(child.ino);
        }
        Ok(())
    }

    /// Hides what lower layers have under this name.
    pub(crate) fn whiteout(&mut self, path: &[&[u8]]) -> Result<(), PutError> {
        let (name, dir) = path.split_last().ok_or(EntryProblem::Whiteout)?;
        let dir = self.enter(dir)?;
        self.count(&Meta::default(), 0)?;
        self.count_name(name)?;
        self.hidden.insert((dir, Some((*name).into())));
        Ok(())
    }

    /// Hides everything that lower layers have in this directory.
    pub(crate) fn opaque(&mut self, dir: &[&[u8]]) -> Result<(), PutError> {
        let dir = self.enter(dir)?;
        self.count(&Meta::default(), 0)?;
        self.hidden.insert((dir, None));
        Ok(())
    }

    /// Applies the layer's whiteouts; what comes next is the layer above.
    pub(crate) fn end_layer(&mut self) {
        let mut purged = HashSet::new();
        let layer = self.layer;
        for (dir, name) in mem::take(&mut self.hidden) {
            let Some(children) = &mut self.node_mut(dir).children else {
                continue;
            };
            let Some(name) = name else {
                self.purge(dir, &mut purged);
                continue;
            };
            let Some(child) = children.get(&name) else {
                continue;
            };
            if child.layer < layer {
                children.remove(&name);
                self.release(child.ino);
            } else {
                self.forget(child.ino);
                self.purge(child.ino, &mut purged);
            }
        }
        self.layer += 1;
    }

    /// Turns whiteouts and opaque marks into what overlayfs looks for in a layer of its own: a
    /// device 0:0 where there is nothing else, and an attribute of directories.
    pub(crate) fn keep_marks(&mut self) -> Result<(), PutError> {
        for (dir, name) in mem::take(&mut self.hidden) {
            let Some(children) = self.entries(dir) else {
                continue;
            };
            let Some(name) = name else {
                self.mark_opaque(dir)?;
                continue;
            };
            match children.get(&name).map(|child| child.ino) {
                Some(ino) => self.mark_opaque(ino)?,
                None => {
                    let device = Leaf::Char(Rdev { major: 0, minor: 0 });
                    let ino = self.add_leaf(&Meta::default(), &device)?;
                    self.attach(dir, &name, ino)?;
                }
            }
        }
        Ok(())
    }

    /// Anything but a directory hides what is below it by being there.
    fn mark_opaque(&mut self, ino: Ino) -> Result<(), PutError> {
        if self.kind(ino) != Kind::Dir {
            return Ok(());
        }
        let mut meta = self.details(ino)?.meta;
        let xattrs = &mut meta.xattrs;
        if let Err(at) = xattrs.binary_search_by(|(name, _)| (**name).cmp(OPAQUE)) {
            xattrs.insert(at, (OPAQUE.into(), (*b"y").into()));
            self.describe(ino, &meta)?;
        }
        Ok(())
    }

    /// Removes everything below `dir` that the current layer did not put or pass through.
    fn purge(&mut self, dir: Ino, purged: &mut HashSet<Ino>) {
        let mut todo = vec![dir];
        while let Some(dir) = todo.pop() {
            let layer = self.layer;
            let Some(children) = &mut self.node_mut(dir).children else {
                continue;
            };
            if !purged.insert(dir) {
                continue;
            }
            let kept = todo.len();
            let mut lower = Vec::new();
            children.retain(|child| {
                let keep = child.layer == layer;
                if keep {
                    todo.push(child.ino);
                } else {
                    lower.push(child.ino);
                }
                keep
            });
            for ino in lower {
                self.release(ino);
            }
            for ino in &todo[kept..] {
                self.forget(*ino);
            }
        }
    }

    /// What lower layers said about a directory that this layer passed through goes, too.
    fn forget(&mut self, ino: Ino) {
        let (layer, Place { at, length }) = (self.layer, self.implied);
        let node = self.node_mut(ino);
        if node.described < layer && node.kind == Kind::Dir {
            (node.at, node.length) = (at, length);
        }
    }

    /// The directory at `path`, made and marked as touched by this layer.
    fn enter(&mut self, path: &[&[u8]]) -> Result<Ino, PutError> {
        self.walk(path, Missing::Make)
    }

    fn walk(&mut self, path: &[&[u8]], missing: Missing) -> Result<Ino, PutError> {
        let mut todo: Vec<Cow<'_, [u8]>> = path.iter().rev().map(|n| Cow::Borrowed(*n)).collect();
        let mut trail = vec![Self::ROOT];
        let (mut links, mut steps) = (0, 0);
        while let Some(name) = todo.pop() {
            steps += 1;
            if steps > MAX_STEPS {
                return Err(EntryProblem::LinkLoop.into());
            }
            let dir = *trail.last().unwrap_or(&Self::ROOT);
            match &*name {
                // Only targets of symbolic links have these; `..` stops at the root.
                b"" | b"." => continue,
                b".." => {
                    trail.truncate((trail.len() - 1).max(1));
                    continue;
                }
                _ => {}
            }
            let layer = self.layer;
            let found = match missing {
                Missing::Refuse => self.children(dir).get(&name),
                Missing::Make => self.children_mut(dir).get_mut(&name).map(|child| {
                    // A link or file keeps its own layer: that decides what happens to it.
                    let before = *child;
                    child.layer = layer;
                    before
                }),
            };
            let kind = found.map(|child| (child, self.kind(child.ino)));
            match (kind, missing) {
                (Some((child, Kind::Dir)), _) => trail.push(child.ino),
                (Some((child, Kind::Symlink)), _)
                    if child.layer == layer || missing == Missing::Refuse =>
                {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(EntryProblem::LinkLoop.into());
                    }
                    let target = self.target(child.ino)?;
                    if target.first() == Some(&b'/') {
                        trail.truncate(1);
                    }
                    let names = target.split(|byte| *byte == b'/').rev();
                    todo.extend(names.map(|name| Cow::Owned(name.to_owned())));
                }
                (Some((child, _)), Missing::Make) if child.layer == layer => {
                    return Err(EntryProblem::BelowNonDirectory.into());
                }
                (Some(_) | None, Missing::Refuse) => {
                    return Err(EntryProblem::LinkToNothing.into());
                }
                // Nothing, or something of a lower layer that is no directory: hidden by one.
                (Some(_) | None, Missing::Make) => {
                    let ino = self.add(&Meta::implied(), self.implied, Kind::Dir, 0)?;
                    self.attach(dir, &name, ino)?;
                    trail.push(ino);
                }
            }
            if trail.len() > MAX_DEPTH {
                return Err(TOO_DEEP.into());
            }
        }
        Ok(*trail.last().unwrap_or(&Self::ROOT))
    }

    /// Where a symbolic link leads.
    fn target(&self, ino: Ino) -> Result<Box<[u8]>, PutError> {
        match self.details(ino)?.leaf {
            Some(Leaf::Symlink(target)) => Ok(target),
            Some(Leaf::Block(_) | Leaf::Char(_) | Leaf::Fifo | Leaf::File(_)) | None => {
                Err(PutError::Spill(io::ErrorKind::InvalidData))
            }
        }
    }

    fn add_leaf(&mut self, meta: &Meta, leaf: &Leaf) -> Result<Ino, PutError> {
        let target = match leaf {
            Leaf::Symlink(target) => target.len(),
            Leaf::Block(_) | Leaf::Char(_) | Leaf::Fifo | Leaf::File(_) => 0,
        };
        let place = self.keep(meta, Some(leaf))?;
        self.add(meta, place, leaf.kind(), target)
    }

    fn add(
        &mut self,
        meta: &Meta,
        place: Place,
        kind: Kind,
        extra: usize,
    ) -> Result<Ino, PutError> {
        self.count(meta, extra)?;
        let ino = Ino::try_from(self.nodes.len()).unwrap_or(Ino::MAX);
        self.nodes.push(Node {
            at: place.at,
            length: place.length,
            names: 0,
            children: (kind == Kind::Dir).then(Box::default),
            parent: Self::ROOT,
            described: self.layer,
            kind,
        });
        Ok(ino)
    }

    /// Gives a directory other metadata.
    fn describe(&mut self, ino: Ino, meta: &Meta) -> Result<(), PutError> {
        let Place { at, length } = self.keep(meta, None)?;
        let node = self.node_mut(ino);
        (node.at, node.length) = (at, length);
        Ok(())
    }

    fn keep(&mut self, meta: &Meta, leaf: Option<&Leaf>) -> Result<Place, PutError> {
        let mut record = Vec::new();
        write_meta(&mut record, meta)?;
        if let Some(leaf) = leaf {
            write_leaf(&mut record, leaf)?;
        }
        Ok(self.details.add(&record)?)
    }

    fn count(&mut self, meta: &Meta, extra: usize) -> Result<(), PutError> {
        let xattrs: usize = meta.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum();
        self.entries += 1;
        self.metadata += (xattrs + extra) as u64;
        if self.entries > self.limits.entries {
            return Err(PutError::Limit {
                what: ENTRIES,
                limit: self.limits.entries,
            });
        }
        if self.metadata > self.limits.metadata {
            return Err(PutError::Limit {
                what: "bytes of link targets and extended attributes",
                limit: self.limits.metadata,
            });
        }
        Ok(())
    }

    fn count_name(&mut self, name: &[u8]) -> Result<(), PutError> {
        self.names += name.len() as u64;
        if self.names > self.limits.names {
            return Err(PutError::Limit {
                what: NAMES,
                limit: self.limits.names,
            });
        }
        Ok(())
    }

    fn attach(&mut self, dir: Ino, name: &[u8], ino: Ino) -> Result<(), PutError> {
        if name.len() > MAX_NAME {
            // Components of a path were checked; those of a link's target come here unchecked.
            return Err(EntryProblem::PathTooLong {
                what: "bytes in one name",
                limit: MAX_NAME,
            }
            .into());
        }
        self.count_name(name)?;
        let node = self.node_mut(ino);
        node.names += 1;
        node.parent = dir;
        let layer = self.layer;
        let before = self.children_mut(dir).insert(name, Child { ino, layer });
        if let Some(before) = before {
            self.release(before.ino);
        }
        Ok(())
    }

    /// Takes one name from a node; without names it goes, with everything below it.
    fn release(&mut self, ino: Ino) {
        let mut todo = vec![ino];
        while let Some(ino) = todo.pop() {
            let node = self.node_mut(ino);
            node.names -= 1;
            if node.names > 0 {
                continue;
            }
            if let Some(children) = node.children.take() {
                todo.extend(children.iter().map(|(_, child)| child.ino));
            }
        }
    }

    fn children(&self, dir: Ino) -> &Children {
        let children = self.node(dir).children.as_deref();
        children.expect("`walk` only returns directories")
    }

    fn children_mut(&mut self, dir: Ino) -> &mut Children {
        let children = self.node_mut(dir).children.as_deref_mut();
        children.expect("`walk` only returns directories")
    }

    fn node(&self, ino: Ino) -> &Node {
        &self.nodes[ino as usize]
    }

    fn node_mut(&mut self, ino: Ino) -> &mut Node {
        &mut self.nodes[ino as usize]
    }
}

/// What to do where a path leads nowhere.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Missing {
    Make,
    Refuse,
}

const OPAQUE: &[u8] = b"trusted.overlay.opaque";
/// Linux's own limit.
const MAX_LINKS: usize = 40;
/// Components on the way, those of symbolic links included: time is limited, too.
const MAX_STEPS: usize = 8192;
/// Directories within directories.
const MAX_DEPTH: usize = 512;
const TOO_DEEP: EntryProblem = EntryProblem::PathTooLong {
    what: "directories within directories",
    limit: MAX_DEPTH,
};

#[cfg(test)]
mod tests;
