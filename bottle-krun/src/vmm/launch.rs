//! Parent side: starts a machine in its jail, and ends it.

use std::fmt::{self, Display, Formatter};
use std::fs::{self, File};
use std::io;
#[cfg(test)]
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown, lchown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bottle_core::id::BottleId;
use bottle_core::units::{MiB, Vcpus};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::unistd::pipe2;
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::jail::identity::Identity;
use crate::jail::{Failure, Step, sys};
use crate::reexec::Role;

use super::channel::{self, Channel};
use super::protocol::{Image, Order, Report, VERSION, WaitStatus};

/// The socket that the shim listens on, inside [`VmConfig::sockets`].
pub(crate) const CONTROL_SOCKET: &str = "control";

/// How long the jail may take. It takes milliseconds; an emulated, busy host takes a second.
const LAUNCH_DEADLINE: Duration = Duration::from_secs(30);

/// How long killed processes may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// How much of what libkrun writes is kept: its last bytes.
const MAX_DIAGNOSTICS: usize = 8 * 1024;

/// Everything that makes a machine. All paths are absolute.
#[derive(Clone, Debug)]
pub(crate) struct VmConfig {
    /// The bottle.
    pub(crate) id: BottleId,
    /// A program that calls [`crate::reexec()`] first in `main`.
    pub(crate) helper: PathBuf,
    /// The guest kernel's library.
    pub(crate) kernel: PathBuf,
    /// The image's disk; read by the jail's user.
    pub(crate) image: Image,
    /// The overlay's disk, if there is one; as root it is given to the jail's user.
    pub(crate) overlay: Option<PathBuf>,
    /// Virtual CPUs.
    pub(crate) vcpus: Vcpus,
    /// Memory.
    pub(crate) memory: MiB,
    /// What init proves itself with.
    pub(crate) nonce: [u8; 32],
    /// A directory of this bottle alone, with the socket [`CONTROL_SOCKET`] in it, listened on.
    /// The guest's dial of the control port connects to it.
    pub(crate) sockets: PathBuf,
    /// A FIFO whose reader drains it from before the launch until after the end.
    pub(crate) console: PathBuf,
}

/// Starts a machine; returns when its jail is complete and the machine is about to run.
///
/// # Errors
///
/// [`LaunchError`] names the step. Nothing is left behind but the new owners of files.
///
/// # Cancellation
///
/// Dropping the future kills what was started.
///
/// # Security
///
/// As root, the overlay, the FIFO and the socket get the bottle's own user as owner, and the
/// sockets' directory lets its group pass.
pub(crate) async fn launch(config: &VmConfig) -> Result<Vm, LaunchError> {
    let identity = Identity::choose(&config.id)?;
    hand_over(config, identity)?;
    let order = Order {
        version: VERSION.into(),
        id: config.id.clone(),
        identity,
        kernel: config.kernel.clone(),
        image: config.image.clone(),
        overlay: config.overlay.clone(),
        sockets: config.sockets.clone(),
        console: config.console.clone(),
        vcpus: config.vcpus,
        memory: config.memory,
        nonce: config.nonce,
    };
    let mut vm = Vm::spawn(&config.helper)?;
    channel::send(vm.channel.get_ref(), &order, None).map_err(|source| LaunchError::Helper {
        helper: config.helper.clone(),
        source,
    })?;
    match timeout(LAUNCH_DEADLINE, vm.until_ready()).await {
        Ok(Ok(())) => Ok(vm),
        Ok(Err(error)) => {
            vm.kill().await;
            Err(error)
        }
        Err(_) => {
            let step = vm.step;
            vm.kill().await;
            Err(LaunchError::Stuck {
                step,
                seconds: LAUNCH_DEADLINE.as_secs(),
            })
        }
    }
}

/// Gives the jail's user the files it needs, where that is another user.
fn hand_over(config: &VmConfig, identity: Identity) -> Result<(), LaunchError> {
    let Some(owner) = identity.owner() else {
        return Ok(());
    };
    let control = config.sockets.join(CONTROL_SOCKET);
    let refused = |path: &Path| {
        let path = path.to_owned();
        move |source| LaunchError::HandOver { path, source }
    };
    let overlay = config.overlay.iter();
    for path in overlay.chain([&config.console, &control]) {
        lchown(path, Some(owner), Some(owner)).map_err(refused(path))?;
    }
    chown(&config.sockets, None, Some(owner)).map_err(refused(&config.sockets))?;
    fs::set_permissions(&config.sockets, PermissionsExt::from_mode(0o710))
        .map_err(refused(&config.sockets))
}

/// A machine's processes. Dropping it kills them without waiting.
#[derive(Debug)]
pub(crate) struct Vm {
    channel: AsyncFd<OwnedFd>,
    warden: Child,
    vmm: Option<AsyncFd<OwnedFd>>,
    step: Step,
    failure: Option<Failure>,
    status: Option<WaitStatus>,
    end: Option<VmEnd>,
    diagnostics: Arc<Mutex<Vec<u8>>>,
    drain: JoinHandle<()>,
}

/// Stops and continues a machine.
#[derive(Debug)]
pub(crate) struct Brake(OwnedFd);

impl Brake {
    /// Stops the machine, or lets it go on where it was.
    ///
    /// # Errors
    ///
    /// What the system says, such as that the machine has ended.
    pub(crate) fn set(&self, stopped: bool) -> io::Result<()> {
        let signal = if stopped {
            Signal::SIGSTOP
        } else {
            Signal::SIGCONT
        };
        Ok(sys::pidfd_signal(&self.0, signal)?)
    }
}

/// How a machine ended. What became of the *guest* is what init said last, not this.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum VmEnd {
    /// Its process exited; libkrun's codes say nothing.
    Exited(i32),
    /// A signal ended its process.
    Signaled(i32),
    /// A step failed, libkrun panicked, or the warden was lost.
    Failed {
        /// Where.
        step: Step,
        /// What.
        text: String,
    },
}

impl Display for VmEnd {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "it exited with {code}"),
            Self::Signaled(signal) => write!(f, "signal {signal} ended it"),
            Self::Failed { step, text } => write!(f, "{step}: {text}"),
        }
    }
}

impl Vm {
    fn spawn(helper: &Path) -> Result<Self, LaunchError> {
        let failed = |source: io::Error| LaunchError::Helper {
            helper: helper.to_owned(),
            source,
        };
        let (ours, theirs) = Channel::pair().map_err(failed)?;
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|e| failed(e.into()))?;
        let channel = sys::watch(ours.into_fd()).map_err(failed)?;
        let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(|e| failed(e.into()))?;
        let reader = File::from(read);
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|e| failed(e.into()))?;
        let reader = pipe::Receiver::from_file(reader).map_err(failed)?;

        let mut command = Role::Warden.command(helper);
        command
            .stdin(Stdio::from(theirs.into_fd()))
            .stdout(Stdio::null())
            .stderr(Stdio::from(write));
        let mut command = Command::from(command);
        let warden = command.kill_on_drop(true).spawn().map_err(failed)?;
        // The command holds the other ends; they are the warden's alone now.
        drop(command);
        let diagnostics = Arc::default();
        let drain = tokio::spawn(drain(reader, Arc::clone(&diagnostics)));
        Ok(Self {
            channel,
            warden,
            vmm: None,
            step: Step::Warden,
            failure: None,
            status: None,
            end: None,
            diagnostics,
            drain,
        })
    }

    /// Follows the steps until the vmm is ready.
    async fn until_ready(&mut self) -> Result<(), LaunchError> {
        loop {
            match self.report().await {
                Some(Report::Ready) => return Ok(()),
                Some(report) => self.note(report),
                None => break,
            }
            if self.status.is_some() {
                break;
            }
        }
        let diagnostics = self.last_words().await;
        Err(match self.failure.take() {
            Some(failure) => LaunchError::Step {
                failure,
                diagnostics,
            },
            None => LaunchError::Lost {
                step: self.step,
                status: self.status,
                diagnostics,
            },
        })
    }

    /// Waits until the machine has ended and nothing of it is left; may be called again.
    ///
    /// # Cancellation
    ///
    /// Nothing is lost; call it again.
    pub(crate) async fn wait(&mut self) -> VmEnd {
        if let Some(end) = &self.end {
            return end.clone();
        }
        while self.status.is_none() {
            match self.report().await {
                Some(report) => self.note(report),
                None => break,
            }
        }
        // The warden's last word, or its death. In either case nothing may survive.
        self.kill_vmm();
        if let Some(vmm) = &self.vmm {
            // A pidfd is readable when its process has ended.
            let _ = timeout(KILL_DEADLINE, vmm.readable()).await;
        }
        if timeout(KILL_DEADLINE, self.warden.wait()).await.is_err() {
            let _ = self.warden.kill().await;
        }
        let end = match (self.failure.take(), self.status) {
            (Some(failure), _) => VmEnd::Failed {
                step: failure.step,
                text: failure.text,
            },
            (None, Some(WaitStatus::Exited(code))) => VmEnd::Exited(code),
            (None, Some(WaitStatus::Signaled(signal))) => VmEnd::Signaled(signal),
            (None, None) => VmEnd::Failed {
                step: self.step,
                text: "the warden was lost".into(),
            },
        };
        self.end = Some(end.clone());
        end
    }

    /// Kills the machine at once and waits until nothing of it is left.
    pub(crate) async fn kill(&mut self) -> VmEnd {
        if self.vmm.is_none() {
            let _ = self.warden.start_kill();
        }
        self.kill_vmm();
        self.wait().await
    }

    /// Returns what stops and continues the machine.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`] if it does not run; else what the system says.
    pub(crate) fn brake(&self) -> io::Result<Brake> {
        let vmm = self.vmm.as_ref().ok_or(io::ErrorKind::NotFound)?;
        vmm.get_ref().try_clone().map(Brake)
    }

    /// Returns the process ids of warden and vmm, as far as they exist.
    #[cfg(test)]
    pub(super) fn pids(&self) -> Vec<i32> {
        let vmm = self.vmm.as_ref().map(|vmm| {
            let info = format!("/proc/self/fdinfo/{}", vmm.get_ref().as_raw_fd());
            let info = fs::read_to_string(info).unwrap();
            let line = info.lines().find_map(|line| line.strip_prefix("Pid:"));
            line.unwrap().trim().parse().unwrap()
        });
        let warden = self.warden.id().map(|id| i32::try_from(id).unwrap());
        warden.into_iter().chain(vmm).collect()
    }

    fn diagnostics(&self) -> String {
        let kept = self
            .diagnostics
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).trim().to_owned()
    }

    /// Ends the machine and returns the last of what libkrun and its helpers wrote: text that a
    /// guest may have caused.
    pub(crate) async fn last_words(&mut self) -> String {
        self.kill_vmm();
        let _ = self.warden.start_kill();
        let _ = timeout(KILL_DEADLINE, &mut self.drain).await;
        self.diagnostics()
    }

    fn kill_vmm(&self) {
        if let Some(vmm) = &self.vmm
            && let Err(errno) = sys::pidfd_kill(vmm.get_ref())
        {
            tracing::error!(%errno, "cannot kill the vmm");
        }
    }

    /// The next report; `None` when the warden is gone or talks nonsense.
    async fn report(&mut self) -> Option<Report> {
        loop {
            let mut ready = self.channel.readable().await.ok()?;
            let received = ready.try_io(|channel| channel::receive::<Report>(channel.get_ref()));
            match received {
                Err(_would_block) => {}
                Ok(Ok(Some((report, passenger)))) => {
                    if report == Report::Vmm {
                        self.vmm = passenger.and_then(|pidfd| sys::watch(pidfd).ok());
                    }
                    return Some(report);
                }
                Ok(Ok(None)) => return None,
                Ok(Err(error)) => {
                    tracing::error!(%error, "cannot read the warden's report");
                    return None;
                }
            }
        }
    }

    fn note(&mut self, report: Report) {
        match report {
            Report::Step(step) => self.step = step,
            Report::NotYet(step) => {
                self.step = step;
                tracing::debug!(layer = %step, "not in this form of the jail yet");
            }
            Report::Failed(failure) => self.failure = Some(failure),
            Report::Panicked(message) => {
                let text = format!("libkrun panicked: {message}");
                self.failure = Some(Failure::new(self.step, text));
            }
            Report::Vmm => {}
            Report::Ready => self.step = Step::Enter,
            Report::Ended(status) => self.status = Some(status),
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // The warden follows by itself: the socket pair closes; and it is killed on drop.
        if self.end.is_none() {
            self.kill_vmm();
        }
    }
}

/// Reads to the end and keeps the tail: a writer never waits for a reader.
async fn drain(mut reader: pipe::Receiver, kept: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = vec![0; 4096];
    while let Ok(length) = reader.read(&mut buffer).await
        && length > 0
    {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(buffer.get(..length).unwrap_or_default());
        let excess = kept.len().saturating_sub(MAX_DIAGNOSTICS);
        kept.drain(..excess);
    }
}

/// Why a machine did not start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum LaunchError {
    /// A file could not be given to the jail's user.
    #[error("cannot give `{}` to the bottle's user", path.display())]
    HandOver {
        /// The file.
        path: PathBuf,
        /// What stopped it.
        source: io::Error,
    },
    /// The helper program does not run.
    #[error("cannot run the helper program `{}`", helper.display())]
    Helper {
        /// The program.
        helper: PathBuf,
        /// What stopped it.
        source: io::Error,
    },
    /// Warden or vmm ended without saying why.
    #[error("the jail was lost at layer `{step}`{}{}", ended(*status), appended(diagnostics))]
    Lost {
        /// The last step that was begun.
        step: Step,
        /// How the vmm ended, if it existed.
        status: Option<WaitStatus>,
        /// What was written last.
        diagnostics: String,
    },
    /// A layer of the jail could not be set up.
    #[error("jail layer `{}`: {}{}", failure.step, failure.text, appended(diagnostics))]
    Step {
        /// Which, why, and what to do.
        failure: Failure,
        /// What was written last.
        diagnostics: String,
    },
    /// A layer of the jail took too long.
    #[error("jail layer `{step}` was not set up within {seconds} s")]
    Stuck {
        /// Which.
        step: Step,
        /// How long it had.
        seconds: u64,
    },
}

impl LaunchError {
    /// Returns what a person can do about it.
    pub(crate) fn hint(&self) -> Option<&str> {
        match self {
            Self::Step { failure, .. } => failure.hint.as_deref(),
            Self::Helper { .. } => Some(NO_HELPER),
            Self::Lost {
                step: Step::Warden, ..
            } => Some(NO_HELPER),
            Self::HandOver { .. } | Self::Lost { .. } | Self::Stuck { .. } => None,
        }
    }
}

impl From<Failure> for LaunchError {
    fn from(failure: Failure) -> Self {
        Self::Step {
            failure,
            diagnostics: String::new(),
        }
    }
}

const NO_HELPER: &str = "the helper program must call `bottle_krun::reexec()` first in `main`: \
    name the installed `bottle` as the helper";

fn ended(status: Option<WaitStatus>) -> String {
    match status {
        Some(WaitStatus::Exited(code)) => format!(" (the vmm exited with {code})"),
        Some(WaitStatus::Signaled(signal)) => format!(" (signal {signal} ended the vmm)"),
        None => String::new(),
    }
}

fn appended(diagnostics: &str) -> String {
    if diagnostics.is_empty() {
        String::new()
    } else {
        format!("; it wrote: {diagnostics}")
    }
}
