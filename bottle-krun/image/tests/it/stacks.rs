//! Random stacks of layers, compared with a model that is as naive as it can be.

use std::collections::BTreeMap;
use std::fs;

use proptest::prelude::*;

use crate::calls::to_disk;
use crate::corpus::{Item, Kind, simple};
use crate::facts::{Facts, Tree, assert_same, rdev, sha256};
use crate::kernel::checked;
use crate::reader::{read, read_bytes};

/// What a path holds; hard links share the number.
#[derive(Clone, Debug)]
struct Held {
    number: usize,
    item: Item,
    /// A directory that only the paths below it imply.
    implied: bool,
}

type Model = BTreeMap<String, Held>;

fn is_dir(held: &Held) -> bool {
    held.item.kind == Kind::Dir
}

fn is_below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir)
        .is_some_and(|rest| rest.starts_with('/'))
}

fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

fn remove(model: &mut Model, path: &str) {
    model.retain(|held, _| held != path && !is_below(held, path));
}

/// Merges layers; drops from them the items that an honest archive would not have.
fn merge(layers: &mut [Vec<Item>]) -> Model {
    let mut merged = Model::new();
    let mut number = 0;
    for layer in layers {
        let mut upper = Model::new();
        let mut hidden = Vec::new();
        let mut seen = Vec::new();
        layer.retain(|item| {
            let path = String::from_utf8(item.path.clone()).unwrap();
            let name = path.rsplit('/').next().unwrap().to_owned();
            let below_file = |model: &Model| {
                parents(&path).any(|dir| model.get(dir).is_some_and(|held| !is_dir(held)))
            };
            // One entry per path, and directories are no files before or after.
            if seen.contains(&path)
                || below_file(&upper)
                || upper.keys().any(|k| is_below(k, &path))
            {
                return false;
            }
            let mut held = Held {
                number,
                item: item.clone(),
                implied: false,
            };
            if let Some(hidden_name) = name.strip_prefix(".wh.") {
                let dir = &path[..path.len() - name.len()];
                hidden.push(match hidden_name {
                    ".wh..opq" => (dir.trim_end_matches('/').to_owned(), true),
                    name => (format!("{dir}{name}"), false),
                });
            } else if let Kind::Link(target) = &item.kind {
                let target = String::from_utf8(target.clone()).unwrap();
                let replaced = parents(&target)
                    .chain([target.as_str()])
                    .any(|dir| upper.get(dir).is_some_and(|held| !is_dir(held)));
                let lower = (!replaced).then(|| merged.get(&target)).flatten();
                match upper.get(&target).or(lower) {
                    Some(found) if !is_dir(found) => {
                        held = found.clone();
                    }
                    _ => return false,
                }
            }
            for dir in parents(&path) {
                upper.entry(dir.to_owned()).or_insert_with(|| {
                    number += 1;
                    let item = Item::dir(dir).mtime(0, 0);
                    Held {
                        number: usize::MAX - number,
                        item,
                        implied: true,
                    }
                });
            }
            if !name.starts_with(".wh.") {
                upper.insert(path.clone(), held);
            }
            seen.push(path);
            number += 1;
            true
        });
        for (path, opaque) in hidden {
            if opaque {
                merged.retain(|held, _| !path.is_empty() && !is_below(held, &path));
            } else {
                remove(&mut merged, &path);
            }
        }
        for (path, held) in upper {
            let lower_dir = merged.get(&path).is_some_and(is_dir);
            if !(lower_dir && is_dir(&held)) {
                remove(&mut merged, &path);
            } else if held.implied {
                continue;
            }
            merged.insert(path, held);
        }
    }
    merged
}

fn expected(model: &Model) -> Tree {
    let mut tree = Tree::new();
    let mut first: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
    let mut links: BTreeMap<usize, u64> = BTreeMap::new();
    for held in model.values() {
        *links.entry(held.number).or_default() += 1;
    }
    let subdirs = |path: &str| {
        let children = model.iter().filter(|(child, held)| {
            let parent = child.rsplit_once('/').map_or("", |(dir, _)| dir);
            parent == path && is_dir(held)
        });
        2 + children.count() as u64
    };
    tree.insert(
        Vec::new(),
        Facts {
            mode: 0o040_755,
            links: subdirs(""),
            ..Facts::default()
        },
    );
    let mut order: Vec<_> = model.iter().collect();
    order.sort_by(|(a, _), (b, _)| a.split('/').cmp(b.split('/')));
    for (path, held) in order {
        let item = &held.item;
        let bytes = path.clone().into_bytes();
        let mut facts = Facts {
            mode: item.mode,
            owner: item.owner,
            mtime: (item.mtime.0, i64::from(item.mtime.1)),
            links: links[&held.number],
            xattrs: item.xattrs.iter().cloned().collect(),
            same_as: first
                .entry(held.number)
                .or_insert_with(|| bytes.clone())
                .clone(),
            ..Facts::default()
        };
        facts.mode |= match &item.kind {
            Kind::Block(..) => 0o060_000,
            Kind::Char(major, minor) => {
                facts.rdev = rdev(*major, *minor);
                0o020_000
            }
            Kind::Dir => {
                facts.links = subdirs(path);
                facts.same_as = bytes.clone();
                0o040_000
            }
            Kind::Fifo => 0o010_000,
            Kind::File(content) => {
                facts.size = content.len() as u64;
                facts.sha256 = sha256(content);
                0o100_000
            }
            Kind::Link(_) => unreachable!("replaced by what they link to"),
            Kind::Symlink(target) => {
                facts.size = target.len() as u64;
                facts.target.clone_from(target);
                0o120_000
            }
        };
        tree.insert(bytes, facts);
    }
    tree
}

fn path() -> impl Strategy<Value = String> {
    let name = prop_oneof![Just("a"), Just("b"), Just("c"), Just("-")];
    prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"))
}

fn item() -> impl Strategy<Value = Item> {
    let sizes = prop_oneof![0usize..20, 3900usize..4200, 8000usize..20_000];
    let plain = (
        path(),
        prop_oneof![
            3 => Just(Kind::Dir),
            5 => (sizes, any::<u8>()).prop_map(|(size, byte)| Kind::File(vec![byte; size])),
            1 => "[a-z]{1,20}".prop_map(|target| Kind::Symlink(target.into_bytes())),
            1 => Just(Kind::Fifo),
            1 => (1u32..4095, 0u32..1 << 20).prop_map(|(major, minor)| Kind::Char(major, minor)),
            3 => path().prop_map(|target| Kind::Link(target.into_bytes())),
        ],
    );
    let plain = plain.prop_map(|(path, kind)| Item::node(path, kind));
    let hidden = (path(), any::<bool>()).prop_map(|(path, opaque)| {
        let (dir, name) = path
            .rsplit_once('/')
            .map_or(("", &path[..]), |(dir, name)| (dir, name));
        let dir = if dir.is_empty() {
            String::new()
        } else {
            format!("{dir}/")
        };
        Item::file(
            if opaque {
                format!("{dir}.wh..wh..opq")
            } else {
                format!("{dir}.wh.{name}")
            },
            "",
        )
    });
    let details = (
        0u32..0o10000,
        any::<(u16, u16)>(),
        -3_000_000_000i64..5_000_000_000,
        0u32..1_000_000_000,
    );
    let xattr = prop::option::of("[a-z]{1,9}");
    (prop_oneof![6 => plain, 1 => hidden], details, xattr).prop_map(|(item, details, xattr)| {
        let (mode, (uid, gid), seconds, nanos) = details;
        let item = item
            .mode(mode)
            .owner(uid.into(), gid.into())
            .mtime(seconds, nanos);
        match xattr {
            Some(name) => item.xattr(&format!("user.{name}"), &name),
            None => item,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn merged_layers_are_what_the_model_says(
        layers in prop::collection::vec(prop::collection::vec(item(), 0..14), 1..5),
    ) {
        let mut layers = layers;
        let model = merge(&mut layers);
        let dir = tempfile::tempdir().unwrap();
        simple(dir.path(), &layers);
        let disk = to_disk(dir.path(), None, &dir.path().join("store")).unwrap();
        assert_same(&expected(&model), &read(&disk), "model and disk");
        checked(&disk, dir.path());
        for layer in &disk.parts[1..] {
            // By itself it is a file system, too.
            read_bytes(&fs::read(layer).unwrap());
        }
    }
}
