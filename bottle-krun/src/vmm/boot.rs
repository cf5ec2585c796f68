//! Child side: from a fresh process to a running machine, in typed steps.
//!
//! The order of the steps is the design's. Whatever libkrun opens later it opens by path, so it
//! is inside the private root; the guest kernel's library is loaded before.

use std::convert::Infallible;
use std::env;
use std::ffi::CString;
use std::os::fd::AsRawFd;
use std::panic;
use std::path::Path;
use std::sync::OnceLock;

use bottle_wire::guest;

use crate::ffi::{
    self, Disk, DiskAccess, DiskFormat, KernelError, KernelLibrary, KrunContext, KrunError,
    VirtualFile, VirtualRoot, Vsock, VsockPort,
};
use crate::jail::root::{self, PrivateRoot};
use crate::jail::{Failure, OrFailure, Step, identity, limits, seccomp, selfcheck, sys};
use crate::warden;

use super::channel::Channel;
use super::launch::CONTROL_SOCKET;
use super::protocol::{Go, Order, Report};

/// PID 1 of the guest, built by the build script.
static INIT: &[u8] = include_bytes!(env!("BOTTLE_INIT"));

/// Directories of the guest's virtual root: what init needs as mount points.
const DIRECTORIES: [&str; 8] = [
    "/dev", "/proc", "/sys", "/run", "/lower", "/upper", "/newroot", "/tmp",
];

/// The longest panic message that is passed on.
const MAX_PANIC: usize = 1024;

/// Where a panic is reported; a hook has no other way to get at it.
static CHANNEL: OnceLock<Channel> = OnceLock::new();

/// Runs the vmm on descriptor 0; returns an exit code if the machine did not start.
pub(crate) fn run() -> u8 {
    let Ok(channel) = warden::take_channel() else {
        return 1;
    };
    let channel = CHANNEL.get_or_init(|| channel);
    panic::set_hook(Box::new(|info| report_panic(&info.to_string())));
    let Err(failure) = boot(channel);
    let _ = channel.send(&Report::Failed(failure));
    1
}

/// Reports one line and ends the process: a device thread that panics would leave a machine that
/// is half dead.
fn report_panic(message: &str) -> ! {
    let line = message.replace(['\n', '\r'], " ");
    let line = line.chars().take(MAX_PANIC).collect();
    if let Some(channel) = CHANNEL.get() {
        let _ = channel.send(&Report::Panicked(line));
    }
    sys::exit_now(i32::from(u8::MAX))
}

fn boot(warden: &Channel) -> Result<Infallible, Failure> {
    let order: Order = match warden.receive().or_failure(Step::Vmm, "read the order")? {
        Some(order) => order,
        None => return Err(Failure::new(Step::Vmm, "the warden has gone")),
    };
    order.check(Step::Vmm)?;

    let kernel = step(warden, Step::Kernel, || load_kernel(&order.kernel))?;
    let context = step(warden, Step::Context, || describe(&kernel, &order))?;
    step(warden, Step::Pivot, || {
        PrivateRoot::built(&order.sockets).pivot()
    })?;
    step(warden, Step::Limits, || {
        // 0 to 2 and the channel, which is 3 since nothing else was open when it was made.
        let channel = warden.as_raw_fd();
        if channel != 3 {
            return Err(Failure::new(
                Step::Limits,
                format!("the channel is descriptor {channel}"),
            ));
        }
        sys::close_from(channel + 1).or_failure(Step::Limits, "close descriptors")?;
        match env::vars_os().next() {
            None => limits::apply(),
            Some((name, _)) => Err(Failure::new(
                Step::Limits,
                format!("the environment holds {name:?}"),
            )),
        }
    })?;
    step(warden, Step::Identity, || {
        identity::assume(order.identity)?;
        identity::die_with_parent().or_failure(Step::Identity, "bind to the warden's life")
    })?;
    warden
        .send(&Report::NotYet(Step::Landlock))
        .or_failure(Step::Landlock, "tell the warden")?;
    step(warden, Step::Seccomp, seccomp::apply)?;
    step(warden, Step::SelfCheck, selfcheck::run)?;

    // The answer also proves that the warden lived when its death became ours.
    let lost = "hear from the warden";
    warden.send(&Report::Ready).or_failure(Step::Enter, lost)?;
    match warden.receive::<Go>().or_failure(Step::Enter, lost)? {
        Some(Go) => {}
        None => return Err(Failure::new(Step::Enter, "the warden has gone")),
    }
    context
        .enter()
        .or_failure(Step::Enter, "start the machine")
        .map_err(|failure| failure.hint("the lines above are libkrun's; `bottle doctor` tries KVM"))
}

/// Says which step comes, then takes it.
fn step<T>(
    warden: &Channel,
    step: Step,
    take: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    warden
        .send(&Report::Step(step))
        .or_failure(step, "tell the warden")?;
    take()
}

fn load_kernel(path: &Path) -> Result<KernelLibrary, Failure> {
    KernelLibrary::load(path).map_err(|error: KernelError| {
        Failure::of(Step::Kernel, "load the guest kernel", &error).hint(
            "`cargo xtask setup` fetches it, or install your distribution's package `libkrunfw`",
        )
    })
}

/// Describes the machine. Every path is one of the private root, which is not entered yet.
fn describe(kernel: &KernelLibrary, order: &Order) -> Result<KrunContext, Failure> {
    let step = Step::Context;
    let build = || -> Result<KrunContext, KrunError> {
        ffi::log_to_stderr()?;
        let vsock = Vsock::Plain(vec![VsockPort {
            port: guest::PORT,
            socket: text("socket", &format!("{}/{CONTROL_SOCKET}", root::SOCKETS))?,
        }]);
        let mut context = KrunContext::new(kernel, &vsock)?;
        context.set_machine(order.vcpus, order.memory)?;
        context.set_root(&virtual_root(order.nonce, order.overlay.is_none())?)?;
        context.add_disk(&Disk {
            serial: text("serial", guest::disk::IMAGE)?,
            path: text("path", root::IMAGE)?,
            format: DiskFormat::Vmdk,
            access: DiskAccess::ReadOnly,
        })?;
        if order.overlay.is_some() {
            context.add_disk(&Disk {
                serial: text("serial", guest::disk::OVERLAY)?,
                path: text("path", root::OVERLAY)?,
                format: DiskFormat::Raw,
                // A bottle's overlay ends with it in this form.
                access: DiskAccess::Throwaway,
            })?;
        }
        context.set_console(&text("console", root::CONSOLE)?)?;
        Ok(context)
    };
    build().or_failure(step, "describe the machine to libkrun")
}

fn virtual_root(nonce: [u8; 32], ephemeral: bool) -> Result<VirtualRoot, KrunError> {
    let directories = DIRECTORIES
        .into_iter()
        .map(|directory| text("directory", directory))
        .collect::<Result<_, _>>()?;
    let mut files = vec![VirtualFile {
        path: text("nonce", guest::NONCE_FILE)?,
        // libkrun reads it when the guest does: it must live as long as the process.
        content: Box::leak(Box::new(nonce)),
        mode: 0o400,
    }];
    if ephemeral {
        files.push(VirtualFile {
            path: text("mark", guest::EPHEMERAL_FILE)?,
            content: b"",
            mode: 0o400,
        });
    }
    Ok(VirtualRoot {
        directories,
        init: INIT,
        files,
    })
}

fn text(what: &'static str, text: &str) -> Result<CString, KrunError> {
    CString::new(text).map_err(|source| KrunError::Nul { what, source })
}
