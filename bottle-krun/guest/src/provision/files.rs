//! Files that the bottle writes into the image. A symbolic link in their place is replaced, never
//! followed: many images link `/etc/resolv.conf` to a file of a daemon that does not run here.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::libc;

use crate::error::{InitError, failed};

/// Writes `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf`.
pub(super) fn write_names(root: &Path, hostname: &str) -> Result<(), InitError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    if hostname.is_empty() || !hostname.bytes().all(legal) {
        let why = format!("`{}` is none", hostname.escape_debug());
        return Err(InitError::Unusable {
            what: "the host name",
            why,
        });
    }
    let hosts = format!(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         127.0.1.1\t{hostname}\n"
    );
    replace(
        root,
        "etc/hostname",
        format!("{hostname}\n").as_bytes(),
        0o644,
    )?;
    replace(root, "etc/hosts", hosts.as_bytes(), 0o644)?;
    replace(root, "etc/resolv.conf", b"nameserver 127.0.0.1\n", 0o644)
}

/// Puts a file in place of whatever has its name, at once; makes its directory if there is none.
pub(super) fn replace(root: &Path, path: &str, content: &[u8], mode: u32) -> Result<(), InitError> {
    let target = root.join(path);
    let named = || format!("/{path}");
    let write = || -> io::Result<()> {
        let dir = target.parent().ok_or(io::ErrorKind::InvalidInput)?;
        fs::create_dir_all(dir)?;
        let mut name = target
            .file_name()
            .ok_or(io::ErrorKind::InvalidInput)?
            .to_owned();
        name.push(".bottle-new");
        let new = dir.join(name);
        match fs::remove_file(&new) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&new)?;
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        fs::rename(&new, &target)
    };
    write().map_err(failed("write", named()))
}

#[cfg(test)]
pub(super) mod tests {
    use std::env;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;
    use std::process;

    use super::*;

    /// A directory that is an image's root for one test.
    pub(in super::super) struct Root(pub(in super::super) PathBuf);

    impl Root {
        pub(in super::super) fn new(name: &str) -> Self {
            let path = env::temp_dir().join(format!("bottle-guest-{name}-{}", process::id()));
            fs::create_dir_all(path.join("etc")).unwrap();
            Self(path)
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn a_link_is_replaced_and_its_target_untouched() {
        let root = Root::new("files");
        let elsewhere = root.0.join("elsewhere");
        fs::write(&elsewhere, "untouched").unwrap();
        symlink(&elsewhere, root.0.join("etc/resolv.conf")).unwrap();
        symlink("/nowhere/at/all", root.0.join("etc/hosts")).unwrap();
        write_names(&root.0, "bottle-1").unwrap();
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "untouched");
        let conf = root.0.join("etc/resolv.conf");
        assert_eq!(fs::read_to_string(&conf).unwrap(), "nameserver 127.0.0.1\n");
        assert!(fs::symlink_metadata(&conf).unwrap().is_file());
        let hosts = fs::read_to_string(root.0.join("etc/hosts")).unwrap();
        assert!(hosts.contains("127.0.1.1\tbottle-1\n"));
    }

    #[test]
    fn a_host_name_that_is_none_is_refused() {
        let root = Root::new("hostname");
        for name in ["", "a b", "a\nb", "ä"] {
            assert!(
                matches!(write_names(&root.0, name), Err(InitError::Unusable { .. })),
                "{name}"
            );
        }
    }
}
