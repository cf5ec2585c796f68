use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

use crate::fuzzing::{erofs, tar};

/// Runs a target with each of its seeds; returns what it said of them.
#[track_caller]
fn replayed<T>(target: &str, run: fn(&[u8]) -> T) -> Vec<T> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
    let mut said = Vec::new();
    for entry in fs::read_dir(dir.join(target)).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        match catch_unwind(|| run(&bytes)) {
            Ok(it) => said.push(it),
            Err(_) => panic!("{}", path.display()),
        }
    }
    said
}

#[test]
fn the_seeds_of_the_tar_reader_are_read() {
    let entries = replayed("tar", tar);
    let with_entries = entries.iter().filter(|count| **count > 0).count();
    assert!(with_entries > 5, "{entries:?}");
}

#[test]
fn the_seeds_of_the_erofs_writer_are_valid_disks() {
    let disks = replayed("erofs", erofs);
    let made = disks.iter().filter(|made| **made).count();
    assert!(made > 5, "{disks:?}");
}
