//! Finds the disks by their serials.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{InitError, failed};

/// Returns the device node of the virtio disk with this serial, looked up below `sys_block`.
pub(crate) fn find(sys_block: &Path, serial: &'static str) -> Result<PathBuf, InitError> {
    let shown = || sys_block.display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir(sys_block).map_err(failed("list", shown()))? {
        let entry = entry.map_err(failed("list", shown()))?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        if !name.starts_with("vd") {
            continue;
        }
        // A disk without a serial has no such file, or an empty one.
        let theirs = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
        if theirs.trim_end() == serial {
            return Ok(Path::new("/dev").join(name));
        }
        found.push(format!("{name}=`{}`", theirs.trim_end()));
    }
    found.sort();
    let found = if found.is_empty() {
        "none".to_owned()
    } else {
        found.join(", ")
    };
    Err(InitError::NoDisk { serial, found })
}

#[cfg(test)]
mod tests {
    use std::{env, process};

    use super::*;

    #[test]
    fn a_disk_is_found_by_its_serial_and_a_missing_one_is_named() {
        let dir = env::temp_dir().join(format!("bottle-disks-{}", process::id()));
        for (name, serial) in [
            ("vda", "bottle-overlay\n"),
            ("vdb", "bottle-image\n"),
            ("sr0", "x"),
        ] {
            fs::create_dir_all(dir.join(name)).unwrap();
            fs::write(dir.join(name).join("serial"), serial).unwrap();
        }
        assert_eq!(find(&dir, "bottle-image").unwrap(), Path::new("/dev/vdb"));
        let error = find(&dir, "nothing").unwrap_err().to_string();
        assert!(
            error.contains("vda=`bottle-overlay`, vdb=`bottle-image`"),
            "{error}"
        );
        fs::remove_dir_all(&dir).unwrap();
    }
}
