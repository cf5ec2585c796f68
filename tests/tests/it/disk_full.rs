//! A disk that runs full: the bottle's own, and the host's.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command as HostCommand;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bottle_core::backend::{Backend, Command, Condition, ExitStatus};
use bottle_core::event::Happening;
use bottle_core::id::BottleId;
use bottle_core::reporter::Silent;
use bottle_core::spec::{ImageSource, Overlay, Spec};
use bottle_core::units::MiB;
use bottle_krun::KrunBackend;
use bottle_tests::bench::{Output, finish};
use bottle_tests::frame::{in_own_bottle, on_host};
use tokio::time::timeout;

/// How long a bottle may take to fill a small disk, and to go on.
const PATIENCE: Duration = Duration::from_secs(180);

#[test]
fn a_full_disk_is_no_space_left_in_the_guest_and_nothing_worse() {
    in_own_bottle(
        "full",
        |spec| spec.resources.overlay = Overlay::Disk(MiB(64)),
        async |bench| {
            let fill = "head -c 200000000 /dev/zero >/home/agent/fill";
            let said = bench.run(["sh", "-c", fill]).await?.failure()?;
            ensure!(said.contains("No space left on device"), "{said}");
            let again =
                "rm /home/agent/fill && echo fine >/home/agent/file && cat /home/agent/file";
            assert_eq!(bench.run(["sh", "-c", again]).await?.success()?, "fine");
            Ok(())
        },
    );
}

#[test]
fn an_ephemeral_bottle_keeps_what_it_writes_in_memory_and_is_told_when_that_is_full() {
    in_own_bottle(
        "ephemeral",
        |spec| {
            spec.resources.overlay = Overlay::Memory;
            spec.resources.memory = MiB(512);
        },
        async |bench| {
            let state = bench.host.state_of(bench.bottle.id());
            ensure!(!state.join("overlay.ext4").exists());
            let write = "echo kept >/home/agent/file && sudo rm /etc/hostname && \
                         cat /home/agent/file";
            assert_eq!(bench.run(["sh", "-c", write]).await?.success()?, "kept");
            let fill = "head -c 400000000 /dev/zero >/home/agent/fill";
            let said = bench.run(["sh", "-c", fill]).await?.failure()?;
            ensure!(said.contains("No space left on device"), "{said}");
            let again = "rm /home/agent/fill && cat /home/agent/file";
            assert_eq!(bench.run(["sh", "-c", again]).await?.success()?, "kept");
            Ok(())
        },
    );
}

/// Without the watch on the host's room the guest's write fails, and its disk with it.
#[test]
fn a_host_without_room_freezes_the_bottle_until_there_is_room_again() {
    on_host(async |host| {
        // Big enough to start from, and too small for what the guest will write.
        let small = Mounted::tmpfs(&host.dir.join("small"), 400)?;
        let ballast = small.0.join("ballast");
        fs::write(&ballast, vec![1; 150 << 20])?;
        let mut options = host.options()?;
        options.state_dir = small.0.join("state");
        let backend = KrunBackend::new(options);
        let name: BottleId = "frozen".parse()?;
        let image = ImageSource::OciLayout {
            dir: host.given.image.clone(),
            reference: None,
        };
        let plan = backend.plan(&Spec::new(name, image))?;
        let bottle = backend.start(plan, &Silent).await?;
        let write = "head -c 200000000 /dev/zero >/home/agent/big && sync && \
                     wc -c </home/agent/big";
        let argv = ["sh", "-c", write].map(str::to_owned).to_vec();
        let process = bottle.exec(&Command::new(argv.clone())).await?;
        let work = finish(argv, process, b"");
        tokio::pin!(work);
        let frozen = tokio::select! {
            output = &mut work => anyhow::bail!("it was not frozen: {}", output?),
            condition = timeout(PATIENCE, bottle.changed(&Condition::Running)) => condition?,
        };
        let Condition::Frozen { why } = &frozen else {
            anyhow::bail!("{frozen:?}");
        };
        ensure!(
            why.contains("MiB free") && why.contains("make room"),
            "{why}"
        );
        fs::remove_file(&ballast)?;
        let now = timeout(PATIENCE, bottle.changed(&frozen)).await?;
        ensure!(now == Condition::Running, "{now:?}");
        let output: Output = timeout(PATIENCE, work).await??;
        ensure!(output.status == ExitStatus::Exited(0), "{output}");
        ensure!(output.text().trim() == "200000000", "{output}");
        let told = bottle.events(1).await?;
        let position =
            |wanted: fn(&Happening) -> bool| told.iter().position(|event| wanted(&event.what));
        let froze = position(|what| matches!(what, Happening::Frozen { .. }));
        let thawed = position(|what| matches!(what, Happening::Thawed {}));
        ensure!(froze.context("it froze")? < thawed.context("it thawed")?);
        bottle.remove().await?;
        Ok(())
    });
}

/// A file system of its own; goes away with its mount.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: &Path, mib: u32) -> Result<Self> {
        fs::create_dir(at)?;
        let size = format!("size={mib}m,mode=755");
        run(
            ["mount", "-t", "tmpfs", "-o", &size, "small"].map(OsStr::new),
            at,
        )?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = run(["umount", "--lazy"].map(OsStr::new), &self.0);
    }
}

fn run<const N: usize>(words: [&OsStr; N], last: &Path) -> Result<()> {
    let (program, args) = words.split_first().context("a program")?;
    let status = HostCommand::new(program).args(args).arg(last).status()?;
    ensure!(status.success(), "{program:?}: {status}");
    Ok(())
}
