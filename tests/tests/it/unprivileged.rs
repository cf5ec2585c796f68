//! The main path as a user without privileges: member of the group of /dev/kvm, nothing else.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use bottle_core::backend::ExitStatus;
use bottle_tests::cli::run;
use bottle_tests::frame::on_host;
use bottle_tests::host::KERNEL;
use bottle_tests::upstream::Upstream;
use nix::unistd::Uid;
use tokio::process::Command;

/// The user, and the group that may open /dev/kvm. Neither needs an entry in /etc.
const USER: u32 = 1001;
const GROUP: u32 = 36_001;

/// Fails if some step needs root, a setuid helper, or a /dev/kvm for everybody.
#[test]
fn a_bottle_of_an_unprivileged_user_starts_reaches_what_it_may_and_nothing_else() {
    on_host(async |host| {
        let upstream = Upstream::start(&["allowed.test"]).await?;
        let script = "id -u; curl -sS https://allowed.test/unprivileged
            curl -sS -o /dev/null -w '%{http_code}' https://unlisted.example.org/";
        let mut args = host.start_args("unprivileged");
        args.extend(host.allow_args(&upstream)?);
        args.extend(["--", "sh", "-c", script].map(str::to_owned));
        let output = if Uid::effective().is_root() {
            let kvm = Device::hand_over("/dev/kvm", GROUP)?;
            let bottle = host.dir.join("bottle");
            copy(&host.given.bottle, &bottle)?;
            // A copy in the place of the link, whose target the user may not reach.
            fs::remove_file(host.dir.join(KERNEL))?;
            copy(&host.given.kernel, &host.dir.join(KERNEL))?;
            give(&host.dir, USER)?;
            // A way to the directories of this test, and to no others.
            let run_dir = host.dir.parent().context("it is in the run's directory")?;
            fs::set_permissions(run_dir, Permissions::from_mode(0o711))?;
            let mut command = Command::new("setpriv");
            let ids = [format!("--reuid={USER}"), format!("--regid={USER}")];
            command
                .args(ids)
                .arg(format!("--groups={GROUP}"))
                .arg("--")
                .arg(&bottle)
                .args(&args);
            host.prepare(&mut command);
            command.env("XDG_CACHE_HOME", host.dir.join("home/cache"));
            let output = run(command, b"").await;
            drop(kvm);
            output?
        } else {
            run(host.bottle(&args), b"").await?
        };
        assert_eq!(
            output.text(),
            "1000\nhello from the upstream\n403",
            "{output}"
        );
        assert_eq!(output.status, ExitStatus::Exited(0), "{output}");
        assert_eq!(upstream.seen("/unprivileged").len(), 1);
        let left = host.leftovers()?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    });
}

/// A device node whose group and mode are put back in the end.
struct Device {
    path: &'static str,
    mode: u32,
    group: u32,
}

impl Device {
    fn hand_over(path: &'static str, group: u32) -> Result<Self> {
        let before = fs::metadata(path)?;
        let device = Self {
            path,
            mode: before.mode(),
            group: before.gid(),
        };
        chown(path, None, Some(group))?;
        fs::set_permissions(path, Permissions::from_mode(0o660))?;
        Ok(device)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = chown(self.path, None, Some(self.group));
        let _ = fs::set_permissions(self.path, Permissions::from_mode(self.mode & 0o7777));
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)?;
    fs::set_permissions(to, Permissions::from_mode(0o755))?;
    Ok(())
}

/// Gives a directory and everything in it to a user.
fn give(path: &Path, user: u32) -> Result<()> {
    // The target of a link is not ours to give.
    lchown(path, Some(user), Some(user))?;
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), user)?;
        }
    }
    Ok(())
}
