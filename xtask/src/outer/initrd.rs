//! The outer guest's initrd: busybox, the modules that reach the root file system, and `init.sh`.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::kernel::Kernel;
use crate::lock::sha256;
use crate::run::Run;
use crate::tree::{Tree, which};

/// What the guest needs before it can load modules by itself, and what nothing would ask for.
///
/// The rest (veth, dummy, …) is loaded when it is used: the guest sees this kernel's modules.
const MODULES: [&str; 13] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_rng",
    "9pnet_virtio",
    "9p",
    "overlay",
    "ext4",
    "kvm-amd",
    "vsock",
    "tun",
    "loop",
    "erofs",
];

const INIT: &str = include_str!("init.sh");
const BUSYBOX: &str = "/bin/busybox";

/// Makes the initrd unless the same one is there.
pub(super) fn ensure(tree: &Tree, kernel: &Kernel) -> Result<PathBuf> {
    let key = sha256(format!("{INIT}\0{MODULES:?}").as_bytes());
    let name = format!("initrd-{}-{}.cpio", kernel.version(), &key[..12]);
    let path = tree.outer().join(name);
    if path.exists() {
        return Ok(path);
    }
    let bytes = archive(&modules(kernel)?)?;
    let temporary = tempfile::NamedTempFile::new_in(tree.outer())?;
    fs::write(temporary.path(), bytes)?;
    temporary
        .persist(&path)
        .with_context(|| format!("cannot write `{}`", path.display()))?;
    Ok(path)
}

/// Returns the modules' files in the order in which they can be loaded.
fn modules(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let modprobe = which("modprobe").context("modprobe is missing; run `cargo xtask setup`")?;
    let mut seen = HashSet::new();
    let mut files = Vec::new();
    for module in MODULES {
        let plan = Run::new(&modprobe)
            .arg("-d")
            .arg(kernel.directory())
            .args(["-S", kernel.version(), "-D", module])
            .output()?;
        for line in plan.lines() {
            // The other lines are `builtin NAME`.
            if let Some(file) = line.strip_prefix("insmod ") {
                let file = module_file(file);
                if seen.insert(file.clone()) {
                    files.push(file);
                }
            }
        }
    }
    Ok(files)
}

/// Cuts off the module's parameters, which come from this machine's own configuration.
fn module_file(line: &str) -> PathBuf {
    let line = line.trim();
    let name_at = line.rfind('/').map_or(0, |slash| slash + 1);
    let end = line[name_at..]
        .find(' ')
        .map_or(line.len(), |space| name_at + space);
    PathBuf::from(&line[..end])
}

fn archive(modules: &[PathBuf]) -> Result<Vec<u8>> {
    let mut cpio = Cpio::default();
    for directory in [
        "bin", "modules", "dev", "proc", "sys", "host", "upper", "new",
    ] {
        cpio.entry(directory, 0o040_755, &[])?;
    }
    let busybox =
        fs::read(BUSYBOX).with_context(|| format!("cannot read `{BUSYBOX}` (busybox-static)"))?;
    cpio.entry("bin/busybox", 0o100_755, &busybox)?;
    cpio.entry("init", 0o100_755, INIT.as_bytes())?;
    let mut order = String::new();
    for module in modules {
        let name = module
            .file_name()
            .and_then(|name| name.to_str())
            .context("odd module name")?;
        let bytes =
            fs::read(module).with_context(|| format!("cannot read `{}`", module.display()))?;
        cpio.entry(&format!("modules/{name}"), 0o100_644, &bytes)?;
        order.push_str(name);
        order.push('\n');
    }
    cpio.entry("modules.order", 0o100_644, order.as_bytes())?;
    cpio.finish()
}

/// A writer of the `newc` format, which the kernel reads.
#[derive(Debug, Default)]
struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
}

impl Cpio {
    fn entry(&mut self, name: &str, mode: u32, body: &[u8]) -> Result<()> {
        self.inode += 1;
        let size = u32::try_from(body.len()).context("a file is too large for an initrd")?;
        let name_size = u32::try_from(name.len() + 1).context("a name is too long")?;
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(body);
        self.align();
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.bytes)
    }

    fn align(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }
}

/// Says whether the installed busybox is the static one with what `init.sh` needs.
pub(super) fn busybox_works() -> bool {
    Run::new(BUSYBOX)
        .arg("--list")
        .output()
        .is_ok_and(|list| list.lines().any(|applet| applet == "switch_root"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_a_module_are_not_part_of_its_path() {
        for line in ["/a b/dummy.ko numdummies=0", "/a b/dummy.ko "] {
            assert_eq!(module_file(line), PathBuf::from("/a b/dummy.ko"));
        }
    }

    #[test]
    fn an_archive_is_aligned_and_ends_with_the_trailer() {
        let mut cpio = Cpio::default();
        cpio.entry("a", 0o100_644, b"12345").unwrap();
        let bytes = cpio.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.starts_with(b"070701000000010000"));
        // 110 bytes of header, the name with its NUL: the body begins at the next multiple of 4.
        assert_eq!(&bytes[112..117], b"12345");
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }
}
