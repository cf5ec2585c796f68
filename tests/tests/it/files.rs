//! What one bottle writes, no other bottle sees, and the image stays what it was.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use bottle_tests::bench::Bench;
use bottle_tests::frame::{in_own_bottle, in_shared_bottle};
use bottle_tests::given::vm;
use bottle_tests::host::store;
use bottle_tests::token::hex;
use sha2::{Digest, Sha256};

/// Fails if the overlay is reused, or if the image's disk is attached writable and written to.
#[test]
fn a_file_written_in_one_bottle_is_not_in_the_next_and_the_image_is_unchanged() {
    vm(async |given| {
        let first = Bench::start(given, "files-1", |_| {}).await?;
        let before = hashes(&store()?)?;
        ensure!(
            !before.is_empty(),
            "the store of images is empty after a start"
        );
        let write = "echo mine > /home/agent/left && echo root > /usr/bin/git && sync";
        first.run_as_root(["sh", "-c", write]).await?.success()?;
        assert_eq!(
            first.run(["cat", "/home/agent/left"]).await?.success()?,
            "mine"
        );
        first.bottle.remove().await?;

        let second = Bench::start(given, "files-2", |_| {}).await?;
        second.run(["cat", "/home/agent/left"]).await?.failure()?;
        second.run(["git", "--version"]).await?.success()?;
        second.bottle.remove().await?;
        assert_eq!(hashes(&store()?)?, before, "the image's disk was changed");
        Ok(())
    });
}

#[test]
fn a_removed_bottle_leaves_nothing_but_its_record() {
    // The frame looks for what is left.
    in_own_bottle(
        "removed",
        |_| {},
        async |bench| {
            bench.run(["true"]).await?.success()?;
            ensure!(
                !bench.host.leftovers()?.is_empty(),
                "a running bottle has files"
            );
            Ok(())
        },
    );
}

/// A disk attached read-only refuses writes from the guest's root too.
#[test]
fn the_guests_root_cannot_write_to_the_disk_of_the_image() {
    in_shared_bottle(async |bench| {
        let program = "
import glob, os
for serial in glob.glob('/sys/block/vd*/serial'):
    if open(serial).read().strip() == 'bottle-image':
        name = serial.split('/')[3]
        major, minor = map(int, open(f'/sys/block/{name}/dev').read().split(':'))
        os.mknod('/tmp/image-disk', 0o60600, os.makedev(major, minor))
        try:
            disk = os.open('/tmp/image-disk', os.O_RDWR)
            os.pwrite(disk, b'x' * 4096, 0)
            os.fsync(disk)
            print('written')
        except OSError as error:
            print('refused', error.errno)
        os.unlink('/tmp/image-disk')
";
        let told = bench
            .run_as_root(["python3", "-c", program])
            .await?
            .success()?;
        ensure!(told.starts_with("refused"), "{told}");
        Ok(())
    });
}

/// Hashes every file below a directory.
fn hashes(dir: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(hashes(&path)?);
        } else {
            let mut hash = Sha256::new();
            io::copy(&mut File::open(&path)?, &mut Writer(&mut hash))?;
            found.insert(path, hex(&hash.finalize()));
        }
    }
    Ok(found)
}

/// Lets a hash take a stream.
struct Writer<'a>(&'a mut Sha256);

impl io::Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
