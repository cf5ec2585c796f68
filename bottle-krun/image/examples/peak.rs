//! Measures the peak memory of a conversion and of a merge: `peak ENTRIES…`.
//!
//! The layer has files with names as packages have them, in directories of twenty. Both works are
//! processes of their own: this program again, with the directory of the image.
#![expect(clippy::print_stdout, reason = "a program for people who measure")]

use std::env::{self, consts};
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::Command;

use bottle_core::image::ImageSource;
use bottle_core::reporter::Silent;
use bottle_image::{SourceOptions, to_disk};
use serde_json::json;
use sha2::{Digest, Sha256};

type Fallible<T> = Result<T, Box<dyn Error>>;

fn main() -> Fallible<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    if let [place, dir] = &args[..]
        && place == "--work"
    {
        return work(Path::new(dir));
    }
    println!("{:>10} {:>12} {:>12}", "entries", "conversion", "merge");
    for count in &args {
        let count: u32 = count.parse()?;
        let dir = tempfile::tempdir_in(".")?;
        layout(dir.path(), count)?;
        let conversion = measured(dir.path())?;
        // What is left is the layer.
        fs::remove_dir_all(dir.path().join("store/images"))?;
        let merge = measured(dir.path())?;
        println!("{count:>10} {conversion:>8} MiB {merge:>8} MiB");
    }
    Ok(())
}

/// Converts, and prints the most memory that this process ever had.
fn work(dir: &Path) -> Fallible<()> {
    let source = ImageSource::OciLayout {
        dir: dir.to_owned(),
        reference: None,
    };
    to_disk(
        &source,
        &SourceOptions::default(),
        &dir.join("store"),
        &Silent,
    )?;
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: u64 = peak.ok_or("the kernel does not say")?.parse()?;
    println!("{}", kib / 1024);
    Ok(())
}

fn measured(dir: &Path) -> Fallible<u64> {
    let output = Command::new(env::current_exe()?)
        .arg("--work")
        .arg(dir)
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

/// Makes a layout of one image with one layer.
fn layout(dir: &Path, count: u32) -> Fallible<()> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let path = blobs.join("layer");
    let hashed = Hashed {
        out: zstd::Encoder::new(BufWriter::new(File::create(&path)?), 1)?,
        hash: Sha256::new(),
    };
    let mut archive = tar::Builder::new(hashed);
    let mut left = count;
    let mut number = 0u32;
    while left > 0 {
        let mut header = tar::Header::new_ustar();
        let is_dir = number.is_multiple_of(21);
        let dir = format!("usr/share/package-{:06}", number / 21);
        header.set_entry_type(tar::EntryType::new(if is_dir { b'5' } else { b'0' }));
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000 + u64::from(number));
        header.set_size(0);
        let name = if is_dir {
            dir
        } else {
            format!("{dir}/module_number_{number:07}.py")
        };
        archive.append_data(&mut header, name, io::empty())?;
        left -= 1;
        number += 1;
    }
    let Hashed { out, hash } = archive.into_inner()?;
    out.finish()?.flush()?;
    let bytes = fs::read(&path)?;
    let layer = blob(
        &blobs,
        "application/vnd.oci.image.layer.v1.tar+zstd",
        &bytes,
    )?;
    fs::remove_file(path)?;
    let architecture = match consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [name(hash)] },
    });
    let config = config.to_string();
    let config_type = "application/vnd.oci.image.config.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "config": blob(&blobs, config_type, config.as_bytes())?,
        "layers": [layer],
    });
    let manifest = manifest.to_string();
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let index = json!({
        "schemaVersion": 2,
        "manifests": [blob(&blobs, manifest_type, manifest.as_bytes())?],
    });
    fs::write(dir.join("index.json"), index.to_string())?;
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

/// Stores a blob and returns its descriptor.
fn blob(blobs: &Path, media_type: &str, bytes: &[u8]) -> Fallible<serde_json::Value> {
    let digest = name(Sha256::new_with_prefix(bytes));
    fs::write(blobs.join(&digest[7..]), bytes)?;
    Ok(json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() }))
}

fn name(hash: Sha256) -> String {
    let bytes = hash.finalize();
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{}", digits.concat())
}

struct Hashed<W> {
    out: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
