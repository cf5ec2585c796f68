//! Any bytes -> layers that are worth converting: their archives are well-formed, what is in them
//! is not.

use arbitrary::{Result, Unstructured};

use crate::tar::write::{END, head, padding};
use crate::tar::{EntryKind, Rdev};
use crate::tree::Meta;

/// The archives of one to four layers.
pub(super) fn layers(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut bytes = Unstructured::new(bytes);
    let mut layers = Vec::new();
    let mut files = Vec::new();
    while layers.is_empty() || (layers.len() < MAX_LAYERS && !bytes.is_empty()) {
        layers.push(layer(&mut bytes, &mut files));
    }
    layers
}

/// `files` are those that links can lead to.
fn layer(bytes: &mut Unstructured<'_>, files: &mut Vec<Vec<u8>>) -> Vec<u8> {
    let mut archive = Vec::new();
    for _ in 0..MAX_ITEMS {
        // Where the bytes end, or one says so.
        if bytes.is_empty() || matches!(bytes.ratio(1, 24), Ok(true) | Err(_)) {
            break;
        }
        if item(bytes, files, &mut archive).is_err() {
            break;
        }
    }
    archive.extend(END);
    archive
}

fn item(
    bytes: &mut Unstructured<'_>,
    files: &mut Vec<Vec<u8>>,
    archive: &mut Vec<u8>,
) -> Result<()> {
    let mut path = path(bytes)?;
    let meta = meta(bytes)?;
    let kind = match bytes.int_in_range(0..=9)? {
        0 => {
            // One that others are in.
            if let Some(end) = path.iter().rposition(|byte| *byte == b'/') {
                path.truncate(end);
            }
            EntryKind::Directory
        }
        1 => EntryKind::Directory,
        2 | 3 => {
            files.push(path.clone());
            EntryKind::File(size(bytes)?)
        }
        4 if files.is_empty() => EntryKind::Fifo,
        4 => EntryKind::HardLink(bytes.choose(files)?.clone()),
        5 => {
            let length = *bytes.choose(&[1, 59, 4031, 4032, 4033, 4095])?;
            EntryKind::Symlink(vec![bytes.arbitrary::<u8>()?.max(1); length])
        }
        6 => EntryKind::Symlink(self::path(bytes)?),
        7 => EntryKind::Char(rdev(bytes)?),
        8 => EntryKind::Block(rdev(bytes)?),
        _ => return crowd(bytes, &path, &meta, archive),
    };
    put(&path, &meta, &kind, bytes.arbitrary()?, archive);
    Ok(())
}

/// Many names in one directory: its blocks are what matters.
fn crowd(
    bytes: &mut Unstructured<'_>,
    dir: &[u8],
    meta: &Meta,
    archive: &mut Vec<u8>,
) -> Result<()> {
    let count = bytes.int_in_range(1..=300)?;
    let length = bytes.int_in_range(1..=251)?;
    for number in 0..count {
        let name = format!("{number:04}{:n<length$}", "");
        let path = [dir, b"/", name.as_bytes()].concat();
        put(&path, meta, &EntryKind::Fifo, 0, archive);
    }
    Ok(())
}

fn put(path: &[u8], meta: &Meta, kind: &EntryKind, fill: u8, archive: &mut Vec<u8>) {
    archive.extend(head(path, meta, kind));
    if let EntryKind::File(size) = kind {
        let whole = usize::try_from(size + padding(*size)).expect("small files only");
        archive.resize(archive.len() + whole, fill);
    }
}

/// Few names, so that entries meet; those of directories are others, mostly.
fn path(bytes: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut path = Vec::new();
    for _ in 0..bytes.int_in_range(0..=3)? {
        path.extend(*bytes.choose(&[b"A/", b"B/", b"C/", b"./"])?);
    }
    match bytes.int_in_range(0..=31)? {
        0 => path.extend(b".wh..wh..opq"),
        1 => path.extend(b"f/x"),
        2 => path.extend(vec![b'n'; bytes.int_in_range(1..=255)?]),
        3 => path.push(b'!'),
        4 => path.push(bytes.arbitrary::<u8>()?.max(1)),
        5..8 => path.extend([b".wh.", *bytes.choose(&[&b"A"[..], b"f", b"g"])?].concat()),
        _ => path.push(bytes.int_in_range(b'f'..=b'z')?),
    }
    Ok(path)
}

fn meta(bytes: &mut Unstructured<'_>) -> Result<Meta> {
    let mut meta = Meta {
        mode: bytes.int_in_range(0..=0o7777)?,
        ..Meta::default()
    };
    if bytes.ratio(1, 3)? {
        meta.uid = bytes.int_in_range(0..=u32::MAX - 1)?;
        meta.gid = bytes.int_in_range(0..=u32::MAX - 1)?;
        meta.mtime = bytes.arbitrary()?;
        meta.nanos = bytes.int_in_range(0..=999_999_999)?;
    }
    if bytes.ratio(1, 3)? {
        for _ in 0..bytes.int_in_range(1..=3)? {
            let prefix = *bytes.choose(&[
                "user.",
                "trusted.",
                "security.",
                "system.posix_acl_access",
                "trusted.overlay.",
                "other.",
            ])?;
            let length = bytes.int_in_range(0..=230)?;
            let name = format!("{prefix}{:x<length$}", "");
            let value = vec![b'v'; usize::from(*bytes.choose(&[0u16, 1, 4, 900, 4000, 20_000])?)];
            let name = name.into_bytes().into_boxed_slice();
            if let Err(at) = meta.xattrs.binary_search_by(|(other, _)| other.cmp(&name)) {
                meta.xattrs.insert(at, (name, value.into()));
            }
        }
    }
    Ok(meta)
}

fn rdev(bytes: &mut Unstructured<'_>) -> Result<Rdev> {
    Ok(Rdev {
        major: bytes.int_in_range(0..=(1 << 12) - 1)?,
        minor: bytes.int_in_range(0..=(1 << 20) - 1)?,
    })
}

/// Around the limits of blocks.
fn size(bytes: &mut Unstructured<'_>) -> Result<u64> {
    let blocks = bytes.int_in_range(0..=3u64)?;
    let off = bytes.int_in_range(0..=4u64)?;
    Ok((blocks * 4096 + off).saturating_sub(2))
}

const MAX_LAYERS: usize = 4;
const MAX_ITEMS: usize = 64;
