//! The merged tree of an image: layer upon layer, as overlayfs would show them.
//!
//! Entries of one layer act like the extraction of an archive into an empty directory (the later
//! one wins; symbolic links *of the same layer* lead where they point, within the root). Layers
//! act like overlayfs: an upper directory merges with a lower directory and hides anything else;
//! anything else hides all below it; whiteouts and opaque marks hide what lower layers have,
//! wherever in the layer they stand. Unlike in overlayfs a hard link may name a file of a lower
//! layer: both names then share it, even if a later layer hides one of them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::mem;

use crate::erofs::body::Body;
use crate::error::EntryProblem;
use crate::tar::{MAX_NAME, Rdev};

/// How much of an image this program is willing to take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Entries of all layers, hidden ones and implied directories included.
    pub(crate) entries: u64,
    /// Bytes of names, link targets and extended attributes, which are kept in memory.
    pub(crate) metadata: u64,
    /// Bytes of all layers, decompressed.
    pub(crate) bytes: u64,
}

impl Limits {
    /// Several times what large images have.
    pub(crate) const DEFAULT: Self = Self {
        entries: 2_000_000,
        metadata: 512 << 20,
        bytes: 256 << 30,
    };
}

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

/// Index of a node.
pub(crate) type Ino = usize;

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) meta: Meta,
    pub(crate) kind: NodeKind,
    /// Names that lead here; the root has one more than its none.
    pub(crate) names: u32,
    /// Of a directory; the root is its own.
    pub(crate) parent: Ino,
    /// The layer that `meta` is from.
    described: u32,
}

#[derive(Debug)]
pub(crate) enum NodeKind {
    Block(Rdev),
    Char(Rdev),
    Dir(BTreeMap<Box<[u8]>, Child>),
    Fifo,
    File(Body),
    Symlink(Box<[u8]>),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Child {
    pub(crate) ino: Ino,
    /// The last layer that said something about this name or something below it.
    layer: u32,
}

/// Why an entry cannot become part of the tree.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum PutError {
    Limit { what: &'static str, limit: u64 },
    Problem(EntryProblem),
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
    layer: u32,
    /// Whiteouts (with a name) and opaque marks of the current layer.
    hidden: BTreeSet<(Ino, Option<Box<[u8]>>)>,
    limits: Limits,
    entries: u64,
    metadata: u64,
}

impl Tree {
    pub(crate) const ROOT: Ino = 0;

    pub(crate) fn new(limits: &Limits) -> Self {
        let root = Node {
            meta: Meta::implied(),
            kind: NodeKind::Dir(BTreeMap::new()),
            names: 1,
            parent: Self::ROOT,
            described: 0,
        };
        Self {
            nodes: vec![root],
            layer: 0,
            hidden: BTreeSet::new(),
            limits: *limits,
            entries: 0,
            metadata: 0,
        }
    }

    pub(crate) fn node(&self, ino: Ino) -> &Node {
        &self.nodes[ino]
    }

    /// How many nodes there ever were: an upper bound of every [`Ino`].
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Makes a directory, or gives the one that is there new metadata.
    pub(crate) fn put_dir(&mut self, path: &[&[u8]], meta: Meta) -> Result<(), PutError> {
        let Some((name, parents)) = path.split_last() else {
            self.count(&meta, 0)?;
            self.nodes[Self::ROOT].meta = meta;
            return Ok(());
        };
        let dir = self.enter(parents)?;
        let layer = self.layer;
        let children = self.children_mut(dir);
        if let Some(child) = children.get_mut(*name) {
            let ino = child.ino;
            child.layer = layer;
            if matches!(self.nodes[ino].kind, NodeKind::Dir(_)) {
                self.count(&meta, 0)?;
                self.nodes[ino].meta = meta;
                self.nodes[ino].described = layer;
                return Ok(());
            }
        }
        let ino = self.add(meta, NodeKind::Dir(BTreeMap::new()))?;
        self.attach(dir, name, ino)
    }

    /// Makes anything but a directory; what had the name before loses it.
    pub(crate) fn put(
        &mut self,
        path: &[&[u8]],
        meta: Meta,
        kind: NodeKind,
    ) -> Result<(), PutError> {
        let (name, parents) = path.split_last().ok_or(EntryProblem::NotTheRoot)?;
        let dir = self.enter(parents)?;
        let ino = self.add(meta, kind)?;
        self.attach(dir, name, ino)
    }

    /// Gives what `target` names, in this layer or the ones below, another name.
    pub(crate) fn link(&mut self, path: &[&[u8]], target: &[&[u8]]) -> Result<(), PutError> {
        let (name, parents) = path.split_last().ok_or(EntryProblem::NotTheRoot)?;
        let ino = self.link_target(target)?;
        // The new name's parents may replace what leads to the target: hold it meanwhile.
        self.nodes[ino].names += 1;
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
        let found = self.children(dir).get(*name);
        let ino = found.ok_or(EntryProblem::LinkToNothing)?.ino;
        if matches!(self.nodes[ino].kind, NodeKind::Dir(_)) {
            return Err(EntryProblem::LinkToDirectory.into());
        }
        Ok(ino)
    }

    /// Takes a name away: what this layer says about it is not to be seen in it.
    pub(crate) fn vacate(&mut self, path: &[&[u8]]) -> Result<(), PutError> {
        let (name, parents) = path.split_last().ok_or(EntryProblem::NotTheRoot)?;
        let dir = self.enter(parents)?;
        self.count(&Meta::default(), 0)?;
        if let Some(child) = self.children_mut(dir).remove(*name) {
            self.release(child.ino);
        }
        Ok(())
    }

    /// Hides what lower layers have under this name.
    pub(crate) fn whiteout(&mut self, path: &[&[u8]]) -> Result<(), PutError> {
        let (name, dir) = path.split_last().ok_or(EntryProblem::Whiteout)?;
        let dir = self.enter(dir)?;
        self.count(&Meta::default(), name.len())?;
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
        for (dir, name) in mem::take(&mut self.hidden) {
            let NodeKind::Dir(children) = &mut self.nodes[dir].kind else {
                continue;
            };
            let Some(name) = name else {
                self.purge(dir, &mut purged);
                continue;
            };
            let Some(child) = children.get(&name).copied() else {
                continue;
            };
            if child.layer < self.layer {
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
            let NodeKind::Dir(children) = &self.nodes[dir].kind else {
                continue;
            };
            let Some(name) = name else {
                self.mark_opaque(dir);
                continue;
            };
            match children.get(&name).map(|child| child.ino) {
                Some(ino) => self.mark_opaque(ino),
                None => {
                    let device = NodeKind::Char(Rdev { major: 0, minor: 0 });
                    let ino = self.add(Meta::default(), device)?;
                    self.attach(dir, &name, ino)?;
                }
            }
        }
        Ok(())
    }

    /// Anything but a directory hides what is below it by being there.
    fn mark_opaque(&mut self, ino: Ino) {
        let node = &mut self.nodes[ino];
        if !matches!(node.kind, NodeKind::Dir(_)) {
            return;
        }
        let xattrs = &mut node.meta.xattrs;
        if let Err(at) = xattrs.binary_search_by(|(name, _)| (**name).cmp(OPAQUE)) {
            xattrs.insert(at, (OPAQUE.into(), (*b"y").into()));
        }
    }

    /// Removes everything below `dir` that the current layer did not put or pass through.
    fn purge(&mut self, dir: Ino, purged: &mut HashSet<Ino>) {
        let mut todo = vec![dir];
        while let Some(dir) = todo.pop() {
            let layer = self.layer;
            let NodeKind::Dir(children) = &mut self.nodes[dir].kind else {
                continue;
            };
            if !purged.insert(dir) {
                continue;
            }
            let kept = todo.len();
            let mut lower = Vec::new();
            children.retain(|_, child| {
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
        let node = &mut self.nodes[ino];
        if node.described < self.layer && matches!(node.kind, NodeKind::Dir(_)) {
            node.meta = Meta::implied();
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
                Missing::Refuse => self.children(dir).get(&*name).copied(),
                Missing::Make => self.children_mut(dir).get_mut(&*name).map(|child| {
                    // A link or file keeps its own layer: that decides what happens to it.
                    let before = *child;
                    child.layer = layer;
                    before
                }),
            };
            let kind = found.map(|child| (child, &self.nodes[child.ino].kind));
            match (kind, missing) {
                (Some((child, NodeKind::Dir(_))), _) => trail.push(child.ino),
                (Some((child, NodeKind::Symlink(target))), _)
                    if child.layer == layer || missing == Missing::Refuse =>
                {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(EntryProblem::LinkLoop.into());
                    }
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
                    let ino = self.add(Meta::implied(), NodeKind::Dir(BTreeMap::new()))?;
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

    fn add(&mut self, meta: Meta, kind: NodeKind) -> Result<Ino, PutError> {
        let target = match &kind {
            NodeKind::Symlink(target) => target.len(),
            NodeKind::Block(_)
            | NodeKind::Char(_)
            | NodeKind::Dir(_)
            | NodeKind::Fifo
            | NodeKind::File(_) => 0,
        };
        self.count(&meta, target)?;
        self.nodes.push(Node {
            meta,
            kind,
            names: 0,
            parent: Self::ROOT,
            described: self.layer,
        });
        Ok(self.nodes.len() - 1)
    }

    fn count(&mut self, meta: &Meta, extra: usize) -> Result<(), PutError> {
        let xattrs: usize = meta.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum();
        self.entries += 1;
        self.metadata += (xattrs + extra) as u64;
        if self.entries > self.limits.entries {
            return Err(PutError::Limit {
                what: "entries",
                limit: self.limits.entries,
            });
        }
        if self.metadata > self.limits.metadata {
            return Err(PutError::Limit {
                what: "bytes of names, link targets and extended attributes",
                limit: self.limits.metadata,
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
        self.metadata += name.len() as u64;
        self.nodes[ino].names += 1;
        self.nodes[ino].parent = dir;
        let layer = self.layer;
        let before = self
            .children_mut(dir)
            .insert(name.into(), Child { ino, layer });
        if let Some(before) = before {
            self.release(before.ino);
        }
        Ok(())
    }

    /// Takes one name from a node; without names it goes, with everything below it.
    fn release(&mut self, ino: Ino) {
        let mut todo = vec![ino];
        while let Some(ino) = todo.pop() {
            let node = &mut self.nodes[ino];
            node.names -= 1;
            if node.names > 0 {
                continue;
            }
            node.meta.xattrs = Vec::new();
            if let NodeKind::Dir(children) = mem::replace(&mut node.kind, NodeKind::Fifo) {
                todo.extend(children.values().map(|child| child.ino));
            }
        }
    }

    fn children(&self, dir: Ino) -> &BTreeMap<Box<[u8]>, Child> {
        let NodeKind::Dir(children) = &self.nodes[dir].kind else {
            unreachable!("`walk` only returns directories");
        };
        children
    }

    fn children_mut(&mut self, dir: Ino) -> &mut BTreeMap<Box<[u8]>, Child> {
        let NodeKind::Dir(children) = &mut self.nodes[dir].kind else {
            unreachable!("`walk` only returns directories");
        };
        children
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
mod tests {
    use super::*;

    const SMALL: Limits = Limits {
        entries: 10,
        metadata: 100,
        bytes: 0,
    };

    fn limit(result: Result<(), PutError>) -> &'static str {
        match result {
            Err(PutError::Limit { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn entries_are_limited_implied_and_hidden_ones_too() {
        let mut tree = Tree::new(&SMALL);
        tree.put_dir(&[b"a", b"b", b"c", b"d"], Meta::default())
            .unwrap();
        for _ in 0..6 {
            tree.put_dir(&[b"a"], Meta::default()).unwrap();
        }
        assert_eq!(limit(tree.put_dir(&[b"a"], Meta::default())), "entries");
        assert_eq!(limit(tree.opaque(&[b"a"])), "entries");
        assert_eq!(
            limit(tree.put_dir(&[b"x", b"y"], Meta::default())),
            "entries"
        );
    }

    #[test]
    fn memory_for_names_targets_and_attributes_is_limited() {
        let what = "bytes of names, link targets and extended attributes";
        let symlink = NodeKind::Symlink(vec![b'x'; 101].into());
        let put = Tree::new(&SMALL).put(&[b"a"], Meta::default(), symlink);
        assert_eq!(limit(put), what);
        let meta = Meta {
            xattrs: vec![((*b"user.a").into(), vec![0; 95].into())],
            ..Meta::default()
        };
        assert_eq!(limit(Tree::new(&SMALL).put_dir(&[b"a"], meta)), what);
        let long = [b'n'; 60];
        let mut tree = Tree::new(&SMALL);
        tree.put_dir(&[&long, b"a"], Meta::default()).unwrap();
        tree.put_dir(&[b"b", &long], Meta::default()).unwrap();
        assert_eq!(limit(tree.put_dir(&[b"c"], Meta::default())), what);
    }

    #[test]
    fn marks_become_what_overlayfs_looks_for() {
        let put = |tree: &mut Tree, path: &[&[u8]]| {
            tree.put(path, Meta::default(), NodeKind::Fifo).unwrap();
        };
        let mut tree = Tree::new(&Limits::DEFAULT);
        tree.whiteout(&[b"d", b"gone"]).unwrap();
        tree.whiteout(&[b"again"]).unwrap();
        tree.whiteout(&[b"file"]).unwrap();
        put(&mut tree, &[b"again", b"x"]);
        put(&mut tree, &[b"file"]);
        put(&mut tree, &[b"taken"]);
        tree.vacate(&[b"taken"]).unwrap();
        tree.vacate(&[b"new", b"link"]).unwrap();
        tree.keep_marks().unwrap();
        let names: Vec<_> = tree.children(Tree::ROOT).keys().cloned().collect();
        assert_eq!(names, [&b"again"[..], b"d", b"file", b"new"].map(Box::from));
        let node = |path: &[&[u8]]| {
            let ino = path
                .iter()
                .fold(Tree::ROOT, |dir, name| tree.children(dir)[*name].ino);
            tree.node(ino)
        };
        let device = NodeKind::Char(Rdev { major: 0, minor: 0 });
        assert_eq!(
            format!("{:?}", node(&[b"d", b"gone"]).kind),
            format!("{device:?}")
        );
        let opaque = &node(&[b"again"]).meta.xattrs;
        assert_eq!((&*opaque[0].0, &*opaque[0].1), (OPAQUE, &b"y"[..]));
        assert_eq!(node(&[b"file"]).meta.xattrs, []);
        assert_eq!(node(&[b"d"]).meta.xattrs, []);
    }
}
