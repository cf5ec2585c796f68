//! A backend without a machine: everything happens in this process's memory.

use std::collections::BTreeMap;
use std::error::Error;
use std::future::pending;
use std::mem::replace;
use std::path::Path;
use std::process;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, copy, duplex, empty, sink};
use tokio::sync::watch;
use tokio::time::timeout;

use super::fake_main::Main;
use super::images::FakeImages;
use super::machine::{FakeControl, Machine, image_command};
use super::program::{Outcome, Program, World};
use crate::backend::{
    Backend, BackendError, Blame, Bottle, Capabilities, Command, Condition, Ended, ExitStatus,
    Hint, Live, LookUp, Plan, PlanLine, Process, ProcessControl, SpawnFailure, Summary, Window,
};
use crate::event::{Event, Happening};
use crate::id::BottleId;
use crate::images::Images;
use crate::log::{LogChunk, LogPosition, LogStream};
use crate::reporter::{Reporter, Stage};
use crate::spec::{ImageSource, Spec};

const NAME: &str = "fake";
const PIPE: usize = 64 * 1024;

/// Bottles that are values: quick, observable, and failing on request.
///
/// Its one image is [`FakeBackend::image`]; what can be run in it is a handful of programs (`true`,
/// `false`, `echo`, `cat`, `env`, `printenv`, `id`, `pwd`, `sleep`, `sh -c 'exit 7'` …).
/// Clones are the same backend.
#[derive(Clone, Debug, Default)]
pub struct FakeBackend(Arc<State>);

#[derive(Debug, Default)]
struct State {
    bottles: Mutex<BTreeMap<BottleId, Arc<Machine>>>,
    /// They stay when a bottle is removed.
    records: Mutex<BTreeMap<BottleId, Arc<Mutex<Vec<Event>>>>>,
    cleaned: Mutex<Vec<String>>,
    images: FakeImages,
    wishes: Mutex<Wishes>,
}

impl State {
    /// Removes what there is of a bottle.
    fn forget(&self, machine: &Machine) {
        lock(&self.bottles).remove(&machine.id);
        let mut cleaned = lock(&self.cleaned);
        cleaned.extend(lock(&machine.things).drain(..).rev());
    }
}

/// What a test wants to go wrong or to have happened.
#[derive(Debug, Default)]
struct Wishes {
    fail_at: Option<Stage>,
    hang_at: Option<Stage>,
    happenings: Vec<Happening>,
}

impl FakeBackend {
    /// Makes a backend without bottles.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the image that it can start.
    pub fn image() -> ImageSource {
        ImageSource::OciLayout {
            dir: "/fake".into(),
            reference: None,
        }
    }

    /// Lets every start fail at this stage.
    #[must_use]
    pub fn failing_at(self, stage: Stage) -> Self {
        lock(&self.0.wishes).fail_at = Some(stage);
        self
    }

    /// Lets every start hang at this stage until its future is dropped.
    #[must_use]
    pub fn hanging_at(self, stage: Stage) -> Self {
        lock(&self.0.wishes).hang_at = Some(stage);
        self
    }

    /// Lets every export of an image hang until its future is dropped.
    #[must_use]
    pub fn hanging_exports(self) -> Self {
        self.0.images.hang_exports();
        self
    }

    /// Lets this happen in every bottle as soon as it runs.
    #[must_use]
    pub fn recording(self, what: Happening) -> Self {
        lock(&self.0.wishes).happenings.push(what);
        self
    }

    /// Returns what exists now, as `web/disks`, sorted.
    pub fn traces(&self) -> Vec<String> {
        let mut all: Vec<_> = lock(&self.0.bottles)
            .values()
            .flat_map(|machine| lock(&machine.things).clone())
            .collect();
        all.sort();
        all
    }

    /// Returns what was removed so far, in the order of removal.
    pub fn cleaned(&self) -> Vec<String> {
        lock(&self.0.cleaned).clone()
    }
}

#[async_trait]
impl Backend for FakeBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            own_kernel: false,
            max_vcpus: 4,
            egress_gateway: false,
        }
    }

    fn plan(&self, spec: &Spec) -> Result<Plan, BackendError> {
        let fake =
            matches!(&spec.image, ImageSource::OciLayout { dir, .. } if dir == Path::new("/fake"));
        if !fake {
            return Err(BackendError::Failed {
                op: format!("read image `{}`", spec.image),
                blame: Blame::User,
                hint: Some(Hint("the only image here is `oci:/fake`".to_owned())),
                source: "No such file or directory (os error 2)".into(),
            });
        }
        let vcpus = spec.resources.vcpus.0.get();
        let most = self.capabilities().max_vcpus;
        if vcpus > most {
            return Err(BackendError::Unsupported {
                backend: NAME,
                what: format!("give a bottle {vcpus} virtual CPUs (at most {most})"),
            });
        }
        let line = |what, value| PlanLine { what, value };
        let command = image_command(spec).join(" ");
        let mut lines = vec![
            line("image", spec.image.to_string()),
            line("command", command),
            line(
                "user",
                spec.user
                    .as_ref()
                    .map_or("root", |user| user.as_str())
                    .to_owned(),
            ),
        ];
        // Names only: values may be secrets.
        lines.extend(
            spec.env
                .iter()
                .map(|(name, _)| line("env", name.to_owned())),
        );
        lines.extend(
            spec.policy
                .rules()
                .iter()
                .map(|rule| line("rule", rule.to_string())),
        );
        lines.extend(
            spec.resolve
                .iter()
                .map(|to| line("resolve", to.to_string())),
        );
        lines.extend(
            spec.known_values
                .iter()
                .map(|it| line("secret", it.name().to_owned())),
        );
        lines.push(line("vcpus", spec.resources.vcpus.to_string()));
        lines.push(line("memory", spec.resources.memory.to_string()));
        lines.push(line("record", format!("/fake/{}/record.jsonl", spec.name)));
        Ok(Plan {
            spec: spec.clone(),
            id: spec.name.clone(),
            backend: NAME,
            lines,
            again: false,
        })
    }

    fn plan_again(&self, id: &BottleId, look_up: &LookUp<'_>) -> Result<Plan, BackendError> {
        let machine = self.ended(id)?;
        let mut plan = self.plan(&machine.spec)?;
        for secret in &mut plan.spec.known_values {
            let name = secret.name().to_owned();
            *secret = look_up(&name).map_err(|source| BackendError::Failed {
                op: format!("find the value of `{name}`"),
                blame: Blame::User,
                hint: None,
                source,
            })?;
        }
        plan.again = true;
        Ok(plan)
    }

    async fn events(&self, id: &BottleId, from: u64) -> Result<Vec<Event>, BackendError> {
        let record = lock(&self.0.records).get(id).cloned();
        let record = record.ok_or_else(|| missing(id))?;
        let events = lock(&record);
        Ok(events
            .iter()
            .filter(|event| event.seq >= from)
            .cloned()
            .collect())
    }

    async fn log(&self, id: &BottleId, from: LogPosition) -> Result<LogChunk, BackendError> {
        let machine = self.find(id)?;
        let log = lock(&machine.log);
        let start = usize::try_from(from.offset).unwrap_or(usize::MAX);
        let records = log.get(start..).unwrap_or_default().to_vec();
        let offset = from.offset + u64::try_from(records.len()).unwrap_or(u64::MAX);
        Ok(LogChunk {
            records,
            next: LogPosition { file: 0, offset },
        })
    }

    async fn remove(&self, id: &BottleId) -> Result<(), BackendError> {
        let machine = self.ended(id)?;
        self.0.forget(&machine);
        Ok(())
    }

    async fn start(
        &self,
        plan: Plan,
        reporter: &dyn Reporter,
    ) -> Result<Box<dyn Bottle>, BackendError> {
        let Plan {
            spec, id, again, ..
        } = plan;
        let machine = {
            let mut bottles = lock(&self.0.bottles);
            let before = bottles.get(&id);
            if again != before.is_some() || before.is_some_and(|before| before.runs()) {
                return Err(BackendError::Failed {
                    op: format!("start bottle `{id}`"),
                    blame: Blame::User,
                    hint: Some(Hint("choose another name with `--name`".to_owned())),
                    source: "there is a bottle of this name".into(),
                });
            }
            let record = Arc::clone(lock(&self.0.records).entry(id.clone()).or_default());
            let log = before.map(|before| lock(&before.log).clone());
            let machine = Arc::new(Machine::new(id.clone(), spec, record, log));
            bottles.insert(id.clone(), Arc::clone(&machine));
            machine
        };
        // From here on dropping the handle, or this future, removes what was made.
        let bottle = FakeBottle {
            machine,
            state: Arc::clone(&self.0),
            owner: true,
        };
        for stage in Stage::ALL {
            reporter.began(stage);
            lock(&bottle.machine.things).push(format!("{id}/{}", stage.name()));
            let (fail_at, hang_at) = {
                let wishes = lock(&self.0.wishes);
                (wishes.fail_at, wishes.hang_at)
            };
            if hang_at == Some(stage) {
                pending::<()>().await;
            }
            if fail_at == Some(stage) {
                return Err(BackendError::Start {
                    id,
                    stage,
                    blame: Blame::Environment,
                    hint: Some(Hint("stop asking the fake to fail".to_owned())),
                    console: vec!["guest says \u{1b}[2Jhello".to_owned()],
                    source: "this failure was asked for".into(),
                });
            }
            reporter.ended(stage, Duration::ZERO, "nothing to do");
            bottle.machine.record(Happening::Stage {
                stage: stage.name().to_owned(),
                took_ms: 0,
            });
        }
        for what in &lock(&self.0.wishes).happenings {
            bottle.machine.record(what.clone());
        }
        Ok(Box::new(bottle))
    }

    async fn list(&self) -> Result<Vec<Summary>, BackendError> {
        Ok(lock(&self.0.bottles)
            .values()
            .map(|machine| machine.summary())
            .collect())
    }

    fn images(&self) -> Option<&dyn Images> {
        Some(&self.0.images)
    }

    async fn open(&self, id: &BottleId) -> Result<Box<dyn Bottle>, BackendError> {
        let found = lock(&self.0.bottles).get(id).cloned();
        match found {
            Some(machine) if machine.runs() => Ok(Box::new(FakeBottle {
                machine,
                state: Arc::clone(&self.0),
                owner: false,
            })),
            Some(_) | None => Err(BackendError::NotFound {
                id: id.clone(),
                running: true,
            }),
        }
    }
}

impl FakeBackend {
    /// Finds a bottle, running or not.
    fn find(&self, id: &BottleId) -> Result<Arc<Machine>, BackendError> {
        lock(&self.0.bottles)
            .get(id)
            .cloned()
            .ok_or_else(|| missing(id))
    }

    /// Finds a bottle that has ended.
    fn ended(&self, id: &BottleId) -> Result<Arc<Machine>, BackendError> {
        let machine = self.find(id)?;
        if machine.runs() {
            return Err(BackendError::Running { id: id.clone() });
        }
        Ok(machine)
    }
}

fn missing(id: &BottleId) -> BackendError {
    BackendError::NotFound {
        id: id.clone(),
        running: false,
    }
}

#[derive(Debug)]
struct FakeBottle {
    machine: Arc<Machine>,
    state: Arc<State>,
    owner: bool,
}

impl Drop for FakeBottle {
    fn drop(&mut self) {
        if self.owner && !self.machine.is_detached() {
            self.machine.end(Ended::Killed);
            if !self.machine.spec.kept {
                self.state.forget(&self.machine);
            }
        }
    }
}

#[async_trait]
impl Bottle for FakeBottle {
    fn id(&self) -> &BottleId {
        &self.machine.id
    }

    async fn exec(&self, command: &Command) -> Result<Process, BackendError> {
        let machine = &self.machine;
        if !machine.runs() {
            return Err(gone("start a process"));
        }
        let argv = match command.argv.as_slice() {
            [] => image_command(&machine.spec),
            words => words.to_vec(),
        };
        let program = Program::find(&argv)?;
        let user = command.user.as_ref().or(machine.spec.user.as_ref());
        let user = user.map_or("root", |user| user.as_str()).to_owned();
        if user == "nobody-here" {
            return Err(BackendError::Spawn(SpawnFailure::Setup {
                program: argv.first().cloned().unwrap_or_default(),
                why: format!("there is no user {user:?}"),
            }));
        }
        let mut env: BTreeMap<String, String> = machine
            .spec
            .env
            .iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        env.extend(command.env.iter().cloned());

        let control = FakeControl {
            signal: watch::Sender::new(None),
            status: watch::Sender::new(None),
            ended: machine.ended.clone(),
            window: watch::Sender::new(command.tty),
        };
        lock(&machine.running).push(control.clone());
        let (program_stdin, process_stdin) = input(command.stdin);
        let (stdout, program_stdout) = duplex(PIPE);
        let (stderr, program_stderr) = duplex(PIPE);
        let world = World {
            env: env.into_iter().collect(),
            user,
            cwd: command.cwd.clone().unwrap_or_else(|| "/".to_owned()),
            stdin: program_stdin,
            stdout: Box::new(program_stdout),
            stderr: Box::new(program_stderr),
        };
        let mut process = Process {
            stdin: process_stdin.map(|stdin| Box::new(stdin) as Box<dyn AsyncWrite + Send + Unpin>),
            stdout: Box::new(stdout),
            stderr: Box::new(stderr),
            control: Box::new(control.clone()),
        };
        if command.main {
            let main = Main::new(control.clone(), process.stdin.take());
            *lock(&machine.main) = Some(main.clone());
            for (from, stream) in [
                (&mut process.stdout, LogStream::Out),
                (&mut process.stderr, LogStream::Err),
            ] {
                let said = replace(from, Box::new(empty()));
                tokio::spawn(main.clone().keep(said, stream, Arc::clone(machine)));
            }
            process = main.attach(!machine.is_detached());
        }
        if command.unheard {
            let heard = (
                replace(&mut process.stdout, Box::new(empty())),
                replace(&mut process.stderr, Box::new(empty())),
            );
            process.stdin = None;
            tokio::spawn(drain(heard));
        }
        let ends = command.main.then(|| Arc::clone(&self.state));
        tokio::spawn(live(program, world, control, Arc::clone(machine), ends));
        Ok(process)
    }

    async fn attach(&self, window: Option<Window>) -> Result<Process, BackendError> {
        let main = self.machine.main()?;
        if window.is_some() {
            main.control.window.send_replace(window);
        }
        Ok(main.attach(false))
    }

    async fn kill(&self, signal: u8) -> Result<(), BackendError> {
        let main = self.machine.main()?;
        main.control.signal(i32::from(signal)).await
    }

    async fn release(&self) -> Result<(), BackendError> {
        if !self.machine.runs() {
            return Err(gone("detach from a bottle"));
        }
        self.machine.detached.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn inspect(&self) -> Result<Live, BackendError> {
        if !self.machine.runs() {
            return Err(gone("inspect a bottle"));
        }
        let main = lock(&self.machine.main).clone();
        let all = lock(&self.machine.running).len();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Ok(Live {
            pid: process::id(),
            started_ms: 0,
            kernel: String::new(),
            ports: self.machine.spec.ports.clone(),
            main_started: main.is_some(),
            attached: main.as_ref().map_or(0, Main::listeners),
            execs: count(all - usize::from(main.is_some())),
        })
    }

    async fn events(&self, from: u64) -> Result<Vec<Event>, BackendError> {
        let events = lock(&self.machine.events);
        Ok(events
            .iter()
            .filter(|event| event.seq >= from)
            .cloned()
            .collect())
    }

    async fn stop(&self, grace: Duration) -> Result<(), BackendError> {
        let all: Vec<_> = lock(&self.machine.running).clone();
        for process in &all {
            process.signal.send_replace(Some(15));
        }
        let ended = async {
            for process in &all {
                process.ended().await;
            }
        };
        if timeout(grace, ended).await.is_err() {
            for process in &all {
                process.signal.send_replace(Some(9));
                process.ended().await;
            }
        }
        self.machine.end(Ended::Goodbye(self.machine.main_status()));
        Ok(())
    }

    async fn wait(&self) -> Result<Ended, BackendError> {
        let mut ended = self.machine.ended.subscribe();
        let how = ended.wait_for(Option::is_some).await.map(|how| how.clone());
        how.ok().flatten().ok_or_else(|| gone("wait for a bottle"))
    }

    async fn changed(&self, _: &Condition) -> Condition {
        // Its machine has all the room it wants.
        pending().await
    }

    async fn remove(self: Box<Self>) -> Result<(), BackendError> {
        self.stop(Duration::ZERO).await?;
        self.state.forget(&self.machine);
        Ok(())
    }
}

/// One process from its start to its end, by itself or by a signal; with it ends its bottle if it
/// is the main process of a detached one.
async fn live(
    program: Program,
    world: World,
    control: FakeControl,
    machine: Arc<Machine>,
    ends: Option<Arc<State>>,
) {
    let mut signals = control.signal.subscribe();
    let ignored = program.ignored_signals();
    let deadly = async {
        let deadly = |signal: &Option<i32>| signal.is_some_and(|it| !ignored.contains(&it));
        match signals.wait_for(deadly).await.map(|signal| *signal) {
            Ok(Some(signal)) => u8::try_from(signal).unwrap_or(9),
            Ok(None) | Err(_) => 9,
        }
    };
    let mut ended = machine.ended.subscribe();
    let outcome = tokio::select! {
        outcome = program.run(world) => outcome,
        signal = deadly => Outcome::Ended(ExitStatus::Signaled(signal)),
        _ = ended.wait_for(Option::is_some) => return,
    };
    match outcome {
        Outcome::Ended(status) => {
            control.status.send_replace(Some(status));
            if let Some(state) = ends.filter(|_| machine.is_detached()) {
                machine.end(Ended::Goodbye(Some(status)));
                if !machine.spec.kept {
                    state.forget(&machine);
                }
            }
        }
        Outcome::Crashed => machine.end(Ended::Crashed("kernel panic \u{1b}[2J".to_owned())),
    }
}

/// Throws away what a process says.
async fn drain(
    (mut out, mut err): (
        Box<dyn AsyncRead + Send + Unpin>,
        Box<dyn AsyncRead + Send + Unpin>,
    ),
) {
    let (mut nowhere, mut at_all) = (sink(), sink());
    let _ = tokio::join!(copy(&mut out, &mut nowhere), copy(&mut err, &mut at_all));
}

/// The program's end of a standard input, and ours if there is to be one.
fn input(wanted: bool) -> (Box<dyn AsyncRead + Send + Unpin>, Option<DuplexStream>) {
    if wanted {
        let (ours, theirs) = duplex(PIPE);
        (Box::new(theirs), Some(ours))
    } else {
        (Box::new(empty()), None)
    }
}

pub(super) fn gone(op: &str) -> BackendError {
    let source: Box<dyn Error + Send + Sync> = "the bottle has ended".into();
    BackendError::Failed {
        op: op.to_owned(),
        blame: Blame::Guest,
        hint: None,
        source,
    }
}

/// Locks; a panic elsewhere is reported there, not here.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
