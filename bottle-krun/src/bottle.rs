//! The client's handle on a bottle.

use std::fs;
use std::future::pending;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use async_trait::async_trait;
use bottle_core::backend::{
    BackendError, Bottle, Command, Condition, Ended, ExitStatus, Live, Process, Window,
};
use bottle_core::event::{Event, Happening};
use bottle_core::id::BottleId;
use bottle_core::ports::Publish;
use bottle_core::text::Escaped;
use bottle_wire::client::{self, Done, GreetError, Inspection, LaunchPort, MainStatus, Open};
use bottle_wire::message::{self, Message};
use bottle_wire::mux::{self, Incoming, MuxStream, Opener, Side};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{sleep, timeout};

use crate::error::{GONE, ShimError, failed, last_lines};
use crate::process;
use crate::record;
use crate::state::Dirs;

/// How long a shim may take for its first words.
const GREETING: Duration = Duration::from_secs(10);

/// How much longer than its grace a stop may take before the shim is killed.
const STOP_MARGIN: Duration = Duration::from_secs(15);

/// How often a shim that is about to end is looked at.
const RELEASE_PERIOD: Duration = Duration::from_millis(5);

/// A connection to a shim: opens streams, ends when dropped.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) opener: Opener<Open>,
    driver: JoinHandle<()>,
}

impl Link {
    /// Greets the shim on a connected socket, and starts the mux.
    ///
    /// # Errors
    ///
    /// If it has gone, does not answer in time, or is of a release that is not understood.
    pub(crate) async fn greet(mut socket: UnixStream) -> Result<Self, GreetError> {
        let greeting = timeout(GREETING, client::greet(&mut socket)).await;
        greeting.unwrap_or_else(|late| {
            let source = late.into();
            Err(GreetError::Io { source })
        })?;
        // The shim opens no streams.
        let (opener, _, driver): (_, Incoming<()>, _) = mux::start(socket, Side::Dialer);
        let driver = tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "connection to a shim ended");
            }
        });
        Ok(Self { opener, driver })
    }

    /// Closes the socket: every stream is reset, and the shim sees its client go.
    fn close(&self) {
        self.driver.abort();
    }

    /// Asks for something that is answered once; `None` if it is refused, or the shim has gone.
    async fn ask<M: Message>(&self, open: &Open) -> Option<M> {
        let mut stream = self.opener.open(open).await.ok()?;
        message::read(&mut stream).await.ok()?
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

/// A shim whose bottle ends with this process.
#[derive(Debug)]
pub(crate) struct Owned {
    pub(crate) child: Child,
    /// Whether what is left of the bottle stays.
    pub(crate) kept: bool,
}

impl Owned {
    /// Waits for the shim to end and removes what it left, which is nothing unless it was killed.
    ///
    /// If it does not end by itself it is killed. `ended` completes a record that has no end.
    pub(crate) async fn bury(mut self, dirs: &Dirs, ended: Option<&Ended>) {
        if timeout(STOP_MARGIN, self.child.wait()).await.is_err()
            && let Err(error) = self.child.kill().await
        {
            tracing::warn!(%error, "cannot kill a shim that does not end");
        }
        if let Some(ended) = ended
            && let Err(error) = record::complete(&dirs.record(), the_end(ended))
        {
            tracing::warn!(%error, "cannot complete the record");
        }
        if let Err(error) = dirs.leave(self.kept) {
            tracing::warn!(%error, "cannot remove what a shim left");
        }
    }
}

/// A running bottle.
#[derive(Debug)]
pub(crate) struct KrunBottle {
    id: BottleId,
    dirs: Dirs,
    link: Link,
    numbers: AtomicU32,
    ended: watch::Receiver<Option<Ended>>,
    condition: watch::Receiver<Condition>,
}

impl KrunBottle {
    /// Takes hold of a bottle over a connection, and of its shim if it is to end with us.
    ///
    /// # Errors
    ///
    /// [`ShimError::Gone`] if the shim went away.
    pub(crate) async fn new(
        id: BottleId,
        dirs: Dirs,
        link: Link,
        shim: Option<Owned>,
    ) -> Result<Self, ShimError> {
        let mut waiting = link
            .opener
            .open(&Open::Wait)
            .await
            .map_err(|_| ShimError::Gone { source: None })?;
        let conditions = link
            .opener
            .open(&Open::Watch)
            .await
            .map_err(|_| ShimError::Gone { source: None })?;
        let (condition_send, condition) = watch::channel(Condition::Running);
        tokio::spawn(follow_condition(conditions, condition_send));
        let (send, ended) = watch::channel(None);
        let its_dirs = dirs.clone();
        tokio::spawn(async move {
            // An end of our direction tells the shim nothing; it is there for tidiness.
            let _ = waiting.shutdown().await;
            let ended = match message::read::<_, client::Ended>(&mut waiting).await {
                Ok(Some(ended)) => from_wire(ended),
                Ok(None) | Err(_) => Ended::Crashed(match log_end(&its_dirs) {
                    Some(words) => format!("{GONE}; {words}"),
                    None => GONE.to_owned(),
                }),
            };
            // The bottle is gone when its shim is: only then is nothing left.
            if let Some(shim) = shim {
                shim.bury(&its_dirs, Some(&ended)).await;
            } else {
                let _ = waiting.read_u8().await;
                released(&its_dirs).await;
            }
            let _ = send.send(Some(ended));
        });
        Ok(Self {
            id,
            dirs,
            link,
            numbers: AtomicU32::new(0),
            ended,
            condition,
        })
    }

    fn no_main(&self) -> BackendError {
        let id = self.id.clone();
        BackendError::NoMain { id }
    }
}

/// Waits until a shim that has said its last word lets go of its bottle, or is taken to hang.
async fn released(dirs: &Dirs) {
    let gone = async {
        while dirs.lives() {
            sleep(RELEASE_PERIOD).await;
        }
    };
    if timeout(STOP_MARGIN, gone).await.is_err() {
        tracing::warn!("a shim does not end");
    }
}

/// Passes on what the shim says of the bottle's condition, until it ends.
async fn follow_condition(mut stream: MuxStream, condition: watch::Sender<Condition>) {
    while let Ok(Some(now)) = message::read(&mut stream).await {
        condition.send_replace(match now {
            client::Condition::Running => Condition::Running,
            client::Condition::Frozen { why } => Condition::Frozen { why },
            client::Condition::Unknown | _ => continue,
        });
    }
}

/// Quotes the end of a shim's log, which goes away with the bottle.
pub(crate) fn log_end(dirs: &Dirs) -> Option<String> {
    let log = fs::read(dirs.log()).ok()?;
    let words = last_lines(String::from_utf8_lossy(&log).trim());
    (!words.is_empty()).then(|| format!("its log ends with: {}", Escaped(&words)))
}

/// Words the end of a bottle for its record.
pub(crate) fn the_end(ended: &Ended) -> Happening {
    let (how, code) = match ended {
        Ended::Goodbye(Some(status)) => (status.to_string(), Some(status.code())),
        Ended::Goodbye(None) => ("stopped".to_owned(), None),
        Ended::Killed => ("killed".to_owned(), None),
        Ended::Crashed(why) => (format!("crashed: {why}"), None),
    };
    Happening::End { how, code }
}

fn from_wire(ended: client::Ended) -> Ended {
    match ended {
        client::Ended::Goodbye { main } => Ended::Goodbye(main.and_then(|status| match status {
            MainStatus::Exited(code) => Some(ExitStatus::Exited(code)),
            MainStatus::Signaled(signal) => Some(ExitStatus::Signaled(signal)),
            _ => None,
        })),
        client::Ended::Killed => Ended::Killed,
        client::Ended::Crashed { why } => Ended::Crashed(why),
        client::Ended::Unknown | _ => {
            Ended::Crashed("in a way that this release does not know".to_owned())
        }
    }
}

#[async_trait]
impl Bottle for KrunBottle {
    fn id(&self) -> &BottleId {
        &self.id
    }

    async fn exec(&self, command: &Command) -> Result<Process, BackendError> {
        process::exec(&self.link.opener, &self.numbers, command).await
    }

    async fn attach(&self, window: Option<Window>) -> Result<Process, BackendError> {
        let attached = process::attach(&self.link.opener, &self.numbers, window).await?;
        attached.ok_or_else(|| self.no_main())
    }

    async fn kill(&self, signal: u8) -> Result<(), BackendError> {
        let killed = self.link.ask::<Done>(&Open::Kill { signal }).await;
        killed.map(|_| ()).ok_or_else(|| self.no_main())
    }

    async fn release(&self) -> Result<(), BackendError> {
        let released = self.link.ask::<Done>(&Open::Release).await;
        released.map(|_| ()).ok_or_else(|| {
            failed(
                format!("detach from bottle `{}`", self.id),
                ShimError::Gone { source: None },
            )
        })
    }

    async fn inspect(&self) -> Result<Live, BackendError> {
        let Some(found) = self.link.ask(&Open::Inspect).await else {
            return Err(failed(
                format!("inspect bottle `{}`", self.id),
                ShimError::Gone { source: None },
            ));
        };
        let Inspection {
            shim_pid,
            started_ms,
            kernel,
            ports,
            main_started,
            tty: _,
            attached,
            execs,
        } = found;
        Ok(Live {
            pid: shim_pid,
            started_ms,
            kernel,
            ports: ports
                .into_iter()
                .map(|LaunchPort { host, guest }| Publish { host, guest })
                .collect(),
            main_started,
            attached,
            execs,
        })
    }

    async fn events(&self, from: u64) -> Result<Vec<Event>, BackendError> {
        let path = self.dirs.record();
        spawn_blocking(move || record::read(&path, from))
            .await
            .map_err(|error| failed("read the record", error))?
            .map_err(|error| failed("read the record", error))
    }

    async fn stop(&self, grace: Duration) -> Result<(), BackendError> {
        if self.ended.borrow().is_some() {
            return Ok(());
        }
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let stop = Open::Stop { grace_ms };
        let asking = self.link.ask::<Done>(&stop);
        let patience = grace.saturating_add(STOP_MARGIN);
        if timeout(patience, asking).await.is_err() {
            // The shim does not answer: closing the connection ends an owned bottle, by force.
            self.link.close();
        }
        self.wait().await.map(|_| ())
    }

    async fn wait(&self) -> Result<Ended, BackendError> {
        let mut ended = self.ended.clone();
        let last = ended
            .wait_for(Option::is_some)
            .await
            .map(|last| last.clone());
        last.ok().flatten().ok_or_else(|| {
            failed(
                format!("wait for bottle `{}`", self.id),
                ShimError::Gone { source: None },
            )
        })
    }

    async fn changed(&self, known: &Condition) -> Condition {
        let mut condition = self.condition.clone();
        let now = condition.wait_for(|now| now != known).await;
        match now.map(|now| now.clone()) {
            Ok(now) => now,
            Err(_) => pending().await,
        }
    }

    async fn remove(self: Box<Self>) -> Result<(), BackendError> {
        self.stop(Duration::ZERO).await?;
        let dirs = self.dirs.clone();
        let removed = spawn_blocking(move || dirs.remove_locked()).await;
        removed
            .expect("removing does not panic")
            .map_err(|error| failed(format!("remove bottle `{}`", self.id), error))
    }
}
