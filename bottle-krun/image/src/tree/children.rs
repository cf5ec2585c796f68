//! What a directory holds, by name: most hold little, some very much, and there are many.

use std::collections::BTreeMap;
use std::mem;

use crate::tree::Child;

/// Sorted by name; takes little more than it holds.
#[derive(Debug)]
pub(crate) enum Children {
    Few(Vec<Named>),
    Many(BTreeMap<Box<[u8]>, Child>),
}

type Named = (Box<[u8]>, Child);

impl Default for Children {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Children {
    pub(crate) fn get(&self, name: &[u8]) -> Option<Child> {
        match self {
            Self::Few(few) => position(few, name).ok().map(|at| few[at].1),
            Self::Many(many) => many.get(name).copied(),
        }
    }

    pub(super) fn get_mut(&mut self, name: &[u8]) -> Option<&mut Child> {
        match self {
            Self::Few(few) => match position(few, name) {
                Ok(at) => Some(&mut few[at].1),
                Err(_) => None,
            },
            Self::Many(many) => many.get_mut(name),
        }
    }

    /// Returns what had the name before.
    pub(super) fn insert(&mut self, name: &[u8], child: Child) -> Option<Child> {
        match self {
            Self::Few(few) => match position(few, name) {
                Ok(at) => Some(mem::replace(&mut few[at].1, child)),
                Err(at) if few.len() < MAX_FEW => {
                    if few.len() == few.capacity() {
                        few.reserve_exact(few.len().max(1));
                    }
                    few.insert(at, (name.into(), child));
                    None
                }
                Err(_) => {
                    let mut many: BTreeMap<_, _> = mem::take(few).into_iter().collect();
                    many.insert(name.into(), child);
                    *self = Self::Many(many);
                    None
                }
            },
            Self::Many(many) => many.insert(name.into(), child),
        }
    }

    pub(super) fn remove(&mut self, name: &[u8]) -> Option<Child> {
        match self {
            Self::Few(few) => {
                let at = position(few, name).ok()?;
                Some(few.remove(at).1)
            }
            Self::Many(many) => many.remove(name),
        }
    }

    pub(super) fn retain(&mut self, mut keep: impl FnMut(Child) -> bool) {
        match self {
            Self::Few(few) => few.retain(|(_, child)| keep(*child)),
            Self::Many(many) => many.retain(|_, child| keep(*child)),
        }
    }

    /// By name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], Child)> {
        let (few, many) = match self {
            Self::Few(few) => (Some(few), None),
            Self::Many(many) => (None, Some(many)),
        };
        let few = few.into_iter().flatten();
        let many = many.into_iter().flatten();
        few.map(|(name, child)| (&**name, *child))
            .chain(many.map(|(name, child)| (&**name, *child)))
    }
}

fn position(few: &[Named], name: &[u8]) -> Result<usize, usize> {
    few.binary_search_by(|(other, _)| (**other).cmp(name))
}

/// As many as can be moved for each that comes between them.
const MAX_FEW: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn few_and_many_are_what_a_map_is(
            steps in prop::collection::vec((any::<u8>(), 0..4u8, any::<u16>()), 0..400),
        ) {
            let mut children = Children::default();
            let mut model = BTreeMap::new();
            let number = |child: Option<Child>| child.map(|child| child.ino);
            for (name, step, ino) in steps {
                let ino = u32::from(ino);
                let name = [name];
                let child = Child { ino, layer: 0 };
                if step < 3 {
                    prop_assert_eq!(number(children.insert(&name, child)), model.insert(name, ino));
                } else {
                    prop_assert_eq!(number(children.remove(&name)), model.remove(&name));
                }
                prop_assert_eq!(number(children.get(&name)), model.get(&name).copied());
                prop_assert_eq!(
                    children.get_mut(&name).map(|child| child.ino),
                    model.get(&name).copied()
                );
            }
            children.retain(|child| child.ino % 2 == 0);
            model.retain(|_, ino| *ino % 2 == 0);
            let found: Vec<_> = children.iter().map(|(name, child)| (name[0], child.ino)).collect();
            let expected: Vec<_> = model.iter().map(|(name, ino)| (name[0], *ino)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
