//! Real machines in their jail. They need a helper program, a guest kernel and a `/dev/kvm` that
//! works, named by the environment (`BOTTLE_TEST_BOTTLE`, `BOTTLE_TEST_KERNEL`); without them each
//! test says so and proves nothing, unless `BOTTLE_TEST_REQUIRE_VM` forbids it.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use bottle_core::units::{MiB, Vcpus};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, geteuid, mkfifo};
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::launch::{CONTROL_SOCKET, LaunchError, Vm, VmConfig, VmEnd, launch};
use super::protocol::Image;
use crate::host::kvm_usable;
use crate::jail::Step;

/// An emulated machine boots in about four seconds.
const BOOT_DEADLINE: Duration = Duration::from_secs(60);
const GONE_DEADLINE: Duration = Duration::from_secs(10);

struct Bench {
    dir: TempDir,
    config: VmConfig,
    listener: UnixListener,
    console: File,
}

impl Bench {
    /// What the guest's console showed so far.
    fn console_tail(&self) -> String {
        let mut text = vec![0; 64 * 1024];
        let length = (&self.console).read(&mut text).unwrap_or(0);
        text.truncate(length);
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// Returns what the environment names, or says why the test proves nothing.
fn given(name: &str) -> Option<PathBuf> {
    let path = env::var_os(name).map(PathBuf::from);
    if path.is_none() {
        let required = env::var_os("BOTTLE_TEST_REQUIRE_VM").is_some();
        assert!(!required, "{name} is not set");
        eprintln!("skipped: {name} is not set");
    }
    path
}

/// Makes the disks that init mounts before it dials: an empty image with its descriptor, an empty
/// overlay.
fn make_disks(descriptor: &Path, image: &Path, overlay: &Path, tree: &Path) {
    fs::create_dir(tree).unwrap();
    let made = Command::new("mkfs.erofs")
        .arg("--quiet")
        .args([image, tree])
        .output()
        .expect("`mkfs.erofs` is there (package erofs-utils)");
    assert!(made.status.success(), "{made:?}");
    let name = image.file_name().unwrap().display();
    let sectors = fs::metadata(image).unwrap().len() / 512;
    let text = format!("version=1\nRDONLY {sectors} FLAT \"{name}\" 0\n");
    fs::write(descriptor, text).unwrap();
    bottle_image::make_overlay(overlay, 64 << 20).unwrap();
}

/// Returns what a machine needs, or says why the test proves nothing.
fn bench(id: &str) -> Option<Bench> {
    let helper = given("BOTTLE_TEST_BOTTLE")?;
    let kernel = given("BOTTLE_TEST_KERNEL")?;
    let dir = TempDir::new().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("run")).unwrap();
    fs::set_permissions(path("run"), fs::Permissions::from_mode(0o700)).unwrap();
    let listener = UnixListener::bind(path("run").join(CONTROL_SOCKET)).unwrap();
    mkfifo(&path("console"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let console = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path("console"))
        .unwrap();
    make_disks(
        &path("descriptor"),
        &path("image"),
        &path("overlay"),
        &path("tree"),
    );
    let config = VmConfig {
        id: id.parse().unwrap(),
        helper,
        kernel,
        image: Image::new(path("descriptor"), vec![path("image")]).unwrap(),
        overlay: Some(path("overlay")),
        vcpus: Vcpus::ONE,
        memory: MiB(256),
        nonce: [7; 32],
        sockets: path("run"),
        console: path("console"),
    };
    Some(Bench {
        dir,
        config,
        listener,
        console,
    })
}

#[track_caller]
fn launched(result: Result<Vm, LaunchError>) -> Vm {
    match result {
        Ok(vm) => vm,
        Err(error) => panic!("{error} ({error:?})"),
    }
}

/// Waits until init dialled and returns its connection: it waits there for the host to speak.
async fn dialled(bench: &Bench) -> UnixStream {
    match timeout(BOOT_DEADLINE, bench.listener.accept()).await {
        Ok(accepted) => accepted.unwrap().0,
        Err(_) => panic!("init did not dial; its console: {}", bench.console_tail()),
    }
}

fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie is a process whose parent has not asked yet.
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}

/// Waits until none of the processes is left.
#[track_caller]
fn assert_gone(pids: &[i32]) {
    let end = Instant::now() + GONE_DEADLINE;
    while pids.iter().any(|pid| alive(*pid)) {
        assert!(Instant::now() < end, "still alive: {pids:?}");
        thread::yield_now();
    }
}

fn status_field(pid: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .unwrap_or_else(|| panic!("no {name} in {status}"))
        .trim()
        .to_owned()
}

/// The jail as seen from outside, through `/proc`.
#[track_caller]
fn assert_jailed(pid: i32) {
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status_field(pid, set), "0000000000000000", "{set}");
    }
    assert_eq!(status_field(pid, "NoNewPrivs"), "1");
    assert_eq!(status_field(pid, "Seccomp"), "2");
    assert!(status_field(pid, "NSpid").ends_with("\t1"), "PID 1 inside");
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let task = task.unwrap().path();
        let status = fs::read_to_string(task.join("status")).unwrap();
        assert!(status.contains("Seccomp:\t2"), "{}", task.display());
    }
    // A user who is not root owns the namespace that the process is in, and sees the rest too.
    for namespace in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{namespace}")).unwrap();
        assert_ne!(of("self"), of(&pid.to_string()), "{namespace}");
    }
    let names = |path: String| -> BTreeSet<OsString> {
        let entries = fs::read_dir(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        entries.map(|entry| entry.unwrap().file_name()).collect()
    };
    let root = format!("/proc/{pid}/root");
    assert_eq!(
        names(root.clone()),
        ["console", "d", "dev", "s"].map(OsString::from).into()
    );
    assert_eq!(names(format!("{root}/dev")), [OsString::from("kvm")].into());
    assert_eq!(
        names(format!("{root}/d")),
        ["image", "overlay"].map(OsString::from).into()
    );
    assert_eq!(
        names(format!("{root}/d/image")),
        ["disk.vmdk", "image"].map(OsString::from).into()
    );
    assert_eq!(
        names(format!("{root}/s")),
        [OsString::from(CONTROL_SOCKET)].into()
    );
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 7, "{mounts}");
    let net = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
    assert_eq!(net.lines().count(), 3, "nothing but lo: {net}");
    let routes = fs::read_to_string(format!("/proc/{pid}/net/fib_trie")).unwrap();
    assert_eq!(routes, "", "lo is down");
    assert_descriptors(pid);
    assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
}

/// Every descriptor is one of ours, of KVM, or a kernel object without a name.
#[track_caller]
fn assert_descriptors(pid: i32) {
    let mut pipes_and_sockets = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let entry = entry.unwrap();
        let target = fs::read_link(entry.path()).unwrap();
        let target = target.to_string_lossy().into_owned();
        // A bind mount shows its name in the jail or where it comes from.
        let known = target.starts_with("anon_inode:")
            || [
                "/kvm",
                "/null",
                "/disk.vmdk",
                "/descriptor",
                "/image",
                "/overlay",
                "/console",
            ]
            .iter()
            .any(|name| target.ends_with(name));
        if target.starts_with("pipe:") || target.starts_with("socket:") {
            pipes_and_sockets += 1;
        } else {
            assert!(known, "descriptor {:?} is {target}", entry.file_name());
        }
    }
    // Standard error's pipe, the channel, the guest's one connection; an unlinked `/dev/null`.
    assert!(pipes_and_sockets <= 4, "{pipes_and_sockets}");
}

#[tokio::test]
async fn a_machine_boots_in_its_jail_and_leaves_nothing_when_killed() {
    let Some(bench) = bench("boots") else { return };
    let mut vm = launched(launch(&bench.config).await);
    let pids = vm.pids();
    assert_eq!(pids.len(), 2, "warden and vmm");
    let _connection = dialled(&bench).await;
    assert_jailed(pids[1]);
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(
            status_field(pids[0], set),
            "0000000000000000",
            "warden {set}"
        );
    }
    let uid = status_field(pids[1], "Uid");
    let first: u32 = uid.split('\t').next().unwrap().parse().unwrap();
    if geteuid().is_root() {
        assert!(first >= 0x7E00_0000, "an id of its own, not {uid}");
    } else {
        assert_eq!(first, geteuid().as_raw());
    }
    let end = vm.kill().await;
    assert_eq!(end, VmEnd::Signaled(9));
    assert_eq!(vm.wait().await, end, "it can be asked again");
    assert_gone(&pids);
    assert!(bench.dir.path().join("run").join(CONTROL_SOCKET).exists());
}

#[tokio::test]
async fn a_killed_vmm_ends_the_warden_and_is_reported() {
    let Some(bench) = bench("vmm-dies") else {
        return;
    };
    let mut vm = launched(launch(&bench.config).await);
    let pids = vm.pids();
    kill(Pid::from_raw(pids[1]), Signal::SIGKILL).unwrap();
    assert_eq!(vm.wait().await, VmEnd::Signaled(9));
    assert_gone(&pids);
}

#[tokio::test]
async fn a_killed_warden_takes_the_vmm_along() {
    let Some(bench) = bench("warden-dies") else {
        return;
    };
    let mut vm = launched(launch(&bench.config).await);
    let pids = vm.pids();
    kill(Pid::from_raw(pids[0]), Signal::SIGKILL).unwrap();
    // Without anybody's help: `wait` would kill it too.
    assert_gone(&pids);
    let end = vm.wait().await;
    assert!(matches!(end, VmEnd::Failed { .. }), "{end:?}");
}

#[tokio::test]
async fn a_dropped_machine_is_gone() {
    let Some(bench) = bench("dropped") else {
        return;
    };
    let vm = launched(launch(&bench.config).await);
    let pids = vm.pids();
    drop(vm);
    assert_gone(&pids);
}

#[tokio::test]
async fn a_killed_shim_takes_warden_and_vmm_along() {
    if bench("shim-dies").is_none() {
        return;
    }
    let mut shim = Command::new(env::current_exe().unwrap())
        .args(["--exact", "vmm::tests::a_shim_that_waits", "--nocapture"])
        .env("BOTTLE_TEST_AS_SHIM", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(shim.stdout.take().unwrap()).lines();
    let pids: Vec<i32> = lines
        .map_while(Result::ok)
        .find_map(|line| line.split_once("PIDS ").map(|(_, pids)| pids.to_owned()))
        .expect("the shim says its pids")
        .split(' ')
        .map(|pid| pid.parse().unwrap())
        .collect();
    assert!(pids.iter().all(|pid| alive(*pid)), "{pids:?}");
    shim.kill().unwrap();
    shim.wait().unwrap();
    assert_gone(&pids);
}

/// Not a promise but the other process of the test above.
#[tokio::test]
async fn a_shim_that_waits() {
    if env::var_os("BOTTLE_TEST_AS_SHIM").is_none() {
        return;
    }
    let Some(bench) = bench("shim") else { return };
    let mut vm = launched(launch(&bench.config).await);
    let _connection = dialled(&bench).await;
    let pids: Vec<String> = vm.pids().iter().map(ToString::to_string).collect();
    println!("PIDS {}", pids.join(" "));
    vm.wait().await;
}

#[tokio::test]
async fn what_cannot_be_set_up_names_its_layer_and_says_what_to_do() {
    let Some(bench) = bench("fails") else { return };

    let mut config = bench.config.clone();
    config.kernel = "/nonexistent/libkrunfw.so.5".into();
    let error = launch(&config).await.unwrap_err();
    assert_step(&error, Step::Kernel, "/nonexistent/libkrunfw.so.5");
    assert!(error.hint().unwrap().contains("cargo xtask setup"));

    let mut config = bench.config.clone();
    let (there, absent) = (
        bench.dir.path().join("image"),
        bench.dir.path().join("absent"),
    );
    config.image = Image::new(absent.clone(), vec![there.clone()]).unwrap();
    let error = launch(&config).await.unwrap_err();
    assert_step(&error, Step::Root, "absent");

    let mut config = bench.config.clone();
    config.image = Image::new(there.clone(), vec![absent]).unwrap();
    let error = launch(&config).await.unwrap_err();
    assert_step(&error, Step::Root, "absent");

    // Two parts of one name.
    let mut config = bench.config.clone();
    config.image = Image::new(there.clone(), vec![there.clone(), there]).unwrap();
    let error = launch(&config).await.unwrap_err();
    assert_step(&error, Step::Root, "/d/image/image");

    let mut config = bench.config.clone();
    config.console = bench.dir.path().join("overlay");
    let error = launch(&config).await.unwrap_err();
    assert_step(&error, Step::Root, "is not a FIFO");

    let mut config = bench.config.clone();
    config.helper = "/bin/true".into();
    let error = launch(&config).await.unwrap_err();
    assert!(error.hint().is_some(), "{error}");
}

#[track_caller]
fn assert_step(error: &LaunchError, step: Step, part: &str) {
    let LaunchError::Step { failure, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(failure.step, step, "{error}");
    assert!(error.to_string().contains(part), "{error}");
}

#[test]
fn a_probe_with_the_helper_answers_within_its_deadline() {
    let Some(helper) = given("BOTTLE_TEST_BOTTLE") else {
        return;
    };
    let begin = Instant::now();
    let status = kvm_usable(&helper).unwrap();
    println!("KVM: {status:?}");
    assert!(begin.elapsed() < Duration::from_secs(4), "{status:?}");
}
