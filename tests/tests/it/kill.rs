//! Whichever process of a bottle is killed, nothing of the bottle is left.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bottle_core::event::{Event, Happening};
use bottle_core::id::BottleId;
use bottle_tests::cli::finish;
use bottle_tests::frame::on_host;
use bottle_tests::host::TestHost;
use bottle_tests::processes::{Process, all_namespaces};
use bottle_tests::wait::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;

/// How soon everything must be gone.
const DEADLINE: Duration = Duration::from_secs(20);

/// Whom a test kills.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Role {
    Client,
    Shim,
    Warden,
    Vmm,
}

#[test]
fn nothing_is_left_when_the_client_is_killed() {
    on_host(async |host| check(host, Role::Client).await);
}

#[test]
fn nothing_is_left_when_the_shim_is_killed() {
    on_host(async |host| check(host, Role::Shim).await);
}

#[test]
fn nothing_is_left_when_the_warden_is_killed() {
    on_host(async |host| check(host, Role::Warden).await);
}

#[test]
fn nothing_is_left_when_the_vmm_is_killed() {
    on_host(async |host| check(host, Role::Vmm).await);
}

/// Starts a bottle by the command line, kills one of its processes and looks for the rest.
async fn check(host: &TestHost, role: Role) -> Result<()> {
    let name = format!("kill-{role:?}").to_lowercase();
    let mut args = host.start_args(&name);
    args.extend(["--", "sh", "-c", "echo up; exec sleep 600"].map(str::to_owned));
    let mut child = host.bottle(&args).spawn()?;
    let mut stdout = BufReader::new(child.stdout.take().context("a pipe")?);
    let mut line = String::new();
    timeout(Duration::from_secs(120), stdout.read_line(&mut line)).await??;
    if line != "up\n" {
        let output = finish(args, child, b"").await?;
        bail!("the bottle did not start: {output}");
    }

    let client = i32::try_from(child.id().context("it runs")?)?;
    let tree = Process::tree(client)?;
    let namespaces: BTreeSet<_> = tree.iter().flat_map(Process::own_namespaces).collect();
    ensure!(
        !namespaces.is_empty(),
        "a bottle lives in namespaces of its own: {tree:#?}"
    );
    ensure!(!host.leftovers()?.is_empty(), "a running bottle has files");
    let victim = find(&tree, client, role).with_context(|| format!("{role:?} of {tree:#?}"))?;
    kill(Pid::from_raw(victim.pid), Signal::SIGKILL)?;

    // Reaped, so that it does not count as a process that is left.
    let client_ended = timeout(DEADLINE, child.wait()).await;
    client_ended.with_context(|| format!("the client outlives its {role:?}"))??;
    let gone = || tree.iter().all(|one| !one.lives());
    if let Err(error) = wait_until(DEADLINE, "all processes are gone", gone).await {
        let left: Vec<_> = tree.iter().filter(|one| one.lives()).collect();
        return Err(error.context(format!("left: {left:#?}")));
    }
    let no_namespace = || all_namespaces().is_ok_and(|all| all.is_disjoint(&namespaces));
    wait_until(
        DEADLINE,
        "no process is in a namespace of the bottle",
        no_namespace,
    )
    .await?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let dir = host.dir.display().to_string();
    ensure!(!mounts.contains(&dir), "a mount is left: {mounts}");
    let sockets = fs::read_to_string("/proc/net/unix")?;
    ensure!(!sockets.contains(&dir), "a socket is left: {sockets}");

    let no_file = || host.leftovers().is_ok_and(|left| left.is_empty());
    if let Err(error) = wait_until(DEADLINE, "no file is left", no_file).await {
        return Err(error.context(format!("left: {:#?}", host.leftovers()?)));
    }
    record_is_valid(host, &host.only_bottle()?, role)
}

/// Finds the process of a role by its place in the tree: the vmm is the one that is also process 1
/// of a namespace below ours; above it are warden and shim.
fn find(tree: &[Process], client: i32, role: Role) -> Option<&Process> {
    let by_pid = |pid: i32| tree.iter().find(|one| one.pid == pid);
    if role == Role::Client {
        return by_pid(client);
    }
    let vmm = tree
        .iter()
        .find(|one| one.numbers.len() > 1 && one.numbers.last() == Some(&1))?;
    let warden = by_pid(vmm.parent)?;
    let shim = by_pid(warden.parent)?;
    match role {
        Role::Client => by_pid(client),
        Role::Shim => Some(shim),
        Role::Warden => Some(warden),
        Role::Vmm => Some(vmm),
    }
}

/// Every line is an event, numbered without gaps, and the last one says how the bottle ended; a
/// killed shim cannot write that.
fn record_is_valid(host: &TestHost, id: &BottleId, killed: Role) -> Result<()> {
    let lines = host.record_of(id)?;
    let events: Result<Vec<Event>, _> = lines
        .iter()
        .map(|line| serde_json::from_str(line))
        .collect();
    let events = events.context("a line of the record is no event")?;
    ensure!(
        events
            .iter()
            .zip(1_u64..)
            .all(|(event, seq)| event.seq == seq),
        "{lines:#?}"
    );
    let ended = matches!(
        events.last().map(|event| &event.what),
        Some(Happening::End { .. })
    );
    ensure!(
        ended || killed == Role::Shim,
        "the record does not end: {lines:#?}"
    );
    Ok(())
}
