//! The descriptor that joins files to one disk: VMDK, flat extents.
//!
//! The reader is the virtual machine monitor (the crate `imago` in libkrun 1.19). It takes sizes in
//! sectors, file names relative to the descriptor between quotes that cannot be escaped, and no
//! line that it does not know.

use std::fmt::Write;
use std::path::Path;

use crate::digest::Digest;

/// One file of the disk.
#[derive(Debug)]
pub(crate) struct Extent<'p> {
    /// Only its name counts: descriptor and extents are put into one directory to be used.
    pub(crate) path: &'p Path,
    /// A multiple of the block size.
    pub(crate) bytes: u64,
}

/// The text of the descriptor; depends on nothing but the arguments.
pub(crate) fn descriptor(key: &Digest, extents: &[Extent<'_>]) -> String {
    let content = key.hex();
    let mut text = format!(
        "# Disk DescriptorFile\n\
         version=1\n\
         CID={}\n\
         parentCID=ffffffff\n\
         createType=\"twoGbMaxExtentFlat\"\n\
         \n\
         # Extent description\n",
        &content[..8]
    );
    for Extent { path, bytes } in extents {
        let name = path.file_name().unwrap_or_default().display();
        // Writing to a `String` cannot fail.
        let _ = writeln!(text, "RDONLY {} FLAT \"{name}\" 0", bytes / SECTOR);
    }
    text
}

const SECTOR: u64 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_lists_names_and_sectors() {
        let extents = [("images/a.meta", 8192), ("/layers/b.erofs", 4096)];
        let extents = extents.map(|(path, bytes)| Extent {
            path: Path::new(path),
            bytes,
        });
        let text = descriptor(&Digest::of(b""), &extents);
        assert!(text.contains("\nCID=e3b0c442\n"), "{text}");
        assert!(
            text.ends_with("RDONLY 16 FLAT \"a.meta\" 0\nRDONLY 8 FLAT \"b.erofs\" 0\n"),
            "{text}"
        );
    }
}
