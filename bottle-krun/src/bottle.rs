//! The client's handle on a bottle.

use std::fs;
use std::future::pending;
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use async_trait::async_trait;
use bottle_core::backend::{BackendError, Bottle, Command, Condition, Ended, ExitStatus, Process};
use bottle_core::event::{Event, EventSink, Happening};
use bottle_core::id::BottleId;
use bottle_core::text::Escaped;
use bottle_wire::client::{self, MainStatus, Open, StopReport};
use bottle_wire::message;
use bottle_wire::mux::{self, Incoming, MuxStream, Opener, Side};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use crate::error::{GONE, ShimError, failed, last_lines};
use crate::process;
use crate::record::{self, Record};
use crate::state::Dirs;

/// How much longer than its grace a stop may take before the shim is killed.
const STOP_MARGIN: Duration = Duration::from_secs(15);

/// A connection to a shim: opens streams, ends when dropped.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) opener: Opener<Open>,
    driver: JoinHandle<()>,
}

impl Link {
    /// Starts the mux on a connected socket.
    pub(crate) fn new(socket: UnixStream) -> Self {
        // The shim opens no streams.
        let (opener, _, driver): (_, Incoming<()>, _) = mux::start(socket, Side::Dialer);
        let driver = tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "connection to a shim ended");
            }
        });
        Self { opener, driver }
    }
}

impl Link {
    /// Closes the socket: every stream is reset, and the shim sees its client go.
    fn close(&self) {
        self.driver.abort();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
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
    /// Whether the bottle ends with this handle.
    owns: bool,
}

impl KrunBottle {
    /// Takes hold of a bottle over a connection; with the shim's process it owns the bottle.
    ///
    /// # Errors
    ///
    /// [`ShimError::Gone`] if the shim went away.
    pub(crate) async fn new(
        id: BottleId,
        dirs: Dirs,
        link: Link,
        shim: Option<Child>,
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
        let owns = shim.is_some();
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
                bury(shim, &its_dirs, Some(&ended)).await;
            } else {
                let _ = waiting.read_u8().await;
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
            owns,
        })
    }
}

/// Passes on what the shim says of the bottle's condition, until it ends.
async fn follow_condition(mut stream: MuxStream, condition: watch::Sender<Condition>) {
    while let Ok(Some(now)) = message::read(&mut stream).await {
        condition.send_replace(match now {
            client::Condition::Running => Condition::Running,
            client::Condition::Frozen(why) => Condition::Frozen { why },
            _ => continue,
        });
    }
}

/// Waits for an owned shim to end and removes what it left, which is nothing unless it was killed.
///
/// If it does not end by itself it is killed. `ended` completes a record that has no end.
pub(crate) async fn bury(mut shim: Child, dirs: &Dirs, ended: Option<&Ended>) {
    if timeout(STOP_MARGIN, shim.wait()).await.is_err()
        && let Err(error) = shim.kill().await
    {
        tracing::warn!(%error, "cannot kill a shim that does not end");
    }
    if let Some(ended) = ended
        && let Err(error) = complete_record(&dirs.record(), ended)
    {
        tracing::warn!(%error, "cannot complete the record");
    }
    if let Err(error) = dirs.remove() {
        tracing::warn!(%error, "cannot remove what a shim left");
    }
}

/// Quotes the end of a shim's log, which goes away with the bottle.
pub(crate) fn log_end(dirs: &Dirs) -> Option<String> {
    let log = fs::read(dirs.log()).ok()?;
    let words = last_lines(String::from_utf8_lossy(&log).trim());
    (!words.is_empty()).then(|| format!("its log ends with: {}", Escaped(&words)))
}

/// Writes the last line of a record whose shim was killed before it could.
fn complete_record(path: &Path, ended: &Ended) -> io::Result<()> {
    let events = record::read(path, 0)?;
    if !matches!(
        events.last().map(|event| &event.what),
        Some(Happening::End { .. })
    ) {
        Record::open(path)?.record(Happening::End {
            how: describe(ended),
        });
    }
    Ok(())
}

/// Words the end of a bottle for its record.
pub(crate) fn describe(ended: &Ended) -> String {
    match ended {
        Ended::Goodbye(Some(status)) => status.to_string(),
        Ended::Goodbye(None) => "stopped".to_owned(),
        Ended::Killed => "killed".to_owned(),
        Ended::Crashed(why) => format!("crashed: {why}"),
    }
}

fn from_wire(ended: client::Ended) -> Ended {
    match ended {
        client::Ended::Goodbye(main) => Ended::Goodbye(main.and_then(|status| match status {
            MainStatus::Exited(code) => Some(ExitStatus::Exited(code)),
            MainStatus::Signaled(signal) => Some(ExitStatus::Signaled(signal)),
            _ => None,
        })),
        client::Ended::Killed => Ended::Killed,
        client::Ended::Crashed(why) => Ended::Crashed(why),
        _ => Ended::Crashed("in a way that this release does not know".to_owned()),
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
        let asking = async {
            let mut stream = self.link.opener.open(&Open::Stop { grace_ms }).await.ok()?;
            message::read::<_, StopReport>(&mut stream).await.ok()?
        };
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
        if self.owns {
            dirs.remove()
                .map_err(|error| failed(format!("remove bottle `{}`", self.id), error))?;
        }
        Ok(())
    }
}
