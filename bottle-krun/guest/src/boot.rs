//! From the virtual root to the image: mounts, disks, the new root.
//!
//! ```text
//! virtual root (virtiofs without a host directory): /dev /proc /sys /run, the nonce, this program
//!   /run            tmpfs, for the mount points
//!   /run/image      EROFS, read-only
//!   /run/overlay    ext4, or of an ephemeral bottle tmpfs: upper, work
//!   /run/root       overlay of both  ── moved over / ──►  / of everything that follows
//! ```
//!
//! The virtual root can't be pivoted away (it is the kernel's first root); it stays below the new
//! one, where no path leads.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::Path;

use bottle_wire::guest::{EPHEMERAL_FILE, NONCE_FILE, disk};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{chdir, chroot, dup2_stderr, dup2_stdin, dup2_stdout};

use crate::disks;
use crate::error::{InitError, failed, unless_busy};

/// Open files that one process of a bottle may have at first, and at most.
const FILES: (u64, u64) = (65_536, 1_048_576);

/// How much of a bottle's memory its files may take up, if it has no disk for them.
const EPHEMERAL_SIZE: &str = "size=50%";

/// What booting leaves behind.
#[derive(Debug)]
pub(crate) struct Booted {
    /// Proves to the host which boot this is.
    pub(crate) nonce: [u8; 32],
    /// The overlay disk's mount, which no path leads to any more.
    pub(crate) overlay: File,
}

/// Boots: afterwards `/` is the image's root with its overlay and the usual kernel file systems.
pub(crate) fn boot() -> Result<Booted, InitError> {
    let none = MsFlags::empty();
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount_fs("devtmpfs", "/dev", none, "")?;
    use_console()?;
    mount_fs("sysfs", "/sys", quiet, "")?;
    mount_fs("tmpfs", "/run", MsFlags::MS_NODEV, "mode=0755")?;
    let nonce = read_nonce(Path::new(NONCE_FILE))?;
    let overlay = mount_disks()?;
    enter_root()?;
    mount_kernel_fs()?;
    setrlimit(Resource::RLIMIT_NOFILE, FILES.0, FILES.1)
        .map_err(failed("raise the limit of", "open files"))?;
    Ok(Booted { nonce, overlay })
}

fn mount_fs(fs: &str, target: &str, flags: MsFlags, options: &str) -> Result<(), InitError> {
    unless_busy(mount(Some(fs), target, Some(fs), flags, Some(options)))
        .map_err(failed("mount", target))
}

/// Standard streams of init, whatever the kernel has left there.
fn use_console() -> Result<(), InitError> {
    let console = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open("/dev/console")
        .map_err(failed("open", "/dev/console"))?;
    let named = || failed("use", "/dev/console");
    dup2_stdin(console.as_fd()).map_err(named())?;
    dup2_stdout(console.as_fd()).map_err(named())?;
    dup2_stderr(console.as_fd()).map_err(named())
}

fn read_nonce(path: &Path) -> Result<[u8; 32], InitError> {
    let bytes = fs::read(path).map_err(failed("read", NONCE_FILE))?;
    let length = bytes.len();
    bytes.try_into().map_err(|_| InitError::Nonce { length })
}

/// Mounts both disks and their overlay at `/run/root`.
fn mount_disks() -> Result<File, InitError> {
    let sys_block = Path::new("/sys/block");
    let image = disks::find(sys_block, disk::IMAGE)?;
    for dir in ["/run/image", "/run/overlay", "/run/root"] {
        fs::create_dir(dir).map_err(failed("make", dir))?;
    }
    let read_only = MsFlags::MS_RDONLY | MsFlags::MS_NOATIME;
    mount(
        Some(&image),
        "/run/image",
        Some("erofs"),
        read_only,
        None::<&str>,
    )
    .map_err(failed("mount the image", image.display().to_string()))?;
    mount_overlay(sys_block)?;
    make_upper(Path::new("/run/image"), Path::new("/run/overlay"))?;
    let options = "lowerdir=/run/image,upperdir=/run/overlay/upper,workdir=/run/overlay/work,\
                   redirect_dir=on";
    mount(
        Some("bottle"),
        "/run/root",
        Some("overlay"),
        MsFlags::empty(),
        Some(options),
    )
    .map_err(failed("mount", "/run/root"))?;
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open("/run/overlay")
        .map_err(failed("open", "/run/overlay"))
}

/// Mounts what is written to: the overlay's disk, unless the bottle is said to have none.
fn mount_overlay(sys_block: &Path) -> Result<(), InitError> {
    let target = "/run/overlay";
    if Path::new(EPHEMERAL_FILE).exists() {
        return mount_fs("tmpfs", target, MsFlags::MS_NOATIME, EPHEMERAL_SIZE);
    }
    let disk = disks::find(sys_block, disk::OVERLAY)?;
    mount(
        Some(&disk),
        target,
        Some("ext4"),
        MsFlags::MS_NOATIME,
        None::<&str>,
    )
    .map_err(failed("mount the overlay", disk.display().to_string()))
}

/// Makes the overlay's directories; the root of the whole has the image's owner and mode.
fn make_upper(image: &Path, overlay: &Path) -> Result<(), InitError> {
    let upper = overlay.join("upper");
    for dir in [&upper, &overlay.join("work")] {
        match fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(failed("make", dir.display().to_string()))?,
        }
    }
    let root = fs::metadata(image).map_err(failed("look at", "the image's root"))?;
    chown(&upper, Some(root.uid()), Some(root.gid()))
        .and_then(|()| fs::set_permissions(&upper, Permissions::from_mode(root.mode() & 0o7777)))
        .map_err(failed(
            "give the image's mode to",
            upper.display().to_string(),
        ))
}

fn enter_root() -> Result<(), InitError> {
    chdir("/run/root").map_err(failed("enter", "/run/root"))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(failed("move the root to", "/"))?;
    chroot(".").map_err(failed("change the root to", "/run/root"))?;
    chdir("/").map_err(failed("enter", "/"))
}

/// Mounts what every process expects. Paths are the image's from here on: its symbolic links
/// lead nowhere but into itself. `/sys` comes later, from within the workload's network namespace.
fn mount_kernel_fs() -> Result<(), InitError> {
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let device = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let shared = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    for (fs, target, flags, options) in [
        ("proc", "/proc", strict, ""),
        ("devtmpfs", "/dev", device, ""),
        ("devpts", "/dev/pts", device, "gid=5,mode=620,ptmxmode=666"),
        ("tmpfs", "/dev/shm", shared, "mode=1777"),
        ("tmpfs", "/run", shared, "mode=0755"),
    ] {
        make_dir(target, 0o755)?;
        mount_fs(fs, target, flags, options)?;
    }
    make_dir("/sys", 0o755)?;
    make_dir("/tmp", 0o1777)?;
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        match symlink(target, link) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(failed("make", link))?,
        }
    }
    Ok(())
}

fn make_dir(path: &str, mode: u32) -> Result<(), InitError> {
    match fs::create_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && mode == 0o755 => {
            return Ok(());
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed("make", path)(error)),
    }
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed("set the mode of", path))
}
