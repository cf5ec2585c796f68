//! The writer apart from layers: what only it knows.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use super::body::{Bodies, Body, StoreError};
use super::*;
use crate::tree::{Limits, Meta};

fn image(tree: &Tree, form: Form, file: &File) -> Vec<u8> {
    let blocks = write(tree, form, file).unwrap();
    let mut bytes = vec![0; blocks as usize * BLOCK_SIZE];
    assert_eq!(file.metadata().unwrap().len(), bytes.len() as u64);
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn bodies(file: &File) -> Bodies {
    Bodies::new(file.try_clone().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

#[test]
fn a_body_elsewhere_is_addressed_behind_the_image() {
    let file = tempfile::tempfile().unwrap();
    let mut tree = Tree::new(&Limits::DEFAULT, Path::new("/no/where"));
    let body = Body {
        size: 5000,
        first: 7,
    };
    tree.put(&[b"file"], &Meta::default(), &Leaf::File(body))
        .unwrap();
    let bytes = image(&tree, Form::Metadata { behind: 9 }, &file);
    // The superblock's block, and one of metadata: the root with its names, then the file.
    assert_eq!(bytes.len(), 2 * BLOCK_SIZE);
    assert_eq!(u32_at(&bytes, 1024 + 36), 2 + 9);
    let root = INODE_SIZE + 3 * 12 + b"...file".len();
    let inode = BLOCK_SIZE + root.next_multiple_of(INODE_SIZE);
    let layout = u16::from_le_bytes([bytes[inode], bytes[inode + 1]]);
    assert_eq!(layout, EXTENDED | LAYOUT_PLAIN << 1);
    assert_eq!(u32_at(&bytes, inode + 8), 5000);
    assert_eq!(u32_at(&bytes, inode + 16), 2 + 7);
}

#[test]
fn bodies_stand_in_whole_blocks_one_behind_the_other() {
    let file = tempfile::tempfile().unwrap();
    let mut bodies = bodies(&file);
    let mut store = |byte: u8, size: usize| {
        let mut source = Cursor::new(vec![byte; size]);
        bodies.store(size as u64, &mut source).unwrap().first
    };
    let places = [(1, 4097), (2, 0), (3, 4096), (4, 1)].map(|(byte, size)| store(byte, size));
    assert_eq!(places, [1, 3, 3, 4]);
    assert_eq!(bodies.finish().unwrap(), 5);
    let mut bytes = vec![0; 4 * BLOCK_SIZE];
    file.read_exact_at(&mut bytes, BLOCK).unwrap();
    let expected = [
        vec![1; 4097],
        vec![0; 4095],
        vec![3; 4096],
        vec![4],
        vec![0; 4095],
    ];
    assert!(bytes == expected.concat());
}

#[test]
fn zeros_are_holes_and_come_out_as_zeros() {
    let file = tempfile::tempfile().unwrap();
    let mut bodies = bodies(&file);
    let size = 5 << 20;
    bodies.store(size, &mut io::repeat(0)).unwrap();
    bodies.store(3, &mut &b"end"[..]).unwrap();
    let end = bodies.finish().unwrap();
    assert_eq!(u64::from(end), 1 + size / BLOCK + 1);
    let mut bytes = vec![1; usize::try_from(size).unwrap() + 3];
    file.read_exact_at(&mut bytes, BLOCK).unwrap();
    let (zeros, end) = bytes.split_last_chunk::<3>().unwrap();
    assert!(zeros.iter().all(|byte| *byte == 0));
    assert_eq!(end, b"end");
}

#[test]
fn a_source_that_ends_early_is_noticed() {
    let file = tempfile::tempfile().unwrap();
    for size in [100, 5000, 4096] {
        let mut short = io::repeat(1).take(size - 1);
        let error = bodies(&file).store(size, &mut short).unwrap_err();
        assert!(matches!(error, StoreError::Truncated), "{error:?}");
    }
}

#[test]
fn more_blocks_than_32_bits_count_are_refused_before_anything_is_written() {
    let file = tempfile::tempfile().unwrap();
    for size in [1 << 44, u64::MAX] {
        let error = bodies(&file).store(size, &mut io::repeat(1)).unwrap_err();
        assert!(matches!(error, StoreError::Write(_)), "{error:?}");
    }
    assert_eq!(file.metadata().unwrap().len(), 0);
    let tree = Tree::new(&Limits::DEFAULT, Path::new("/no/where"));
    let form = Form::Metadata { behind: 1 << 32 };
    let error = write(&tree, form, &file).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
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
fn only_an_intact_superblock_counts_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    let tree = Tree::new(&Limits::DEFAULT, Path::new("/no/where"));
    let bytes = image(&tree, Form::Metadata { behind: 5 }, &file);
    assert_eq!(blocks_of(&file).unwrap(), Some(2 + 5));
    for (at, byte) in [(1024, 0), (1025 + 36, 9), (1024 + 64, b'x'), (4095, 1)] {
        let mut damaged = bytes.clone();
        damaged[at] = byte;
        fs::write(&path, damaged).unwrap();
        assert_eq!(blocks_of(&file).unwrap(), None, "{at}");
    }
    fs::write(&path, &bytes[..4095]).unwrap();
    assert_eq!(blocks_of(&file).unwrap(), None);
}
