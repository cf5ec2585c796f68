//! The krun backend: plans, starts, lists and opens bottles. Runs in the client's process.
//!
//! ```text
//! plan    image found and read, kernel library found, sizes checked; nothing created
//! start   resolve · image · disks   here
//!         shim · jail · boot · hello · provision   in the shim, reported back
//! ```

use std::error::Error;
use std::fs::{File, TryLockError};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bottle_core::backend::{
    Backend, BackendError, Blame, Bottle, Capabilities, Hint, LookUp, Plan, State, Summary,
};
use bottle_core::event::{Event, Happening};
use bottle_core::id::BottleId;
use bottle_core::images::Images;
use bottle_core::log::{LogChunk, LogPosition};
use bottle_core::reporter::{Reporter, Stage};
use bottle_core::spec::{Spec, UpstreamProxy};
use bottle_egress::HostProxy;
use bottle_image::{Hold, ImageDisk};
use bottle_wire::client::{GreetError, Launch, LaunchReport, Open};
use bottle_wire::message;
use nix::unistd::Uid;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::task::spawn_blocking;

use crate::bottle::{self, KrunBottle, Link, Owned};
use crate::claim::Claim;
use crate::error::{ShimError, failed, from_shim, start_failed};
use crate::host::vcpu::kvm_glance;
use crate::host::{KernelMissing, KvmStatus, find_kernel};
use crate::images::{ImageStore, Unready};
use crate::main_log;
use crate::options::KrunOptions;
use crate::plan::{Workload, launch_of, new_id, plan_lines};
use crate::record;
use crate::state::{self, CLIENT_SOCKET, Dirs, StateError};
use crate::stored::Stored;

/// libkrun takes a `u8`; more than these have not been seen to work.
const MAX_VCPUS: u8 = 8;
/// Below this the guest kernel does not boot to init reliably.
const MIN_MEMORY_MIB: u32 = 128;
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
        let proxy = proxy_of(spec)?;
        let lines = plan_lines(spec, &image, &workload, &kernel, proxy.as_ref(), &record);
        Ok(Plan {
            spec: spec.clone(),
            id,
            backend: "krun",
            lines,
            again: false,
        })
    }

    async fn start(
        &self,
        plan: Plan,
        reporter: &dyn Reporter,
    ) -> Result<Box<dyn Bottle>, BackendError> {
        let Plan {
            spec,
            mut id,
            again,
            ..
        } = plan;
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
        let (disk, hold) = if again {
            self.disk_again(&id)?
        } else {
            self.image_disk(&spec, clock.reporter)
                .await
                .map_err(|error| start_failed(&id, Stage::Image, Blame::User, error))?
        };
        let workload = Workload::of(&spec, &disk.image.config)
            .map_err(|error| start_failed(&id, Stage::Image, Blame::User, error))?;
        clock.end(if disk.converted {
            "converted"
        } else {
            "was there"
        });

        clock.begin(Stage::Disks);
        let claim = if again {
            Claim::again(&self.options, &id)?
        } else {
            Claim::new(&self.options, &spec, &mut id)?
        };
        let stored = Stored::new(&id, &spec, &workload.argv, &disk);
        claim.furnish(&id, &spec, &stored).await?;
        clock.end("");

        clock.begin(Stage::Shim);
        let shim_failed = |error| start_failed(&id, Stage::Shim, Blame::Environment, error);
        let dirs = claim.dirs.clone();
        let (socket, child) = claim.spawn_shim(&helper).map_err(shim_failed)?;
        clock.end("");
        let launch = launch_of(&spec, &id, &dirs, &disk, workload, &kernel, &helper);
        let shim = Owned {
            child,
            kept: spec.kept,
        };
        let link = match follow_launch(&id, &dirs, socket, launch, &mut clock).await {
            Ok(link) => link,
            Err(error) => {
                shim.bury(&dirs, None).await;
                return Err(error);
            }
        };
        // The shim holds the disk by now.
        drop(hold);
        let owned = (!spec.detached).then_some(shim);
        let bottle = KrunBottle::new(id.clone(), dirs, link, owned).await;
        let bottle = bottle.map_err(|error| start_failed(&id, Stage::Run, Blame::Bug, error))?;
        Ok(Box::new(bottle))
    }

    fn plan_again(&self, id: &BottleId, look_up: &LookUp<'_>) -> Result<Plan, BackendError> {
        let op = || format!("start bottle `{id}` again");
        let failed = |blame, source: Box<dyn Error + Send + Sync>, hint: Option<&str>| {
            BackendError::Failed {
                op: op(),
                blame,
                hint: hint.map(|hint| Hint(hint.to_owned())),
                source,
            }
        };
        let stored = self.stored_and_ended(id)?;
        let again = stored
            .again(look_up)
            .map_err(|error| failed(Blame::User, error.into(), None))?;
        let Some((spec, disk)) = again else {
            let source = "it was not kept when it ended".into();
            return Err(failed(Blame::User, source, None));
        };
        let kernel = self.kernel().map_err(|error| {
            let hint = error.hint().to_owned();
            failed(Blame::Environment, error.into(), Some(&hint))
        })?;
        let workload = Workload::of(&spec, &disk.image.config).map_err(|error| {
            let hint = error.hint();
            failed(Blame::User, error.into(), Some(hint))
        })?;
        let record = Dirs::of(&self.options, id).record();
        let lines = plan_lines(&spec, &disk.image, &workload, &kernel, None, &record);
        Ok(Plan {
            spec,
            id: id.clone(),
            backend: "krun",
            lines,
            again: true,
        })
    }

    async fn events(&self, id: &BottleId, from: u64) -> Result<Vec<Event>, BackendError> {
        let path = Dirs::of(&self.options, id).record();
        let read = spawn_blocking(move || record::read(&path, from)).await;
        match read.expect("reading a record does not panic") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(not_found(id, false)),
            read => read.map_err(|error| failed("read the record", error)),
        }
    }

    async fn log(&self, id: &BottleId, from: LogPosition) -> Result<LogChunk, BackendError> {
        let dirs = Dirs::of(&self.options, id);
        if !dirs.lock().exists() {
            return Err(not_found(id, false));
        }
        let read = spawn_blocking(move || main_log::read(&dirs.state, from)).await;
        let read = read.expect("reading a log does not panic");
        read.map_err(|error| failed("read the log", error))
    }

    async fn remove(&self, id: &BottleId) -> Result<(), BackendError> {
        let dirs = Dirs::of(&self.options, id);
        if !dirs.lock().exists() {
            return Err(not_found(id, false));
        }
        let removing = spawn_blocking(move || dirs.remove_locked()).await;
        match removing.expect("removing does not panic") {
            Err(StateError::Taken { .. }) => Err(BackendError::Running { id: id.clone() }),
            removed => removed.map_err(|error| failed(format!("remove bottle `{id}`"), error)),
        }
    }

    fn images(&self) -> Option<&dyn Images> {
        Some(&self.images)
    }

    async fn list(&self) -> Result<Vec<Summary>, BackendError> {
        let options = self.options.clone();
        let listing = spawn_blocking(move || {
            let found = state::list(&options).map_err(|error| failed("list bottles", error))?;
            Ok(found
                .into_iter()
                .filter_map(|(id, lives)| summary(&Dirs::of(&options, &id), lives))
                .collect())
        });
        listing.await.expect("listing does not panic")
    }

    async fn open(&self, id: &BottleId) -> Result<Box<dyn Bottle>, BackendError> {
        let dirs = Dirs::of(&self.options, id);
        let socket = connect(&dirs).await.map_err(|_| not_found(id, true))?;
        let peer = socket
            .peer_cred()
            .map_err(|error| failed("examine a shim", error))?;
        let op = || format!("open bottle `{id}`");
        if peer.uid() != Uid::effective().as_raw() {
            let source = format!("its socket is served by user {}", peer.uid());
            return Err(failed(op(), source));
        }
        let link = Link::greet(socket).await.map_err(|error| match error {
            GreetError::Protocol { .. } => BackendError::Failed {
                op: op(),
                blame: Blame::User,
                hint: Some(Hint("use the release that started it".to_owned())),
                source: Box::new(error),
            },
            // It has just ended.
            GreetError::Io { .. } | GreetError::None | _ => not_found(id, true),
        })?;
        let bottle = KrunBottle::new(id.clone(), dirs, link, None).await;
        bottle
            .map(|bottle| Box::new(bottle) as _)
            .map_err(|_| not_found(id, true))
    }
}

/// Reads the host's proxy: one that can't be used is told before anything is made.
fn proxy_of(spec: &Spec) -> Result<Option<HostProxy>, BackendError> {
    let Some(UpstreamProxy { url, excepted }) = &spec.proxy else {
        return Ok(None);
    };
    let proxy = HostProxy::parse(url, excepted);
    proxy.map(Some).map_err(|error| BackendError::Failed {
        op: "use the proxy that `HTTPS_PROXY` names".to_owned(),
        blame: Blame::User,
        hint: None,
        source: Box::new(error),
    })
}

fn not_found(id: &BottleId, running: bool) -> BackendError {
    let id = id.clone();
    BackendError::NotFound { id, running }
}

/// Describes a bottle that is there; `None` if it is not described yet, or in a way that this
/// release does not understand.
fn summary(dirs: &Dirs, lives: bool) -> Option<Summary> {
    let stored = match Stored::read(&dirs.spec()) {
        Ok(stored) => stored,
        Err(error) => {
            if !error.is_missing() {
                tracing::warn!(%error, "a bottle is left out of the list");
            }
            return None;
        }
    };
    let state = if lives {
        State::Running
    } else {
        ended(record::last(&dirs.record()).ok().flatten())
    };
    Some(stored.summary(state))
}

/// How a bottle ended that does not run, by the last event of its record.
fn ended(last: Option<Event>) -> State {
    match last {
        Some(Event {
            time_ms,
            what: Happening::End { how, code },
            ..
        }) => State::Ended {
            how,
            code,
            at_ms: time_ms,
        },
        Some(_) | None => State::Ended {
            how: "killed".to_owned(),
            code: None,
            at_ms: 0,
        },
    }
}

/// Connects to a bottle's socket, however long its path is.
async fn connect(dirs: &Dirs) -> io::Result<UnixStream> {
    let dir = File::open(&dirs.runtime)?;
    UnixStream::connect(state::short_path(&dir, CLIENT_SOCKET)).await
}

impl KrunBackend {
    /// Reads the description of a bottle that does not run.
    fn stored_and_ended(&self, id: &BottleId) -> Result<Stored, BackendError> {
        let dirs = Dirs::of(&self.options, id);
        let lock = File::open(dirs.lock()).map_err(|_| not_found(id, false))?;
        match lock.try_lock_shared() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(BackendError::Running { id: id.clone() });
            }
            Err(TryLockError::Error(error)) => return Err(failed("lock the bottle", error)),
        }
        Stored::read(&dirs.spec()).map_err(|error| {
            if error.is_missing() {
                not_found(id, false)
            } else {
                failed(format!("read the description of bottle `{id}`"), error)
            }
        })
    }

    /// Finds the disk that a kept bottle had, and keeps it from being removed.
    fn disk_again(&self, id: &BottleId) -> Result<(ImageDisk, Hold), BackendError> {
        let failed = |error: Box<dyn Error + Send + Sync>| {
            start_failed(id, Stage::Image, Blame::User, error)
        };
        let hold = self.images.hold().map_err(|error| failed(error.into()))?;
        let disk = self.stored_and_ended(id)?.disk();
        let disk = disk.map_err(|error| failed(error.into()))?;
        Ok((disk.ok_or_else(|| not_found(id, false))?, hold))
    }

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

/// Sends the launch and follows the shim's reports to their end.
async fn follow_launch(
    id: &BottleId,
    dirs: &Dirs,
    socket: UnixStream,
    launch: Launch,
    clock: &mut StageClock<'_>,
) -> Result<Link, BackendError> {
    let shim = |error| start_failed(id, Stage::Shim, Blame::Bug, error);
    let gone = |source| {
        let words = bottle::log_end(dirs).map(io::Error::other);
        shim(ShimError::Gone {
            source: words.or(source),
        })
    };
    let link = Link::greet(socket)
        .await
        .map_err(|error| gone(Some(io::Error::other(error))))?;
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
            Some(LaunchReport::Ready) => return Ok(link),
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
