//! Bad input gives one clear error (what, where, what to do) and leaves nothing behind.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use bottle_core::backend::ExitStatus;
use bottle_tests::bench::Output;
use bottle_tests::cli::run;
use bottle_tests::frame::on_host;
use bottle_tests::host::TestHost;
use bottle_tests::layout::{self, Fault};
use nix::unistd::Uid;
use tokio::process::Command;

/// What `bottle` says when it failed itself.
const FAILED: ExitStatus = ExitStatus::Exited(125);

#[test]
fn a_directory_that_is_no_image_is_an_error() {
    on_host(async |host| {
        let dir = host.dir.join("no-image");
        fs::create_dir(&dir)?;
        let output = start(host, &dir).await?;
        one_error(
            host,
            &output,
            FAILED,
            &[&dir.display().to_string(), "oci-layout"],
        )
    });
}

#[test]
fn a_directory_that_does_not_exist_is_an_error() {
    on_host(async |host| {
        let dir = host.dir.join("nowhere");
        let output = start(host, &dir).await?;
        one_error(host, &output, FAILED, &[&dir.display().to_string()])
    });
}

/// Two-sided: without the fault the image boots and has no such program.
#[test]
fn a_small_image_without_the_fault_boots() {
    on_host(async |host| {
        let output = start_layout(host, Fault::None).await?;
        one_error(host, &output, ExitStatus::Exited(127), &["not-there"])
    });
}

#[test]
fn a_layer_of_another_digest_is_an_error() {
    on_host(async |host| {
        let output = start_layout(host, Fault::WrongDigest).await?;
        one_error(host, &output, FAILED, &["sha256:"])
    });
}

#[test]
fn a_truncated_layer_is_an_error() {
    on_host(async |host| {
        let output = start_layout(host, Fault::Truncated).await?;
        one_error(host, &output, FAILED, &["sha256:"])
    });
}

#[test]
fn a_layer_that_leaves_its_root_is_an_error() {
    on_host(async |host| {
        let output = start_layout(host, Fault::Escape).await?;
        one_error(host, &output, FAILED, &["../escaped"])?;
        let mut above: Option<&Path> = Some(&host.dir);
        while let Some(dir) = above {
            ensure!(
                !dir.join("escaped").exists(),
                "an entry left its root: {}",
                dir.display()
            );
            above = dir.parent();
        }
        Ok(())
    });
}

#[test]
fn an_unknown_flag_is_an_error() {
    on_host(async |host| {
        let mut args = host.start_args("bad");
        args.insert(3, "--allwo=example.org".to_owned());
        let output = run(host.bottle(&args), b"").await?;
        ensure!(
            matches!(output.status, ExitStatus::Exited(2 | 125)),
            "{output}"
        );
        one_error(host, &output, output.status, &["--allwo", "--allow"])
    });
}

#[test]
fn a_rule_that_is_none_is_an_error() {
    on_host(async |host| {
        let mut args = host.start_args("bad");
        args.extend(["--allow", "10.0.0.1", "--", "true"].map(str::to_owned));
        let output = run(host.bottle(&args), b"").await?;
        ensure!(
            matches!(output.status, ExitStatus::Exited(2 | 125)),
            "{output}"
        );
        one_error(host, &output, output.status, &["10.0.0.1"])
    });
}

#[test]
fn a_missing_kernel_library_is_an_error() {
    on_host(async |host| {
        let mut args = host.start_args("bad");
        args.extend(["--", "true"].map(str::to_owned));
        let mut command = host.bottle(&args);
        command.env("XDG_DATA_HOME", host.dir.join("home"));
        let output = run(command, b"").await?;
        one_error(host, &output, FAILED, &["libkrunfw"])
    });
}

#[test]
fn a_host_without_kvm_is_an_error() {
    // A few harmless devices only.
    kvm_is_missed(
        "mkdir -p $0 && mount -t tmpfs dev $0 &&
        for node in null zero full random urandom tty; do
            touch $0/$node && mount --bind /dev/$node $0/$node || exit 1
        done && mount --rbind $0 /dev",
    );
}

#[test]
fn a_device_that_is_no_kvm_is_an_error() {
    kvm_is_missed("mount --bind /dev/null /dev/kvm");
}

/// Starts a bottle in a mount namespace of its own, after this script has changed `/dev`; `$0` is
/// a directory that it may use.
#[track_caller]
fn kvm_is_missed(script: &str) {
    on_host(async |host| {
        let mut command = Command::new("unshare");
        if !Uid::effective().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        let script = format!("{script} && exec \"$@\"");
        command
            .args(["--mount", "sh", "-c", &script])
            .arg(host.dir.join("dev"));
        command
            .arg(&host.given.bottle)
            .args(host.start_args("bad"))
            .args(["--", "true"]);
        host.prepare(&mut command);
        let output = run(command, b"").await?;
        one_error(host, &output, FAILED, &["/dev/kvm"])
    });
}

#[test]
fn a_name_that_is_in_use_or_impossible_is_an_error() {
    on_host(async |host| {
        let mut args = host.start_args("../up");
        args.extend(["--", "true"].map(str::to_owned));
        let output = run(host.bottle(&args), b"").await?;
        ensure!(
            matches!(output.status, ExitStatus::Exited(2 | 125)),
            "{output}"
        );
        one_error(host, &output, output.status, &["../up"])
    });
}

async fn start(host: &TestHost, image: &Path) -> Result<Output> {
    let image = format!("oci:{}", image.display());
    let args = [
        "--backend",
        "krun",
        "start",
        &image,
        "--name",
        "bad",
        "--",
        "not-there",
    ];
    run(host.bottle(args), b"").await
}

async fn start_layout(host: &TestHost, fault: Fault) -> Result<Output> {
    let dir = host.dir.join("layout");
    layout::write(&dir, fault)?;
    start(host, &dir).await
}

/// Asserts on an error: its status, one `error:` on standard error with these words, no panic,
/// nothing on standard output, nothing left.
fn one_error(host: &TestHost, output: &Output, status: ExitStatus, words: &[&str]) -> Result<()> {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status, status, "{output}");
    ensure!(
        output.stdout.is_empty(),
        "standard output is the workload's: {output}"
    );
    let errors = told
        .lines()
        .filter(|line| line.starts_with("error:"))
        .count();
    ensure!(errors == 1, "{errors} errors instead of one: {output}");
    ensure!(!told.contains("panicked"), "{output}");
    for word in words {
        ensure!(told.contains(word), "it does not say {word}: {output}");
    }
    let left = host.leftovers()?;
    ensure!(left.is_empty(), "{left:?} is left after {output}");
    Ok(())
}
