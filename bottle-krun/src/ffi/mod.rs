//! The only door to libkrun: a context that is safe for every argument.
//!
//! libkrun's own `unsafe` markers prove nothing (several functions that take raw pointers are safe
//! in its crate), so no `krun_*` is called outside this directory. What the wrapper closes:
//!
//! * A context is a number in a global table. [`KrunContext`] owns it, is not `Clone`, frees it.
//! * Without a decision about vsock, libkrun guesses, and its guess is TSI: the guest reaches what
//!   this process reaches. [`KrunContext::new`] takes a [`Vsock`] and there is no other way.
//! * A root directory of the host, and shared memory for it, are not offered; the root is virtual.
//! * The functions that read 4,096 pointers, copy the host's environment, or put text on the
//!   kernel's command line are not declared.
//! * `krun_create_ctx` and others abort on an exhausted or poisoned table: contexts are made in
//!   the vmm process only, which exists for nothing else.

#![expect(unsafe_code, reason = "calls of a C interface")]

mod kernel;
#[expect(
    unreachable_pub,
    clippy::absolute_paths,
    reason = "generated as it stands"
)]
mod sys;
mod sys_check;

use std::convert::Infallible;
use std::ffi::{CStr, CString, NulError};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use bottle_core::units::{MiB, Vcpus};
use nix::errno::Errno;
use thiserror::Error;

pub(crate) use self::kernel::{KERNEL_NAME, KernelError, KernelLibrary};

/// The tag by which the guest kernel finds its root file system.
const ROOT: &CStr = c"/dev/root";

/// What libkrun's command line names as `init=`.
const INIT_PATH: &CStr = c"/init.krun";

/// The longest path of a Unix socket: `sun_path` without its NUL.
const MAX_SOCKET_PATH: usize = 107;

/// Whether the guest has a vsock device, and what it reaches by it.
///
/// # Security
///
/// There is no variant with TSI. Without this type a context would get it by libkrun's heuristics.
#[derive(Debug)]
pub(crate) enum Vsock {
    /// No device at all.
    #[expect(dead_code, reason = "the decision has two answers, and one user")]
    None,
    /// A device without TSI whose named ports are forwarded; dialling any other port is refused.
    Plain(Vec<VsockPort>),
}

/// A port that the guest dials, and the Unix socket that libkrun then connects to.
#[derive(Debug)]
pub(crate) struct VsockPort {
    /// The port of CID 2.
    pub(crate) port: u32,
    /// The socket, opened at every connect: as this process sees it then.
    pub(crate) socket: CString,
}

/// A disk of the guest.
#[derive(Debug)]
pub(crate) struct Disk {
    /// The serial: 1 to 20 bytes, longer ones are cut by the device.
    pub(crate) serial: CString,
    /// The file, opened at [`KrunContext::enter`], as are those that it names.
    pub(crate) path: CString,
    /// How to read the file.
    pub(crate) format: DiskFormat,
    /// Who may write.
    pub(crate) access: DiskAccess,
}

/// What a disk's file is.
///
/// # Security
///
/// It is always said: a guessed format would be the guest's to choose, who may write the first
/// bytes of a raw disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum DiskFormat {
    /// The disk itself.
    Raw,
    /// A descriptor of files that are the disk, one behind the other; they are looked for beside
    /// it. Read-only.
    Vmdk,
}

/// What a guest may do to a disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum DiskAccess {
    /// Read only.
    ReadOnly,
    /// Read and write; the guest's flushes reach the host's disk.
    #[expect(dead_code, reason = "for overlays that outlive a boot")]
    Durable,
    /// Read and write; flushes are not offered, since nothing survives the host's crash anyway.
    Throwaway,
}

/// The root that the guest kernel mounts: these entries and nothing of the host.
#[derive(Debug)]
pub(crate) struct VirtualRoot {
    /// Directories, parents first, absolute.
    pub(crate) directories: Vec<CString>,
    /// PID 1.
    ///
    /// libkrun keeps the pointer for the life of the VM.
    pub(crate) init: &'static [u8],
    /// Further files.
    pub(crate) files: Vec<VirtualFile>,
}

/// A file of a [`VirtualRoot`] that vanishes once it was read.
#[derive(Debug)]
pub(crate) struct VirtualFile {
    /// Its absolute path.
    pub(crate) path: CString,
    /// Its content, kept for the life of the VM.
    pub(crate) content: &'static [u8],
    /// Its permission bits.
    pub(crate) mode: u32,
}

/// A libkrun context: a machine described but not started. Dropping it frees it.
#[derive(Debug)]
pub(crate) struct KrunContext {
    id: u32,
}

impl KrunContext {
    /// Makes a context for a kernel that is already loaded, with its vsock decision made.
    ///
    /// # Errors
    ///
    /// [`KrunError`].
    pub(crate) fn new(_kernel: &KernelLibrary, vsock: &Vsock) -> Result<Self, KrunError> {
        // SAFETY: krun_create_ctx takes nothing and writes only its own table; it stays allocated
        // until `drop` frees it.
        let id = check("krun_create_ctx", unsafe { sys::krun_create_ctx() })?;
        let context = Self { id };
        // Whether the built-in init exists depends on a crate feature that others may turn on.
        // SAFETY: krun_disable_implicit_init takes a number and checks it.
        check("krun_disable_implicit_init", unsafe {
            sys::krun_disable_implicit_init(id)
        })?;
        // SAFETY: krun_disable_implicit_vsock takes a number and checks it.
        check("krun_disable_implicit_vsock", unsafe {
            sys::krun_disable_implicit_vsock(id)
        })?;
        match vsock {
            Vsock::None => {}
            Vsock::Plain(ports) => {
                // SAFETY: krun_add_vsock takes two numbers and checks both; 0 is "no TSI".
                check("krun_add_vsock", unsafe { sys::krun_add_vsock(id, 0) })?;
                for port in ports {
                    context.add_vsock_port(port)?;
                }
            }
        }
        Ok(context)
    }

    fn add_vsock_port(&self, port: &VsockPort) -> Result<(), KrunError> {
        // A longer one is found out at the guest's connect, by a panic.
        if port.socket.as_bytes().len() > MAX_SOCKET_PATH {
            return Err(KrunError::SocketPath {
                path: port.socket.clone(),
            });
        }
        // SAFETY: krun_add_vsock_port2 reads one NUL-terminated string and copies it before
        // returning; `port.socket` is a CString that outlives the call.
        let result =
            unsafe { sys::krun_add_vsock_port2(self.id, port.port, port.socket.as_ptr(), false) };
        check("krun_add_vsock_port2", result)?;
        Ok(())
    }

    /// Sets the size of the machine.
    ///
    /// # Errors
    ///
    /// [`KrunError`].
    pub(crate) fn set_machine(&mut self, vcpus: Vcpus, memory: MiB) -> Result<(), KrunError> {
        // SAFETY: krun_set_vm_config takes three numbers and checks them.
        let result = unsafe { sys::krun_set_vm_config(self.id, vcpus.0.get(), memory.0) };
        check("krun_set_vm_config", result)?;
        Ok(())
    }

    /// Gives the guest its root: virtual, read-only, without shared memory.
    ///
    /// # Errors
    ///
    /// [`KrunError`], also for a path whose parent is not among the directories before it.
    pub(crate) fn set_root(&mut self, root: &VirtualRoot) -> Result<(), KrunError> {
        let VirtualRoot {
            directories,
            init,
            files,
        } = root;
        // SAFETY: krun_add_virtiofs4 reads the tag, a static string, and copies it; it documents a
        // NULL path as "no host directory"; shm_size 0 means no window.
        let result = unsafe {
            sys::krun_add_virtiofs4(
                self.id,
                ROOT.as_ptr(),
                ptr::null(),
                0,
                true,
                sys::KRUN_FS_SEMANTICS_DEFAULT,
            )
        };
        check("krun_add_virtiofs4", result)?;
        for directory in directories {
            // SAFETY: krun_fs_add_overlay_dir reads two NUL-terminated strings and copies what it
            // keeps; a static string and a CString that outlives the call.
            let result = unsafe {
                sys::krun_fs_add_overlay_dir(self.id, ROOT.as_ptr(), directory.as_ptr(), 0o755)
            };
            check("krun_fs_add_overlay_dir", result)?;
        }
        self.add_file(INIT_PATH, init, 0o755, false)?;
        for file in files {
            self.add_file(&file.path, file.content, file.mode, true)?;
        }
        Ok(())
    }

    fn add_file(
        &self,
        path: &CStr,
        content: &'static [u8],
        mode: u32,
        one_shot: bool,
    ) -> Result<(), KrunError> {
        // SAFETY: krun_fs_add_overlay_file copies the two strings and keeps data..data+len for the
        // life of the VM: `content` is 'static and never written.
        let result = unsafe {
            sys::krun_fs_add_overlay_file(
                self.id,
                ROOT.as_ptr(),
                path.as_ptr(),
                content.as_ptr(),
                content.len(),
                mode,
                one_shot,
            )
        };
        check("krun_fs_add_overlay_file", result)?;
        Ok(())
    }

    /// Adds a disk; the first becomes `/dev/vda`, but guests go by serial.
    ///
    /// # Errors
    ///
    /// [`KrunError`]. A file that cannot be opened is only found by [`Self::enter`].
    pub(crate) fn add_disk(&mut self, disk: &Disk) -> Result<(), KrunError> {
        let (read_only, sync) = match disk.access {
            DiskAccess::ReadOnly => (true, sys::KRUN_SYNC_FULL),
            DiskAccess::Durable => (false, sys::KRUN_SYNC_FULL),
            DiskAccess::Throwaway => (false, sys::KRUN_SYNC_NONE),
        };
        let format = match disk.format {
            DiskFormat::Raw => sys::KRUN_DISK_FORMAT_RAW,
            DiskFormat::Vmdk => sys::KRUN_DISK_FORMAT_VMDK,
        };
        // SAFETY: krun_add_disk3 reads two NUL-terminated strings and copies them before
        // returning; both are CStrings that outlive the call.
        let result = unsafe {
            sys::krun_add_disk3(
                self.id,
                disk.serial.as_ptr(),
                disk.path.as_ptr(),
                format,
                read_only,
                false,
                sync,
            )
        };
        check("krun_add_disk3", result)?;
        Ok(())
    }

    /// Sends the guest's console to a FIFO with a reader: the path is opened for writing, and
    /// truncated if it is a file, at [`Self::enter`].
    ///
    /// # Errors
    ///
    /// [`KrunError`], also for a second console.
    pub(crate) fn set_console(&mut self, path: &CStr) -> Result<(), KrunError> {
        // SAFETY: krun_set_console_output reads one NUL-terminated string and copies it before
        // returning; `path` outlives the call.
        let result = unsafe { sys::krun_set_console_output(self.id, path.as_ptr()) };
        check("krun_set_console_output", result)?;
        Ok(())
    }

    /// Turns this process into the machine. It ends with the machine, by `_exit`: no destructor
    /// runs.
    ///
    /// # Errors
    ///
    /// [`KrunError`] if the machine could not be built; the context is gone then.
    pub(crate) fn enter(self) -> Result<Infallible, KrunError> {
        // SAFETY: krun_start_enter takes a number and checks it. The context's pointers are
        // 'static (see `add_file`), so they outlive the machine.
        let result = unsafe { sys::krun_start_enter(self.id) };
        Err(KrunError::Call {
            call: "krun_start_enter",
            source: Errno::from_raw(result.saturating_neg()),
        })
    }
}

impl Drop for KrunContext {
    fn drop(&mut self) {
        // After a failed `enter` the number may be gone already; that is the one error possible.
        // SAFETY: krun_free_ctx takes a number, checks it, and frees what the table holds.
        let _ = unsafe { sys::krun_free_ctx(self.id) };
    }
}

/// Sends what libkrun has to say to standard error, whatever the environment says. Its level `info`
/// adds little, but for the reason why a machine ended.
///
/// # Errors
///
/// [`KrunError::LogTwice`] at the second call in a process: libkrun would panic.
pub(crate) fn log_to_stderr() -> Result<(), KrunError> {
    static DONE: AtomicBool = AtomicBool::new(false);
    if DONE.swap(true, Ordering::SeqCst) {
        return Err(KrunError::LogTwice);
    }
    let target = i32::try_from(sys::KRUN_LOG_TARGET_STDERR).expect("2 fits");
    // SAFETY: krun_init_log takes ownership of descriptors above 2 only; 2 is used by name.
    let result = unsafe {
        sys::krun_init_log(
            target,
            sys::KRUN_LOG_LEVEL_INFO,
            sys::KRUN_LOG_STYLE_NEVER,
            sys::KRUN_LOG_OPTION_NO_ENV,
        )
    };
    check("krun_init_log", result)?;
    Ok(())
}

/// Turns libkrun's answer into the number it is or the error it stands for.
fn check(call: &'static str, result: i32) -> Result<u32, KrunError> {
    u32::try_from(result).map_err(|_| KrunError::Call {
        call,
        source: Errno::from_raw(result.saturating_neg()),
    })
}

/// Why libkrun did not take a description.
#[derive(Debug, Error)]
pub(crate) enum KrunError {
    /// A call was refused.
    #[error("`{call}` failed")]
    Call {
        /// The function.
        call: &'static str,
        /// What it answered.
        source: Errno,
    },
    /// The log was directed a second time.
    #[error("the log of libkrun was directed already")]
    LogTwice,
    /// A text for libkrun holds a NUL byte.
    #[error("{what} holds a NUL byte")]
    Nul {
        /// Which text.
        what: &'static str,
        /// Where.
        source: NulError,
    },
    /// A Unix socket's path does not fit into an address.
    #[error("the socket path {path:?} is longer than {MAX_SOCKET_PATH} bytes")]
    SocketPath {
        /// The path.
        path: CString,
    },
}

#[cfg(test)]
mod tests;
