//! `images/lock.toml`: what is fetched from elsewhere, with its digest and its licence.

use std::env::consts::ARCH;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::tree::Tree;

/// The file as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lock {
    /// Guest kernels, one per architecture.
    pub(crate) kernel: Vec<KernelWheel>,
}

/// A guest kernel library inside a Python wheel.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KernelWheel {
    /// The architecture, as Rust names it.
    pub(crate) arch: String,
    /// The package.
    pub(crate) package: String,
    /// Its version.
    pub(crate) version: String,
    /// SHA-256 of the wheel, checked by pip.
    pub(crate) wheel_sha256: String,
    /// The library's path in the wheel.
    pub(crate) file: String,
    /// SHA-256 of the library, checked by us.
    pub(crate) sha256: String,
    /// What it contains, for a person.
    pub(crate) contents: String,
    /// SPDX expression of the library's licence.
    pub(crate) license: String,
    /// The licence texts' paths in the wheel; they are placed beside the library.
    pub(crate) license_files: Vec<String>,
}

impl Lock {
    /// Reads the file; every digest in it is well-formed.
    pub(crate) fn read(tree: &Tree) -> Result<Self> {
        let path = tree.root().join("images/lock.toml");
        let text = fs::read_to_string(&path)
            .with_context(|| format!("cannot read `{}`", path.display()))?;
        Self::parse(&text).with_context(|| format!("`{}` is not valid", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let lock: Self = toml::from_str(text)?;
        for kernel in &lock.kernel {
            for digest in [&kernel.wheel_sha256, &kernel.sha256] {
                if !is_digest(digest) {
                    bail!("`{digest}` of `{}` is no SHA-256 digest", kernel.package);
                }
            }
            if kernel.license_files.is_empty() {
                bail!("`{}` names no licence text", kernel.package);
            }
        }
        Ok(lock)
    }

    /// Returns the kernel for this machine's architecture.
    pub(crate) fn kernel_here(&self) -> Result<&KernelWheel> {
        let arch = ARCH;
        self.kernel
            .iter()
            .find(|kernel| kernel.arch == arch)
            .with_context(|| {
                format!(
                    "images/lock.toml pins no guest kernel for {arch}; install libkrunfw yourself"
                )
            })
    }
}

fn is_digest(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Returns a file's SHA-256 in hexadecimal.
pub(crate) fn sha256_of(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot open `{}`", path.display()))?;
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut HashWriter(&mut hash))
        .with_context(|| format!("cannot read `{}`", path.display()))?;
    Ok(hex(&hash.finalize()))
}

/// Returns the SHA-256 of bytes in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Writes bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Feeds a hash from `io::copy`.
#[derive(Debug)]
pub(crate) struct HashWriter<'a>(pub(crate) &'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(digest: &str) -> String {
        format!(
            "[[kernel]]\narch = \"x86_64\"\npackage = \"p\"\nversion = \"1\"\n\
             wheel_sha256 = \"{digest}\"\nfile = \"f\"\nsha256 = \"{digest}\"\ncontents = \"c\"\n\
             license = \"MIT\"\nlicense_files = [\"l\"]\n"
        )
    }

    #[test]
    fn a_digest_that_is_none_is_refused() {
        Lock::parse(&lock(&"a".repeat(64))).unwrap();
        for bad in ["", "abc", &"g".repeat(64), &"A".repeat(64)] {
            assert!(Lock::parse(&lock(bad)).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let text = lock(&"a".repeat(64)) + "extra = 1\n";
        Lock::parse(&text).unwrap_err();
    }

    #[test]
    fn the_digest_of_nothing_is_the_known_one() {
        assert_eq!(
            sha256(b""),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
