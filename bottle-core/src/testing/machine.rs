//! What a fake bottle is made of: its state, its events, and the processes in it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use async_trait::async_trait;
use tokio::sync::watch;

use super::fake::{gone, lock};
use super::fake_main::Main;
use crate::backend::{BackendError, Ended, ExitStatus, ProcessControl, Summary, Window};
use crate::event::{Event, Happening, unix_ms};
use crate::id::BottleId;
use crate::listing;
use crate::log::LogRecord;
use crate::spec::Spec;

/// The words that an empty command stands for.
pub(super) fn image_command(spec: &Spec) -> Vec<String> {
    let image = || ["echo", "from", "the", "image"].map(str::to_owned).to_vec();
    spec.command.clone().unwrap_or_else(image)
}

/// One bottle: what there is of it, and what happened in it.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) id: BottleId,
    pub(super) created_ms: u64,
    pub(super) spec: Spec,
    pub(super) things: Mutex<Vec<String>>,
    pub(super) events: Arc<Mutex<Vec<Event>>>,
    pub(super) log: Mutex<Vec<LogRecord>>,
    pub(super) running: Mutex<Vec<FakeControl>>,
    pub(super) main: Mutex<Option<Main>>,
    pub(super) detached: AtomicBool,
    pub(super) ended: watch::Sender<Option<Ended>>,
}

impl Machine {
    pub(super) fn new(
        id: BottleId,
        spec: Spec,
        events: Arc<Mutex<Vec<Event>>>,
        log: Option<Vec<LogRecord>>,
    ) -> Self {
        Self {
            id,
            created_ms: unix_ms(SystemTime::now()),
            detached: AtomicBool::new(spec.detached),
            spec,
            things: Mutex::default(),
            events,
            log: Mutex::new(log.unwrap_or_default()),
            running: Mutex::default(),
            main: Mutex::default(),
            ended: watch::Sender::new(None),
        }
    }

    pub(super) fn summary(&self) -> Summary {
        let spec = &self.spec;
        let state = match &*self.ended.borrow() {
            None => listing::State::Running,
            Some(how) => listing::State::Ended {
                how: words(how),
                code: code(how),
                at_ms: 0,
            },
        };
        Summary {
            id: self.id.clone(),
            name: spec.name.clone(),
            image: spec.image.to_string(),
            command: image_command(spec),
            labels: spec.labels.clone(),
            created_ms: self.created_ms,
            detached: spec.detached,
            kept: spec.kept,
            tty: spec.tty,
            ports: spec.ports.clone(),
            state,
        }
    }

    /// Returns the main process, if it runs.
    pub(super) fn main(&self) -> Result<Main, BackendError> {
        let main = lock(&self.main).clone();
        main.filter(|main| self.runs() && main.control.status.borrow().is_none())
            .ok_or_else(|| BackendError::NoMain {
                id: self.id.clone(),
            })
    }

    pub(super) fn main_status(&self) -> Option<ExitStatus> {
        let main = lock(&self.main);
        main.as_ref().and_then(|main| *main.control.status.borrow())
    }

    pub(super) fn is_detached(&self) -> bool {
        self.detached.load(Ordering::Relaxed)
    }

    pub(super) fn runs(&self) -> bool {
        self.ended.borrow().is_none()
    }

    pub(super) fn record(&self, what: Happening) {
        let mut events = lock(&self.events);
        let seq = u64::try_from(events.len()).unwrap_or(u64::MAX) + 1;
        events.push(Event {
            seq,
            time_ms: unix_ms(SystemTime::now()),
            what,
        });
    }

    /// Ends the bottle once; whatever still runs in it is gone at once.
    pub(super) fn end(&self, how: Ended) {
        let (how_in_words, code) = (words(&how), code(&how));
        let first = self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(how);
            }
            first
        });
        if first {
            self.record(Happening::End {
                how: how_in_words,
                code,
            });
        }
    }
}

pub(super) fn words(how: &Ended) -> String {
    match how {
        Ended::Goodbye(Some(status)) => status.to_string(),
        Ended::Goodbye(None) => "stopped".to_owned(),
        Ended::Killed => "killed".to_owned(),
        Ended::Crashed(why) => format!("crashed: {why}"),
    }
}

pub(super) fn code(how: &Ended) -> Option<u8> {
    match how {
        Ended::Goodbye(status) => status.map(ExitStatus::code),
        Ended::Killed | Ended::Crashed(_) => None,
    }
}

/// A process's signals and status.
#[derive(Clone, Debug)]
pub(super) struct FakeControl {
    pub(super) signal: watch::Sender<Option<i32>>,
    pub(super) status: watch::Sender<Option<ExitStatus>>,
    pub(super) ended: watch::Sender<Option<Ended>>,
    pub(super) window: watch::Sender<Option<Window>>,
}

impl FakeControl {
    /// Waits for the status; `None` if the bottle ended first.
    pub(super) async fn ended(&self) -> Option<ExitStatus> {
        let mut status = self.status.subscribe();
        let mut ended = self.ended.subscribe();
        tokio::select! {
            biased;
            status = status.wait_for(Option::is_some) => status.ok().and_then(|status| *status),
            _ = ended.wait_for(Option::is_some) => None,
        }
    }
}

#[async_trait]
impl ProcessControl for FakeControl {
    async fn signal(&self, signal: i32) -> Result<(), BackendError> {
        if self.ended.borrow().is_some() {
            return Err(gone("send a signal"));
        }
        self.signal.send_replace(Some(signal));
        Ok(())
    }

    async fn resize(&self, window: Window) -> Result<(), BackendError> {
        self.window
            .send_if_modified(|known| known.replace(window).is_some());
        Ok(())
    }

    async fn wait(&self) -> Result<ExitStatus, BackendError> {
        self.ended().await.ok_or_else(|| gone("wait for a process"))
    }
}
