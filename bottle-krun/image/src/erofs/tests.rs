//! The writer apart from layers: what only it knows.

use std::fs;
use std::io::Cursor;

use super::body::{Bodies, Body, StoreError};
use super::*;
use crate::tree::{Limits, Meta};

fn image(tree: &Tree, bodies: Bodies, file: &File) -> Vec<u8> {
    let (first, tails) = bodies.finish().unwrap();
    write(tree, first, &tails, file).unwrap();
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn bodies(file: &File) -> Bodies {
    Bodies::new(file.try_clone().unwrap(), tempfile::tempfile().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

#[test]
fn a_body_elsewhere_is_addressed_behind_the_image() {
    let file = tempfile::tempfile().unwrap();
    let mut tree = Tree::new(&Limits::DEFAULT);
    let body = Body {
        size: 5000,
        place: Place::Extern { first: 7 },
    };
    tree.put(&[b"file"], Meta::default(), NodeKind::File(body))
        .unwrap();
    let bytes = image(&tree, bodies(&file), &file);
    let blocks = u32_at(&bytes, 1024 + 36);
    assert_eq!(blocks as usize * BLOCK_SIZE, bytes.len());
    // The superblock's block, and one of metadata: the root with its names, then the file.
    assert_eq!(blocks, 2);
    let root = INODE_SIZE + 3 * 12 + b"...file".len();
    let inode = BLOCK_SIZE + root.next_multiple_of(INODE_SIZE);
    let layout = u16::from_le_bytes([bytes[inode], bytes[inode + 1]]);
    assert_eq!(layout, EXTENDED | LAYOUT_PLAIN << 1);
    assert_eq!(u32_at(&bytes, inode + 8), 5000);
    assert_eq!(u32_at(&bytes, inode + 16), blocks + 7);
}

#[test]
fn blocks_of_hidden_files_are_used_again() {
    let file = tempfile::tempfile().unwrap();
    let mut bodies = bodies(&file);
    let store = |bodies: &mut Bodies, byte: u8, size: usize| {
        bodies
            .store(size as u64, INODE, &mut Cursor::new(vec![byte; size]))
            .unwrap()
    };
    let first = store(&mut bodies, 1, 3 * BLOCK_SIZE);
    let last = store(&mut bodies, 2, BLOCK_SIZE);
    bodies.release(&first);
    let again = store(&mut bodies, 3, 2 * BLOCK_SIZE);
    assert!(
        matches!(
            again.place,
            Place::Here {
                first: 1,
                tail: None
            }
        ),
        "{again:?}"
    );
    bodies.release(&last);
    let (end, _) = bodies.finish().unwrap();
    assert_eq!(end, 3, "what is free at the end is no part of the image");
    let mut bytes = [0; 2 * BLOCK_SIZE];
    file.read_exact_at(&mut bytes, BLOCK).unwrap();
    assert_eq!(bytes, [3; 2 * BLOCK_SIZE]);
}

#[test]
fn a_source_that_ends_early_is_noticed() {
    let file = tempfile::tempfile().unwrap();
    for size in [100, 5000, 4096] {
        let mut short = io::repeat(1).take(size - 1);
        let error = bodies(&file).store(size, INODE, &mut short).unwrap_err();
        assert!(matches!(error, StoreError::Truncated), "{error:?}");
    }
}

#[test]
fn more_blocks_than_32_bits_count_are_refused_before_anything_is_written() {
    let file = tempfile::tempfile().unwrap();
    let mut bodies = bodies(&file);
    for size in [1 << 44, u64::MAX] {
        let error = bodies.store(size, INODE, &mut io::repeat(1)).unwrap_err();
        assert!(matches!(error, StoreError::Write(_)), "{error:?}");
    }
    assert_eq!(file.metadata().unwrap().len(), 0);
}

#[test]
fn the_checksum_is_crc32c() {
    // The usual form of the check value inverts the result.
    assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
}

#[test]
fn tails_stand_behind_inodes_where_they_fit() {
    assert_eq!(inline_tail(0, 64), 0);
    assert_eq!(inline_tail(4032, 64), 4032);
    assert_eq!(inline_tail(4033, 64), 0);
    assert_eq!(inline_tail(4096, 64), 0);
    assert_eq!(inline_tail(4097, 64), 1);
    assert_eq!(inline_tail(10, 4090), 0);
    assert_eq!(inline_tail(10, 60_000), 0);
}

#[test]
fn device_numbers_have_the_kernels_encoding() {
    let encoded = |major, minor| encode(Rdev { major, minor });
    assert_eq!(encoded(1, 3), 0x103);
    assert_eq!(encoded(4095, 0xf_ffff), 0xffff_ffff);
    assert_eq!(encoded(8, 0x100), 0x10_0800);
}

#[test]
fn only_a_whole_image_looks_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    let bytes = image(&Tree::new(&Limits::DEFAULT), bodies(&file), &file);
    assert!(looks_whole(&file).unwrap());
    for (at, byte) in [(1024, 0), (1025 + 36, 9), (1024 + 64, b'x'), (4095, 1)] {
        let mut damaged = bytes.clone();
        damaged[at] = byte;
        fs::write(&path, damaged).unwrap();
        assert!(!looks_whole(&file).unwrap(), "{at}");
    }
}
