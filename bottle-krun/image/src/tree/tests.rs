use super::*;

const SMALL: Limits = Limits {
    entries: 10,
    metadata: 100,
    names: 100,
    bytes: 0,
};

fn new(limits: &Limits) -> Tree {
    Tree::new(limits, Path::new("/no/where"))
}

fn limit(result: Result<(), PutError>) -> &'static str {
    match result {
        Err(PutError::Limit { what, .. }) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn entries_are_limited_implied_and_hidden_ones_too() {
    let mut tree = new(&SMALL);
    tree.put_dir(&[b"a", b"b", b"c", b"d"], &Meta::default())
        .unwrap();
    for _ in 0..6 {
        tree.put_dir(&[b"a"], &Meta::default()).unwrap();
    }
    assert_eq!(limit(tree.put_dir(&[b"a"], &Meta::default())), "entries");
    assert_eq!(limit(tree.opaque(&[b"a"])), "entries");
    assert_eq!(
        limit(tree.put_dir(&[b"x", b"y"], &Meta::default())),
        "entries"
    );
}

#[test]
fn space_for_targets_and_attributes_and_memory_for_names_are_limited() {
    let what = "bytes of link targets and extended attributes";
    let symlink = Leaf::Symlink(vec![b'x'; 101].into());
    let put = new(&SMALL).put(&[b"a"], &Meta::default(), &symlink);
    assert_eq!(limit(put), what);
    let meta = Meta {
        xattrs: vec![((*b"user.a").into(), vec![0; 95].into())],
        ..Meta::default()
    };
    assert_eq!(limit(new(&SMALL).put_dir(&[b"a"], &meta)), what);
    let long = [b'n'; 60];
    let mut tree = new(&SMALL);
    tree.put_dir(&[&long, b"a"], &Meta::default()).unwrap();
    let put = tree.put_dir(&[b"b", &long], &Meta::default());
    assert_eq!(limit(put), "bytes of names");
    let mut tree = new(&SMALL);
    tree.whiteout(&[&long]).unwrap();
    assert_eq!(limit(tree.whiteout(&[b"a", &long])), "bytes of names");
}

#[test]
fn a_node_is_small_since_there_may_be_millions() {
    assert_eq!(size_of::<Node>(), 32);
    assert_eq!(size_of::<(Box<[u8]>, Child)>(), 24);
}

#[test]
fn what_does_not_fit_into_memory_is_in_a_file_or_an_error() {
    let fill = |tree: &mut Tree| {
        let target = Leaf::Symlink(vec![b't'; 4000].into());
        (0..3000u32).try_for_each(|number| {
            let name = number.to_string();
            tree.put(&[name.as_bytes()], &Meta::default(), &target)
        })
    };
    let error = fill(&mut new(&Limits::DEFAULT)).unwrap_err();
    assert_eq!(error, PutError::Spill(io::ErrorKind::NotFound));
    let dir = tempfile::tempdir().unwrap();
    let mut tree = Tree::new(&Limits::DEFAULT, dir.path());
    fill(&mut tree).unwrap();
    for ino in 1..=3000 {
        let Some(Leaf::Symlink(target)) = tree.details(ino).unwrap().leaf else {
            panic!("{ino}");
        };
        assert_eq!(target.len(), 4000);
    }
}

#[test]
fn marks_become_what_overlayfs_looks_for() {
    let put = |tree: &mut Tree, path: &[&[u8]]| {
        tree.put(path, &Meta::default(), &Leaf::Fifo).unwrap();
    };
    let mut tree = new(&Limits::DEFAULT);
    tree.whiteout(&[b"d", b"gone"]).unwrap();
    tree.whiteout(&[b"again"]).unwrap();
    tree.whiteout(&[b"file"]).unwrap();
    put(&mut tree, &[b"again", b"x"]);
    put(&mut tree, &[b"file"]);
    put(&mut tree, &[b"taken"]);
    tree.vacate(&[b"taken"]).unwrap();
    tree.vacate(&[b"new", b"link"]).unwrap();
    tree.keep_marks().unwrap();
    let names: Vec<_> = tree
        .children(Tree::ROOT)
        .iter()
        .map(|(name, _)| name.to_vec())
        .collect();
    assert_eq!(names, [&b"again"[..], b"d", b"file", b"new"]);
    let details = |path: &[&[u8]]| {
        let ino = path.iter().fold(Tree::ROOT, |dir, name| {
            tree.children(dir).get(name).unwrap().ino
        });
        tree.details(ino).unwrap()
    };
    let device = Leaf::Char(Rdev { major: 0, minor: 0 });
    assert_eq!(details(&[b"d", b"gone"]).leaf, Some(device));
    let opaque = details(&[b"again"]).meta.xattrs;
    assert_eq!((&*opaque[0].0, &*opaque[0].1), (OPAQUE, &b"y"[..]));
    assert_eq!(details(&[b"file"]).meta.xattrs, []);
    assert_eq!(details(&[b"d"]).meta.xattrs, []);
}
