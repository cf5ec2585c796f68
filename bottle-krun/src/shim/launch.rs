//! From a launch message to a running bottle, stage by stage, or to nothing at all.
//!
//! ```text
//! jail ─► boot ─► hello ─► provision ─► run          each reported, timed, with a deadline
//!   └─ CA, DNS filter and gateway are made while the kernel boots
//! ```

use std::error::Error;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bottle_core::backend::{Blame, Ended};
use bottle_core::event::{EventSink, Happening};
use bottle_core::id::BottleId;
use bottle_core::reporter::Stage;
use bottle_core::secret::Secret;
use bottle_core::spec::Resolve;
use bottle_core::text::Escaped;
use bottle_core::units::{MiB, Vcpus};
use bottle_egress::{Egress, EgressConfig, HostProxy, HostSide};
use bottle_wire::client::{self, Launch, LaunchImage, LaunchReport, LaunchResolve, Open};
use bottle_wire::guest::{Provision, ToInit};
use bottle_wire::message;
use bottle_wire::mux::{Incoming, MuxError, MuxStream};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::console::Console;
use super::guest_link::{ControlSocket, GuestLink};
use super::ports::Ports;
use super::room::Room;
use super::running::Running;
use crate::bottle::the_end;
use crate::error::chain_of;
use crate::random;
use crate::record::Record;
use crate::rules;
use crate::state::{self, CLIENT_SOCKET, Dirs};
use crate::vmm::launch::{self as vm, Vm, VmConfig};
use crate::vmm::protocol::Image;

/// Namespaces, mounts and a process.
const JAIL_DEADLINE: Duration = Duration::from_secs(30);
/// A kernel; emulated and on a loaded machine it takes its time.
const BOOT_DEADLINE: Duration = Duration::from_secs(90);
/// Two messages.
const HELLO_DEADLINE: Duration = Duration::from_secs(30);
/// A handful of files and sockets.
const PROVISION_DEADLINE: Duration = Duration::from_secs(60);

/// Starts the bottle, serves it to its end, and removes it.
pub(super) async fn run(
    launch: Launch,
    reports: MuxStream,
    incoming: Incoming<Open>,
    mut owner_gone: JoinHandle<Result<(), MuxError>>,
) {
    let dirs = Dirs {
        state: launch.state_dir.clone(),
        runtime: launch.runtime_dir.clone(),
    };
    let kept = launch.kept;
    let mut stages = Stages {
        reports,
        record: None,
        running: (Stage::Jail, Instant::now()),
    };
    let started = tokio::select! {
        started = start(launch, &dirs, &mut stages) => started,
        // Dropping the start undoes it.
        _ = &mut owner_gone => {
            let source = "the client that started the bottle went away".into();
            let (stage, _) = stages.running;
            Err(StageError { stage, blame: Blame::User, hint: None, console: Vec::new(), source })
        }
    };
    let remove = || {
        if let Err(error) = dirs.leave(kept) {
            tracing::error!(%error, "cannot remove the bottle");
        }
    };
    match started {
        Ok((running, listener)) => {
            let record = Arc::clone(&running.record);
            let farewell = |ended: &Ended| {
                record.record(the_end(ended));
                remove();
            };
            if stages.report(&LaunchReport::Ready).await.is_err() {
                tracing::debug!("the client went away as the bottle was ready");
            }
            running
                .serve(incoming, owner_gone, listener, farewell)
                .await;
        }
        Err(error) => {
            let StageError {
                stage,
                blame,
                hint,
                console,
                source,
            } = error;
            let chain = chain_of(&*source);
            if let Some(record) = &stages.record {
                let reason = chain.join(": ");
                record.record(Happening::StartFailed {
                    stage: stage.name().to_owned(),
                    reason,
                });
                record.record(Happening::End {
                    how: "did not start".to_owned(),
                    code: None,
                });
            }
            remove();
            let blame = match blame {
                Blame::Environment | Blame::User => client::Blame::Environment,
                Blame::Guest => client::Blame::Guest,
                Blame::Bug => client::Blame::Bug,
            };
            let stage = stage.name().to_owned();
            let failed = LaunchReport::Failed {
                stage,
                blame,
                hint,
                console,
                chain,
            };
            if stages.report(&failed).await.is_ok() {
                // The client closes the connection when it has read it.
                let _ = timeout(Duration::from_secs(2), owner_gone).await;
            }
        }
    }
}

/// Reports stages to the client and the record.
struct Stages {
    reports: MuxStream,
    record: Option<Arc<Record>>,
    running: (Stage, Instant),
}

impl Stages {
    async fn report(&mut self, report: &LaunchReport) -> io::Result<()> {
        message::write(&mut self.reports, report).await
    }

    /// Ends nothing and begins `stage`. A client that does not listen is noticed elsewhere.
    async fn begin(&mut self, stage: Stage) {
        self.running = (stage, Instant::now());
        let _ = self
            .report(&LaunchReport::Began {
                stage: stage.name().to_owned(),
            })
            .await;
    }

    async fn end(&mut self, note: String) {
        let (stage, since) = self.running;
        let took_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let stage = stage.name().to_owned();
        if let Some(record) = &self.record {
            record.record(Happening::Stage {
                stage: stage.clone(),
                took_ms,
            });
        }
        let _ = self
            .report(&LaunchReport::Ended {
                stage,
                took_ms,
                note,
            })
            .await;
    }

    fn failed(&self, blame: Blame, source: impl Into<Box<dyn Error + Send + Sync>>) -> StageError {
        let (stage, _) = self.running;
        StageError {
            stage,
            blame,
            hint: None,
            console: Vec::new(),
            source: source.into(),
        }
    }
}

/// A stage that failed.
struct StageError {
    stage: Stage,
    blame: Blame,
    hint: Option<String>,
    console: Vec<String>,
    source: Box<dyn Error + Send + Sync>,
}

impl StageError {
    fn with_console(mut self, console: &Console) -> Self {
        self.console = console.tail();
        self
    }
}

/// Goes through the stages. Everything made on the way is owned by a value whose drop undoes it.
async fn start(
    launch: Launch,
    dirs: &Dirs,
    stages: &mut Stages,
) -> Result<(Running, UnixListener), StageError> {
    let Launch {
        id,
        hostname,
        helper,
        kernel,
        image,
        overlay,
        state_dir: _,
        runtime_dir: _,
        vcpus,
        ram_mib,
        rules,
        resolve,
        proxy,
        upstream_roots,
        known_values,
        env,
        user,
        cwd,
        default_argv,
        stop_signal,
        detached,
        kept: _,
        timeout_ms,
        ports,
    } = launch;

    stages.begin(Stage::Jail).await;
    let bug = |stages: &Stages, what: &str| {
        stages.failed(
            Blame::Bug,
            format!("the client sent an impossible launch: {what}"),
        )
    };
    let id: BottleId = id.parse().map_err(|_| bug(stages, "id"))?;
    let vcpus = vcpus
        .try_into()
        .map(Vcpus)
        .map_err(|_| bug(stages, "vcpus"))?;
    let policy = rules::policy_of(rules).ok_or_else(|| bug(stages, "rules"))?;
    let resolve = resolve_of(resolve).ok_or_else(|| bug(stages, "resolve"))?;
    let proxy = match proxy.map(|(url, excepted)| HostProxy::parse(&url, &excepted)) {
        Some(Err(_)) => return Err(bug(stages, "proxy")),
        Some(Ok(proxy)) => Some(proxy),
        None => None,
    };
    let record = Record::open(&dirs.record())
        .map(Arc::new)
        .map_err(|error| stages.failed(Blame::Environment, error))?;
    stages.record = Some(Arc::clone(&record));

    let nonce = random::bytes().map_err(|error| stages.failed(Blame::Environment, error))?;
    let entropy = random::bytes().map_err(|error| stages.failed(Blame::Environment, error))?;
    let console =
        Console::open(&dirs.console()).map_err(|error| stages.failed(Blame::Environment, error))?;
    let control =
        ControlSocket::bind(dirs).map_err(|error| stages.failed(Blame::Environment, error))?;
    let listener = listen(dirs).map_err(|error| stages.failed(Blame::Environment, error))?;
    let ports = Ports::bind(&ports).await.map_err(|error| StageError {
        hint: error.hint().map(str::to_owned),
        ..stages.failed(Blame::Environment, error)
    })?;
    // What is written to memory takes no room here.
    let room = match &overlay {
        Some(_) => Room::of(&dirs.state).map(Some),
        None => Ok(None),
    };
    let room = room.map_err(|error| stages.failed(Blame::Environment, error))?;
    let LaunchImage { descriptor, parts } = image;
    let disk = File::open(&descriptor)
        .and_then(|disk| disk.lock_shared().map(|()| disk))
        .map_err(|error| stages.failed(Blame::Environment, error))?;
    let config = VmConfig {
        id: id.clone(),
        helper,
        kernel,
        image: Image::new(descriptor, parts).ok_or_else(|| bug(stages, "image"))?,
        overlay,
        vcpus,
        memory: MiB(ram_mib),
        nonce,
        sockets: dirs.jail_sockets(),
        console: dirs.console(),
    };
    let launched = timeout(JAIL_DEADLINE, vm::launch(&config)).await;
    let mut vm = match launched {
        Ok(Ok(vm)) => vm,
        Ok(Err(error)) => {
            let hint = error.hint().map(str::to_owned);
            return Err(StageError {
                hint,
                ..stages.failed(Blame::Environment, error)
            });
        }
        Err(_) => return Err(stages.failed(Blame::Environment, late(JAIL_DEADLINE))),
    };
    let room = match room {
        Some(room) => {
            let brake = vm.brake();
            let brake = brake.map_err(|error| stages.failed(Blame::Environment, error))?;
            Some((room, brake))
        }
        None => None,
    };
    stages.end(String::new()).await;

    let sink: Arc<dyn EventSink> = Arc::clone(&record) as _;
    let egress = spawn_blocking(move || {
        let known_values = known_values
            .into_iter()
            .filter_map(|(name, value)| Secret::new(name, value))
            .collect();
        let bottle = id.to_string();
        let config = EgressConfig {
            bottle,
            policy,
            resolve,
            upstream_roots,
            known_values,
            events: sink,
        };
        let host = HostSide {
            credentials: Vec::new(),
            proxy,
        };
        Egress::with_host(config, host)
    });

    stages.begin(Stage::Boot).await;
    let stream = wait_for_init(&control, &mut vm, stages, &console).await?;
    stages.end(String::new()).await;

    stages.begin(Stage::Hello).await;
    let hello = timeout(HELLO_DEADLINE, GuestLink::hello(stream, &nonce)).await;
    let mut link = hello
        .map_err(|_| stages.failed(Blame::Guest, late(HELLO_DEADLINE)))
        .and_then(|link| link.map_err(|error| stages.failed(Blame::Guest, error)))
        .map_err(|error| error.with_console(&console))?;
    stages.end(format!("Linux {}", Escaped(&link.kernel))).await;

    stages.begin(Stage::Provision).await;
    let egress = egress
        .await
        .map_err(|error| stages.failed(Blame::Bug, error))?;
    let egress = egress.map_err(|error| stages.failed(Blame::Environment, error))?;
    let provision = Provision {
        unix_ns: unix_ns(),
        hostname,
        ca_pem: egress.ca_pem(),
        ports: egress.ports(),
        env,
        user,
        cwd,
        stop_signal,
        entropy,
    };
    let provisioned = link.provision(ToInit::Provision(Box::new(provision)));
    timeout(PROVISION_DEADLINE, provisioned)
        .await
        .map_err(|_| stages.failed(Blame::Guest, late(PROVISION_DEADLINE)))
        .and_then(|done| done.map_err(|error| stages.failed(Blame::Guest, error)))
        .map_err(|error| error.with_console(&console))?;
    stages.end(String::new()).await;

    Ok((
        Running {
            vm,
            link,
            tripwire: control,
            egress,
            console,
            record,
            room,
            ports,
            disk,
            default_argv,
            state_dir: dirs.state.clone(),
            detached,
            limit: timeout_ms.map(Duration::from_millis),
        },
        listener,
    ))
}

/// Waits for init's connection, or for the VM to end without one.
async fn wait_for_init(
    control: &ControlSocket,
    vm: &mut Vm,
    stages: &Stages,
    console: &Console,
) -> Result<UnixStream, StageError> {
    let failed = |blame, source: Box<dyn Error + Send + Sync>| {
        Err(stages.failed(blame, source).with_console(console))
    };
    tokio::select! {
        accepted = timeout(BOOT_DEADLINE, control.accept()) => match accepted {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => failed(Blame::Environment, error.into()),
            Err(_) => failed(Blame::Environment, late(BOOT_DEADLINE).into()),
        },
        end = vm.wait() => {
            failed(Blame::Environment, format!("the VM ended before its init answered ({end})").into())
        }
    }
}

fn late(deadline: Duration) -> String {
    format!("nothing happened within {} s", deadline.as_secs())
}

/// Listens for clients, however long the directory's path is.
fn listen(dirs: &Dirs) -> io::Result<UnixListener> {
    let dir = File::open(&dirs.runtime)?;
    let name: PathBuf = state::short_path(&dir, CLIENT_SOCKET);
    UnixListener::bind(name)
}

fn resolve_of(resolve: Vec<LaunchResolve>) -> Option<Vec<Resolve>> {
    let one = |LaunchResolve { host, port, dial }: LaunchResolve| {
        let host = host.parse().ok()?;
        Some(Resolve {
            host,
            port,
            address: dial.ip(),
            dial_port: dial.port(),
        })
    };
    resolve.into_iter().map(one).collect()
}

fn unix_ns() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        })
}
