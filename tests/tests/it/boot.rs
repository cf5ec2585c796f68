//! The image's own programs run, as the image's own user, on a kernel of their own.

use std::fs;
use std::time::SystemTime;

use anyhow::{Result, ensure};
use bottle_tests::frame::in_shared_bottle;

#[test]
fn the_images_own_programs_run() {
    in_shared_bottle(async |bench| {
        let git = bench.run(["git", "--version"]).await?.success()?;
        ensure!(git.starts_with("git version "), "{git}");
        assert_eq!(bench.python("print(6 * 7)", &[]).await?.success()?, "42");
        Ok(())
    });
}

#[test]
fn a_program_runs_as_the_images_user_unless_another_one_is_named() {
    in_shared_bottle(async |bench| {
        assert_eq!(bench.run(["id", "-u"]).await?.success()?, "1000");
        assert_eq!(bench.run(["id", "-un"]).await?.success()?, "agent");
        assert_eq!(bench.run(["pwd"]).await?.success()?, "/home/agent");
        let home = bench.run(["sh", "-c", "echo $HOME"]).await?.success()?;
        assert_eq!(home, "/home/agent");
        assert_eq!(bench.run_as_root(["id", "-u"]).await?.success()?, "0");
        Ok(())
    });
}

/// Without a kernel of its own (a container, say) the release would be the host's.
#[test]
fn the_workload_sees_another_kernel_than_the_hosts() {
    in_shared_bottle(async |bench| {
        let host = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let guest = bench.run(["uname", "-r"]).await?.success()?;
        ensure!(guest != host.trim(), "both are {guest}");
        Ok(())
    });
}

#[test]
fn the_guests_clock_is_the_hosts() {
    in_shared_bottle(async |bench| -> Result<()> {
        let guest: i64 = bench.run(["date", "+%s"]).await?.success()?.parse()?;
        let host = SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
        ensure!(
            (guest - i64::try_from(host)?).abs() < 30,
            "guest {guest}, host {host}"
        );
        Ok(())
    });
}
