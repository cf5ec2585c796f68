//! Conversions with limits and sources that a layout cannot have.

use bottle_core::reporter::Silent;
use std::io::{self, Cursor, Read};
use std::time::{Duration, Instant};

use super::*;
use crate::error::EntryProblem;
use crate::layer::Compression;

/// Layers in memory; those without bytes are endless.
struct Memory(Vec<Option<Vec<u8>>>);

impl Memory {
    fn blobs(&self) -> Vec<LayerBlob> {
        let blob = |bytes: &Option<Vec<u8>>| {
            let bytes = bytes.as_deref().unwrap_or(b"endless");
            LayerBlob {
                digest: Digest::of(bytes),
                size: bytes.len() as u64,
                diff_id: Digest::of(bytes),
                compression: Compression::None,
            }
        };
        self.0.iter().map(blob).collect()
    }
}

impl Blobs for Memory {
    fn open_layer(&self, blob: &LayerBlob) -> Result<Box<dyn Read + Send>, ImageError> {
        let mut known = self.0.iter().flatten();
        match known.find(|bytes| Digest::of(bytes) == blob.digest) {
            Some(bytes) => Ok(Box::new(Cursor::new(bytes.clone()))),
            None => Ok(Box::new(Endless {
                head: Cursor::new(archive(&[("endless", 1 << 34)], false)),
                since: Instant::now(),
            })),
        }
    }
}

/// A large file that nobody should read to its end.
struct Endless {
    head: Cursor<Vec<u8>>,
    since: Instant,
}

impl Read for Endless {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        assert!(
            self.since.elapsed() < Duration::from_secs(60),
            "not stopped"
        );
        match self.head.read(buf)? {
            0 => io::repeat(0).read(buf),
            read => Ok(read),
        }
    }
}

fn archive(files: &[(&str, u64)], with_bodies: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (path, size) in files {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_mode(0o644);
        header.set_size(*size);
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        if with_bodies {
            let end = bytes.len() + usize::try_from(size.next_multiple_of(512)).unwrap();
            bytes.resize(end, b'x');
        }
    }
    bytes
}

fn layer(files: &[(&str, u64)]) -> Option<Vec<u8>> {
    Some(archive(files, true))
}

#[test]
fn all_layers_share_one_limit_of_bytes_and_those_in_the_store_count() {
    let memory = Memory(vec![layer(&[("a", 8000)]), layer(&[("b", 8000)])]);
    let blobs = memory.blobs();
    let limits = Limits {
        bytes: 16_000,
        ..Limits::DEFAULT
    };
    let store = tempfile::tempdir().unwrap();
    for found in [0, 1] {
        let error = disk(&memory, &blobs, store.path(), &limits, &Silent).unwrap_err();
        assert!(
            matches!(error, ImageError::Limit { limit: 16_000, .. }),
            "{found} in the store: {error:?}"
        );
        disk(&memory, &blobs[..1], store.path(), &limits, &Silent).unwrap();
    }
    disk(&memory, &blobs, store.path(), &Limits::DEFAULT, &Silent).unwrap();
}

#[test]
fn all_layers_share_one_limit_of_entries() {
    let memory = Memory(vec![layer(&[("a", 1), ("b", 1)]), layer(&[("c", 1)])]);
    let limits = Limits {
        entries: 2,
        ..Limits::DEFAULT
    };
    let blobs = memory.blobs();
    let store = tempfile::tempdir().unwrap();
    disk(&memory, &blobs[..1], store.path(), &limits, &Silent).unwrap();
    let error = disk(&memory, &blobs, store.path(), &limits, &Silent).unwrap_err();
    let ImageError::Limit { what, limit } = error else {
        panic!("{error:?}");
    };
    assert_eq!((what, limit), ("entries", 2));
}

/// Without a limit that layers share while they are made, as many trees of two million entries are
/// in memory as there are processors.
#[test]
fn layers_that_are_made_share_the_limits_of_memory() {
    let memory = Memory(vec![
        layer(&[("a", 1), ("long-name-b", 1)]),
        layer(&[("c", 1), ("long-name-d", 1)]),
    ]);
    let blobs = memory.blobs();
    let entries = Limits {
        entries: 3,
        ..Limits::DEFAULT
    };
    let names = Limits {
        names: 20,
        ..Limits::DEFAULT
    };
    for (limits, expected) in [(entries, "entries"), (names, "bytes of names")] {
        let store = tempfile::tempdir().unwrap();
        disk(&memory, &blobs[..1], store.path(), &limits, &Silent).unwrap();
        let store = tempfile::tempdir().unwrap();
        let error = disk(&memory, &blobs, store.path(), &limits, &Silent).unwrap_err();
        let ImageError::Limit { what, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(what, expected);
        let made = Shelf::layers(store.path()).unwrap();
        let whole = blobs.iter().filter(|blob| {
            let found = layer::find(&made, &blob.diff_id);
            found.unwrap().is_some()
        });
        assert!(whole.count() < 2, "both layers were made");
    }
}

#[test]
fn a_layer_that_fails_stops_the_others() {
    if thread::available_parallelism().unwrap().get() == 1 {
        // Nothing else runs then.
        return;
    }
    let memory = Memory(vec![None, layer(&[("../evil", 1)])]);
    let store = tempfile::tempdir().unwrap();
    let blobs = memory.blobs();
    let error = disk(&memory, &blobs, store.path(), &Limits::DEFAULT, &Silent).unwrap_err();
    let ImageError::BadEntry { source, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(source, EntryProblem::EscapingPath);
}
