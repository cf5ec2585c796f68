//! An image of a registry: pulled by a start, kept while a bottle runs from it, removed.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bottle_core::backend::ExitStatus;
use bottle_tests::bench::Output;
use bottle_tests::cli::{finish, run};
use bottle_tests::frame::on_host;
use bottle_tests::host::TestHost;
use bottle_tests::registry::Registry;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

/// How long an image may take to come in, and a bottle to start from it.
const PATIENCE: Duration = Duration::from_secs(200);

/// A host whose store of images is its own.
struct Home<'a> {
    host: &'a TestHost,
    image: String,
}

impl Home<'_> {
    fn bottle(&self, words: &[&str]) -> Command {
        let mut command = self.host.bottle(["--backend", "krun"].iter().chain(words));
        command.env("XDG_CACHE_HOME", self.host.dir.join("cache"));
        command
    }

    fn start(&self, pull: &str, script: &str) -> Command {
        let words = ["start", &self.image, "--pull", pull, "--name", "pulled"];
        self.bottle(&[&words[..], &["--", "sh", "-c", script]].concat())
    }

    async fn image(&self, words: &[&str]) -> Result<Output> {
        run(self.bottle(&[&["image"], words].concat()), b"").await
    }
}

fn said(output: &Output, words: &str) -> bool {
    String::from_utf8_lossy(&output.stderr).contains(words)
}

#[test]
fn a_start_pulls_what_is_missing_and_an_image_in_use_stays() {
    on_host(async |host| {
        let registry = Registry::start(&host.given.image)?;
        let config = host.dir.join("home/.config/bottle");
        fs::create_dir_all(&config)?;
        let plain = format!("[registry.\"{}\"]\nplain_http = true\n", registry.host);
        fs::write(config.join("registries.toml"), plain)?;
        let home = Home {
            host,
            image: format!("{}/team/base:1", registry.host),
        };

        let refused = run(home.start("never", "true"), b"").await?;
        ensure!(refused.status == ExitStatus::Exited(125), "{refused}");
        ensure!(said(&refused, "there is no image"), "{refused}");
        ensure!(registry.asked() == 0, "{} requests", registry.asked());

        let mut command = home.start("missing", "echo up; exec sleep 600");
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let mut stdout = BufReader::new(child.stdout.take().context("a pipe")?);
        let mut line = String::new();
        timeout(PATIENCE, stdout.read_line(&mut line)).await??;
        if line != "up\n" {
            let output = finish(vec![home.image.clone()], child, b"").await?;
            anyhow::bail!("the bottle did not start: {output}");
        }
        let busy = home.image(&["rm", &home.image]).await?;
        ensure!(busy.status == ExitStatus::Exited(1), "{busy}");
        ensure!(said(&busy, "a bottle runs from it"), "{busy}");
        let pid = i32::try_from(child.id().context("it runs")?)?;
        kill(Pid::from_raw(pid), Signal::SIGTERM)?;
        timeout(PATIENCE, child.wait()).await??;

        let asked = registry.asked();
        let again = run(home.start("missing", "echo again"), b"").await?;
        ensure!(again.text() == "again", "{again}");
        ensure!(registry.asked() == asked, "the registry was asked again");

        let removed = home.image(&["rm", &home.image]).await?;
        ensure!(removed.status == ExitStatus::Exited(0), "{removed}");
        let left = home.image(&["ls", "--json"]).await?;
        ensure!(left.text() == "[]", "{left}");
        Ok(())
    });
}
