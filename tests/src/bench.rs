//! A bottle with everything around it that a check needs.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bottle_core::backend::{Backend, Bottle, Command, ExitStatus, Process};
use bottle_core::event::{Event, Happening};
use bottle_core::id::BottleId;
use bottle_core::policy::{Policy, Reason, Rule};
use bottle_core::reporter::Silent;
use bottle_core::secret::Secret;
use bottle_core::spec::{ImageSource, Resolve, Spec, UserName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::given::Given;
use crate::host::TestHost;
use crate::upstream::{Tripwire, Upstream};
use crate::wait::wait_for;

/// How long one program in a bottle may take.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A value that no bottle may send out.
pub const KNOWN_VALUE: &str = "correct-horse-battery-staple-7f3a";

/// Host, upstreams and bottle.
#[derive(Debug)]
pub struct Bench {
    /// The host's side.
    pub host: TestHost,
    /// What `allowed.test`, `other.test:8443` and `stall.test` resolve to.
    pub upstream: Upstream,
    /// A listener on 127.0.0.1 whose port the policy names, but for no name that leads there.
    pub tripwire: Tripwire,
    /// The bottle.
    pub bottle: Box<dyn Bottle>,
}

/// What a program did.
#[derive(Clone, Debug)]
pub struct Output {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl Bench {
    /// Starts upstreams and a bottle of this name, its description changed by `change`.
    ///
    /// # Errors
    ///
    /// What a start says.
    pub async fn start(
        given: &'static Given,
        name: &str,
        change: impl FnOnce(&mut Spec),
    ) -> Result<Self> {
        let upstream = Upstream::start(&["allowed.test", "other.test", "stall.test"]).await?;
        let tripwire = Tripwire::start().await?;
        let host = TestHost::new(given)?;
        let mut spec = spec(given, name, &upstream, &tripwire)?;
        change(&mut spec);
        let backend = host.backend()?;
        let plan = backend.plan(&spec)?;
        let started = backend.start(plan, &Silent).await;
        let bottle = started.with_context(|| format!("the bottle's files:\n{}", host.tails()))?;
        Ok(Self {
            host,
            upstream,
            tripwire,
            bottle,
        })
    }

    /// Runs a program as the bottle's user, without standard input.
    ///
    /// # Errors
    ///
    /// If it does not start or does not end.
    pub async fn run<S: Into<String>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Output> {
        self.run_command(Command::new(argv), b"").await
    }

    /// Runs a program as root.
    ///
    /// # Errors
    ///
    /// As [`Self::run`].
    pub async fn run_as_root<S: Into<String>>(
        &self,
        argv: impl IntoIterator<Item = S>,
    ) -> Result<Output> {
        let mut command = Command::new(argv);
        command.user = Some(UserName::try_from("root".to_owned())?);
        self.run_command(command, b"").await
    }

    /// Runs a Python program as the bottle's user; `args` are its `sys.argv[1:]`.
    ///
    /// # Errors
    ///
    /// As [`Self::run`].
    pub async fn python(&self, program: &str, args: &[&str]) -> Result<Output> {
        self.run(["python3", "-c", program].iter().chain(args).copied())
            .await
    }

    /// Runs `curl` as the bottle's user: silent but for errors, 60 s at most.
    ///
    /// # Errors
    ///
    /// As [`Self::run`].
    pub async fn curl(&self, args: &[&str]) -> Result<Output> {
        self.run(
            ["curl", "-sS", "--max-time", "60"]
                .iter()
                .chain(args)
                .copied(),
        )
        .await
    }

    /// Runs a command with this standard input.
    ///
    /// # Errors
    ///
    /// As [`Self::run`].
    pub async fn run_command(&self, command: Command, input: &[u8]) -> Result<Output> {
        let argv = command.argv.clone();
        let process = self.bottle.exec(&command).await;
        let process = process.with_context(|| format!("cannot run {argv:?} in the bottle"))?;
        let output = timeout(PATIENCE, finish(argv.clone(), process, input)).await;
        match output {
            Ok(output) => output.with_context(|| format!("{argv:?} in the bottle")),
            Err(_) => bail!("{argv:?} did not end within {PATIENCE:?}"),
        }
    }

    /// Returns the number from which events are new.
    ///
    /// # Errors
    ///
    /// If the record cannot be read.
    pub async fn mark(&self) -> Result<u64> {
        let events = self.bottle.events(0).await?;
        Ok(events.last().map_or(1, |event| event.seq + 1))
    }

    /// Waits for an event from `mark` on of which `fits` is true.
    ///
    /// # Errors
    ///
    /// If none comes; says which came.
    pub async fn event(
        &self,
        mark: u64,
        what: &str,
        fits: impl Fn(&Happening) -> bool,
    ) -> Result<Event> {
        let found = wait_for(Duration::from_secs(10), what, async || {
            let events = self.bottle.events(mark).await?;
            Ok(events.into_iter().find(|event| fits(&event.what)))
        });
        match found.await {
            Ok(event) => Ok(event),
            Err(error) => {
                let events = self.bottle.events(mark).await?;
                Err(error.context(format!("the events since: {events:#?}")))
            }
        }
    }

    /// Waits for a refusal of this host for this reason.
    ///
    /// # Errors
    ///
    /// As [`Self::event`].
    pub async fn refused(&self, mark: u64, name: &str, because: Reason) -> Result<Event> {
        self.event(
            mark,
            &format!("an event that {name} was refused: {because:?}"),
            |what| {
                matches!(what, Happening::Refused { host, reason, .. }
                if host == name && *reason == because)
            },
        )
        .await
    }
}

/// Waits for a process with its output; `input` is its standard input.
///
/// # Errors
///
/// What the streams and the bottle say.
pub async fn finish(argv: Vec<String>, mut process: Process, input: &[u8]) -> Result<Output> {
    let stdin = process.stdin.take();
    let write = async {
        if let Some(mut stdin) = stdin {
            // A program may end without having read its input.
            let _ = stdin.write_all(input).await;
            let _ = stdin.shutdown().await;
        }
    };
    let mut stdout = Vec::new();
    let mut stderr = Vec::new();
    let ((), out, err) = tokio::join!(
        write,
        process.stdout.read_to_end(&mut stdout),
        process.stderr.read_to_end(&mut stderr)
    );
    out.context("its standard output")?;
    err.context("its standard error")?;
    let status = process.control.wait().await?;
    Ok(Output {
        argv,
        status,
        stdout,
        stderr,
    })
}

impl Output {
    /// Returns its standard output as text without white space around it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// Returns its standard output as text if it ended well.
    ///
    /// # Errors
    ///
    /// If it did not; with all that it said.
    pub fn success(&self) -> Result<String> {
        ensure!(
            self.status == ExitStatus::Exited(0),
            "a program failed: {self}"
        );
        Ok(self.text())
    }

    /// Returns standard error and output as text if it ended with another status than 0.
    ///
    /// # Errors
    ///
    /// If it ended well.
    pub fn failure(&self) -> Result<String> {
        ensure!(
            self.status != ExitStatus::Exited(0),
            "a program should have failed: {self}"
        );
        Ok(format!(
            "{}{}",
            String::from_utf8_lossy(&self.stderr),
            self.text()
        ))
    }
}

impl Display for Output {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} {}\n--- its standard output\n{}\n--- its standard error\n{}",
            self.argv,
            self.status,
            String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(4096)]),
            String::from_utf8_lossy(&self.stderr[..self.stderr.len().min(4096)]),
        )
    }
}

/// Describes the bottle of a bench.
fn spec(given: &Given, name: &str, upstream: &Upstream, tripwire: &Tripwire) -> Result<Spec> {
    let id: BottleId = name.parse()?;
    let image = ImageSource::OciLayout {
        dir: given.image.clone(),
        reference: None,
    };
    let mut spec = Spec::new(id, image);
    let rules = [
        "allowed.test".to_owned(),
        "other.test:8443".to_owned(),
        "stall.test".to_owned(),
        // Names that lead to the host's own loopback, by the host's own resolver.
        format!("localhost:{}", tripwire.address.port()),
    ];
    let rules: Result<Vec<Rule>, _> = rules.iter().map(|rule| rule.parse()).collect();
    spec.policy = Policy::new(rules?);
    for (host, port) in [
        ("allowed.test", 443),
        ("other.test", 8443),
        ("stall.test", 443),
    ] {
        spec.resolve.push(Resolve {
            host: host.parse()?,
            port,
            address: upstream.address.ip(),
            dial_port: upstream.address.port(),
        });
    }
    spec.upstream_roots.push(upstream.ca_pem.clone());
    spec.known_values.extend(Secret::new("horse", KNOWN_VALUE));
    Ok(spec)
}
