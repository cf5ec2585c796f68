//! The krun backend: plans, starts, lists and opens bottles. Runs in the client's process.
//!
//! ```text
//! plan    image found and read, kernel library found, sizes checked; nothing created
//! start   resolve · image · disks   here
//!         shim · jail · boot · hello · provision   in the shim, reported back
//! ```

use std::env;
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bottle_core::backend::{
    Backend, BackendError, Blame, Bottle, Capabilities, Hint, Plan, Summary,
};
use bottle_core::id::BottleId;
use bottle_core::images::Images;
use bottle_core::reporter::{Reporter, Stage};
use bottle_core::spec::{Overlay, Spec};
use bottle_core::units::MiB;
use bottle_image::{Hold, ImageDisk};
use bottle_wire::client::{Launch, LaunchReport, Open};
use bottle_wire::message;
use nix::unistd::Uid;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::task::spawn_blocking;

use crate::bottle::{self, KrunBottle, Link};
use crate::error::{ShimError, failed, from_shim, start_failed};
use crate::host::vcpu::kvm_glance;
use crate::host::{KernelMissing, KvmStatus, find_kernel};
use crate::images::{ImageStore, Unready};
use crate::options::KrunOptions;
use crate::plan::{Workload, launch_of, new_id, plan_lines};
use crate::reexec::Role;
use crate::shim::room::Room;
use crate::state::{self, CLIENT_SOCKET, Dirs, StateError};

/// libkrun takes a `u8`; more than these have not been seen to work.
const MAX_VCPUS: u8 = 8;
/// Below this the guest kernel does not boot to init reliably.
const MIN_MEMORY_MIB: u32 = 128;
/// How often another id is tried if one is taken: five base32 characters collide once in 33 million.
const ID_ATTEMPTS: usize = 4;

/// Variables that the shim needs of its client: where tools and roots are, and how to log.
const SHIM_ENV: [&str; 6] = [
    "HOME",
    "PATH",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "BOTTLE_LOG",
    "XDG_DATA_HOME",
];

/// Runs bottles in libkrun microVMs.
#[derive(Debug)]
pub struct KrunBackend {
    options: KrunOptions,
    images: ImageStore,
}

impl KrunBackend {
    /// Makes a backend; touches nothing yet.
    pub fn new(options: KrunOptions) -> Self {
        let images = ImageStore::of(&options);
        Self { options, images }
    }

    /// Uses an installed `bottle` as shim, warden and vmm instead of the current program.
    #[must_use]
    pub fn with_helper(mut self, helper: PathBuf) -> Self {
        self.options.helper = Some(helper);
        self
    }

    /// Makes the image's disk ready, and keeps it from being removed.
    async fn image_disk(
        &self,
        spec: &Spec,
        reporter: &dyn Reporter,
    ) -> Result<(ImageDisk, Hold), Unready> {
        let (images, spec, reporter) = (self.images.clone(), spec.clone(), reporter.pull());
        spawn_blocking(move || images.ready(&spec, &*reporter))
            .await
            .expect("the converter does not panic")
    }
}

#[async_trait]
impl Backend for KrunBackend {
    fn name(&self) -> &'static str {
        "krun"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            own_kernel: true,
            max_vcpus: MAX_VCPUS,
            egress_gateway: true,
        }
    }

    fn plan(&self, spec: &Spec) -> Result<Plan, BackendError> {
        let unsupported = |what| {
            Err(BackendError::Unsupported {
                backend: "krun",
                what,
            })
        };
        if spec.resources.vcpus.0.get() > MAX_VCPUS {
            return unsupported(format!("give a bottle more than {MAX_VCPUS} virtual CPUs"));
        }
        if spec.resources.memory.0 < MIN_MEMORY_MIB {
            return unsupported(format!("boot a bottle with less than {MIN_MEMORY_MIB} MiB"));
        }
        let op = || format!("plan bottle `{}`", spec.name);
        let image = self
            .images
            .find(spec)
            .map_err(|error| BackendError::Failed {
                op: op(),
                blame: Blame::User,
                hint: None,
                source: Box::new(error),
            })?;
        let kernel = self.kernel().map_err(|error| BackendError::Failed {
            op: op(),
            blame: Blame::Environment,
            hint: Some(Hint(error.hint().to_owned())),
            source: Box::new(error),
        })?;
        let workload = Workload::of(spec, &image.config).map_err(|error| BackendError::Failed {
            op: op(),
            blame: Blame::User,
            hint: Some(Hint(error.hint().to_owned())),
            source: Box::new(error),
        })?;
        let id = new_id(&spec.name).map_err(|error| failed(op(), error))?;
        let record = Dirs::of(&self.options, &id).record();
        let lines = plan_lines(spec, &image, &workload, &kernel, &record);
        Ok(Plan {
            spec: spec.clone(),
            id,
            backend: "krun",
            lines,
        })
    }

    async fn start(
        &self,
        plan: Plan,
        reporter: &dyn Reporter,
    ) -> Result<Box<dyn Bottle>, BackendError> {
        let Plan { spec, mut id, .. } = plan;
        let mut clock = StageClock {
            reporter,
            running: None,
        };

        clock.begin(Stage::Resolve);
        let options = self.options.clone();
        let sweep = spawn_blocking(move || state::sweep(&options));
        sweep.await.expect("sweeping does not panic");
        let (kernel, helper) = self.resolve().map_err(|error| BackendError::Start {
            id: id.clone(),
            stage: Stage::Resolve,
            blame: Blame::Environment,
            hint: Some(Hint(error.hint().to_owned())),
            console: Vec::new(),
            source: Box::new(error),
        })?;
        clock.end(&kernel.display().to_string());

        clock.begin(Stage::Image);
        let (disk, hold) = self
            .image_disk(&spec, clock.reporter)
            .await
            .map_err(|error| start_failed(&id, Stage::Image, Blame::User, error))?;
        let workload = Workload::of(&spec, &disk.image.config)
            .map_err(|error| start_failed(&id, Stage::Image, Blame::User, error))?;
        clock.end(if disk.converted {
            "converted"
        } else {
            "was there"
        });

        clock.begin(Stage::Disks);
        let (dirs, claim) = self.claim(&spec, &mut id)?;
        if let Overlay::Disk(size) = spec.resources.overlay {
            make_overlay(&id, &dirs, size).await?;
        }
        clock.end("");

        clock.begin(Stage::Shim);
        let shim_failed =
            |error: io::Error| start_failed(&id, Stage::Shim, Blame::Environment, error);
        let (link, child) = claim.spawn_shim(&helper).map_err(shim_failed)?;
        clock.end("");
        let launch = launch_of(&spec, &id, &dirs, &disk, workload, &kernel, &helper);
        if let Err(error) = follow_launch(&id, &dirs, &link, launch, &mut clock).await {
            drop(link);
            bottle::bury(child, &dirs, None).await;
            return Err(error);
        }
        // The shim holds the disk by now.
        drop(hold);
        let bottle = KrunBottle::new(id.clone(), dirs, link, Some(child)).await;
        let bottle = bottle.map_err(|error| start_failed(&id, Stage::Run, Blame::Bug, error))?;
        Ok(Box::new(bottle))
    }

    fn images(&self) -> Option<&dyn Images> {
        Some(&self.images)
    }

    async fn list(&self) -> Result<Vec<Summary>, BackendError> {
        let found = state::list(&self.options).map_err(|error| failed("list bottles", error))?;
        Ok(found
            .into_iter()
            .map(|(id, running)| Summary { id, running })
            .collect())
    }

    async fn open(&self, id: &BottleId) -> Result<Box<dyn Bottle>, BackendError> {
        let dirs = Dirs::of(&self.options, id);
        let not_found = || BackendError::NotFound { id: id.clone() };
        let socket = connect(&dirs).await.map_err(|_| not_found())?;
        let peer = socket
            .peer_cred()
            .map_err(|error| failed("examine a shim", error))?;
        if peer.uid() != Uid::effective().as_raw() {
            return Err(failed(
                format!("open bottle `{id}`"),
                format!("its socket is served by user {}", peer.uid()),
            ));
        }
        let bottle = KrunBottle::new(id.clone(), dirs, Link::new(socket), None).await;
        bottle
            .map(|bottle| Box::new(bottle) as _)
            .map_err(|_| not_found())
    }
}

/// Connects to a bottle's socket, however long its path is.
async fn connect(dirs: &Dirs) -> io::Result<UnixStream> {
    let dir = File::open(&dirs.runtime)?;
    UnixStream::connect(state::short_path(&dir, CLIENT_SOCKET)).await
}

impl KrunBackend {
    fn kernel(&self) -> Result<PathBuf, KernelMissing> {
        find_kernel(
            self.options.kernel.as_deref(),
            self.options.data_home.as_deref(),
        )
    }

    /// Finds what a start needs of this host: kernel and helper program; KVM is looked at.
    fn resolve(&self) -> Result<(PathBuf, PathBuf), ResolveError> {
        let kernel = self
            .kernel()
            .map_err(|source| ResolveError::Kernel { source })?;
        let helper = self
            .options
            .helper()
            .map_err(|source| ResolveError::Helper { source })?;
        let status = kvm_glance();
        if status == KvmStatus::Works {
            Ok((kernel, helper))
        } else {
            Err(ResolveError::Kvm { status })
        }
    }

    /// Creates and locks the bottle's directories, under another id if this one is taken.
    fn claim(&self, spec: &Spec, id: &mut BottleId) -> Result<(Dirs, Claim), BackendError> {
        for _ in 0..ID_ATTEMPTS {
            let dirs = Dirs::of(&self.options, id);
            match dirs.claim() {
                Ok(lock) => {
                    let claim = Claim {
                        dirs: dirs.clone(),
                        lock: Some(lock),
                    };
                    return Ok((dirs, claim));
                }
                Err(StateError::Taken { .. }) => {
                    *id = new_id(&spec.name)
                        .map_err(|error| start_failed(id, Stage::Disks, Blame::Bug, error))?;
                }
                Err(error) => {
                    return Err(start_failed(id, Stage::Disks, Blame::Environment, error));
                }
            }
        }
        let path = Dirs::of(&self.options, id).lock();
        Err(start_failed(
            id,
            Stage::Disks,
            Blame::Environment,
            StateError::Taken { path },
        ))
    }
}

/// What a start needs of this host and cannot find.
#[derive(Debug, Error)]
#[non_exhaustive]
enum ResolveError {
    /// The program to re-execute.
    #[error("cannot find the program that becomes shim, warden and vmm")]
    Helper {
        /// Why.
        source: io::Error,
    },
    /// libkrunfw.
    #[error(transparent)]
    Kernel {
        /// Where it was looked for.
        source: KernelMissing,
    },
    /// Hardware virtualization.
    #[error("cannot run a microVM here: {}", status.found())]
    Kvm {
        /// What `/dev/kvm` is.
        status: KvmStatus,
    },
}

impl ResolveError {
    fn hint(&self) -> &str {
        match self {
            Self::Helper { .. } => "name the installed `bottle` as the backend's helper",
            Self::Kernel { source } => source.hint(),
            Self::Kvm { status } => status.hint().unwrap_or("`bottle doctor` says more"),
        }
    }
}

/// Directories of a bottle whose shim does not run yet; removed again unless handed to one.
#[derive(Debug)]
struct Claim {
    dirs: Dirs,
    lock: Option<File>,
}

impl Claim {
    /// Starts the shim and hands it the lock.
    ///
    /// The shim finds its client on descriptor 0, the lock on 1 and its log on 2, so that no
    /// descriptor has to be inherited by number.
    fn spawn_shim(mut self, helper: &Path) -> io::Result<(Link, Child)> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(self.dirs.log())?;
        let lock = self.lock.take().expect("the lock is handed over once");
        let mut command = Command::from(Role::Shim.command(helper));
        command
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(lock))
            .stderr(Stdio::from(log));
        for name in SHIM_ENV {
            if let Some(value) = env::var_os(name) {
                command.env(name, value);
            }
        }
        match command.spawn() {
            Ok(child) => Ok((Link::new(UnixStream::from_std(ours)?), child)),
            Err(error) => {
                self.remove();
                Err(error)
            }
        }
    }

    fn remove(&self) {
        if let Err(error) = self.dirs.remove() {
            tracing::warn!(%error, "cannot undo a start");
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.lock.is_some() {
            self.remove();
        }
    }
}

/// Makes the writable disk, if the host has room for what will be written to it.
async fn make_overlay(id: &BottleId, dirs: &Dirs, size: MiB) -> Result<(), BackendError> {
    let failed = |error: Box<dyn Error + Send + Sync>| {
        start_failed(id, Stage::Disks, Blame::Environment, error)
    };
    let shortage = Room::of(&dirs.state).and_then(|room| room.shortage());
    if let Some(why) = shortage.map_err(|error| failed(error.into()))? {
        return Err(failed(
            io::Error::new(io::ErrorKind::StorageFull, why).into(),
        ));
    }
    let path = dirs.overlay();
    spawn_blocking(move || bottle_image::make_overlay(&path, size.bytes()))
        .await
        .expect("making a file system does not panic")
        .map_err(|error| failed(error.into()))
}

/// Sends the launch and follows the shim's reports to their end.
async fn follow_launch(
    id: &BottleId,
    dirs: &Dirs,
    link: &Link,
    launch: Launch,
    clock: &mut StageClock<'_>,
) -> Result<(), BackendError> {
    let shim = |error| start_failed(id, Stage::Shim, Blame::Bug, error);
    let gone = |source| {
        let words = bottle::log_end(dirs).map(io::Error::other);
        shim(ShimError::Gone {
            source: words.or(source),
        })
    };
    let open = link.opener.open(&Open::Launch(Box::new(launch))).await;
    let mut reports = open.map_err(|error| gone(Some(io::Error::other(error))))?;
    loop {
        match message::read(&mut reports)
            .await
            .map_err(|error| gone(Some(error)))?
        {
            Some(LaunchReport::Began { stage }) => {
                if let Some(stage) = Stage::ALL.into_iter().find(|s| s.name() == stage) {
                    clock.begin(stage);
                }
            }
            Some(LaunchReport::Ended { note, .. }) => clock.end(&note),
            Some(LaunchReport::Ready) => return Ok(()),
            Some(LaunchReport::Failed {
                stage,
                blame,
                hint,
                console,
                chain,
            }) => {
                return Err(from_shim(id, &stage, blame, hint, console, chain));
            }
            Some(report) => return Err(shim(ShimError::out_of_turn(&report))),
            None => return Err(gone(None)),
        }
    }
}

/// Times stages for a reporter.
struct StageClock<'a> {
    reporter: &'a dyn Reporter,
    running: Option<(Stage, Instant)>,
}

impl StageClock<'_> {
    fn begin(&mut self, stage: Stage) {
        self.running = Some((stage, Instant::now()));
        self.reporter.began(stage);
    }

    fn end(&mut self, note: &str) {
        if let Some((stage, since)) = self.running.take() {
            let took: Duration = since.elapsed();
            self.reporter.ended(stage, took, note);
        }
    }
}
