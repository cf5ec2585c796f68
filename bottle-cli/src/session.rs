//! A process in a bottle and the person in front of it: streams, keys, signals, status.
//!
//! ```text
//! stdin ──► process ──► stdout, stderr          byte for byte; end of input is a half-close
//!
//! owner:    SIGINT ──► forwarded; a second one within 2 s ──► stop with grace; a third ──► at once
//!           SIGTERM ──► stop with grace       other signals ──► forwarded
//! visitor:  SIGHUP ──► leaves                 other signals ──► forwarded
//!
//! on a terminal every key is the process's, but for those that detach
//! ```

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use bottle_core::backend::{BackendError, Bottle, Condition, Ended, Process, ProcessControl};
use bottle_core::text::EscapedUpTo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::exit::Status;
use crate::failure::Failure;
use crate::host::Signal;
use crate::modes::Modes;
use crate::printer::{Lost, Printer, Stream};
use crate::terminal::{DetachKeys, Detector, Terminal, resizes};

/// From SIGTERM to SIGKILL, as docker has it.
const GRACE: Duration = Duration::from_secs(10);

/// Two interrupts within this time mean the bottle.
const DOUBLE: Duration = Duration::from_secs(2);

/// The longest reason of a frozen bottle, in characters.
const MAX_REASON: usize = 1024;

/// How long a bottle that is ending may take to say how.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// A running bottle, and who is in front of a process in it.
pub(crate) struct Session<'a> {
    pub(crate) bottle: &'a dyn Bottle,
    pub(crate) printer: &'a Printer,
    pub(crate) signals: &'a mut mpsc::Receiver<Signal>,
    pub(crate) role: Role,
    /// The terminal in front of the process, if it has one too.
    pub(crate) terminal: Option<OnTerminal>,
}

/// What signals to us mean.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Role {
    /// The bottle ends with us.
    Owner,
    /// The bottle has a life of its own.
    Visitor,
}

/// A terminal in front of a process that has one too.
#[derive(Debug)]
pub(crate) struct OnTerminal {
    pub(crate) terminal: Arc<dyn Terminal>,
    /// What detaches, if anything does.
    pub(crate) keys: Option<DetachKeys>,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// The process ended.
    Ended(Status),
    /// We left, and the process goes on.
    Left,
}

type Stop<'a> = Pin<Box<dyn Future<Output = Result<(), BackendError>> + Send + 'a>>;

impl Session<'_> {
    /// Stays with a process to its end, or until we leave.
    pub(crate) async fn run(
        mut self,
        process: Process,
        stdin: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<Outcome, Failure> {
        let Process {
            stdin: input,
            stdout,
            stderr,
            control,
        } = process;
        let modes = Modes::new();
        let stdout = match &self.terminal {
            Some(_) => modes.watch(stdout),
            None => stdout,
        };
        let raw = match &self.terminal {
            Some(on) => {
                let raw = on.terminal.raw().map_err(|error| {
                    let error = anyhow::Error::new(error);
                    Failure::environment(error.context("cannot use the terminal"))
                })?;
                Some((raw, self.printer.raw()))
            }
            None => None,
        };
        let (ended, has_ended) = watch::channel(false);
        let pass_on = |from, to| {
            let printer = self.printer.clone();
            tokio::spawn(printer.pass_on(from, to, has_ended.clone()))
        };
        let out = pass_on(stdout, Stream::Out);
        let err = pass_on(stderr, Stream::Err);

        let keys = self.terminal.as_ref().and_then(|on| on.keys.as_ref());
        let keys = keys.map(Detector::new);
        let outcome = tokio::select! {
            outcome = self.conduct(control.as_ref()) => outcome,
            () = feed(stdin, input, keys) => Ok(None),
        };
        let ending = match outcome {
            Ok(Some(ending)) => ending,
            Ok(None) => {
                out.abort();
                err.abort();
                // The prompt of a shell stands at the beginning of a line.
                self.printer.say_as_it_is(&format!("{}\n", modes.undo()));
                return Ok(Outcome::Left);
            }
            Err(error) => {
                self.printer.say_as_it_is(&modes.undo());
                drop(raw);
                return Err(self.explain(error).await);
            }
        };
        ended.send_replace(true);
        let passed = [out.await, err.await];
        self.printer.say_as_it_is(&modes.undo());
        drop(raw);
        for passed in passed {
            match passed.unwrap_or_else(|error| Err(Lost::There(error.into()))) {
                Ok(()) => {}
                // The bottle was taken away from under its streams, by us.
                Err(Lost::There(_)) if ending.stopped => {}
                Err(Lost::Here(error) | Lost::There(error)) => {
                    let error = anyhow::Error::new(error);
                    let error = error.context("cannot pass on the output of the command");
                    return Err(Failure::environment(error));
                }
            }
        }
        Ok(Outcome::Ended(ending.status))
    }

    /// Waits for the end of the process and obeys signals until then; `None` if we are to leave.
    async fn conduct(
        &mut self,
        control: &dyn ProcessControl,
    ) -> Result<Option<Ending>, BackendError> {
        let mut judge = Judge::new(self.role);
        let mut stop: Option<(Signal, Stop<'_>)> = None;
        let mut status = control.wait();
        let mut condition = Condition::Running;
        let mut resized = self.terminal.as_ref().map(|_| resizes());
        loop {
            let resize = async {
                match &mut resized {
                    Some(resized) => resized.recv().await,
                    None => pending().await,
                }
            };
            let stopped = async {
                match &mut stop {
                    Some((signal, stop)) => (*signal, stop.await),
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                status = &mut status => {
                    let stopped = stop.is_some();
                    return match (status, &stop) {
                        (Ok(status), _) => Ok(Some(Ending { status: status.into(), stopped })),
                        // We took the bottle away from under it.
                        (Err(_), Some((signal, _))) => Ok(Some(Ending::stopped(*signal))),
                        (Err(error), None) => Err(error),
                    };
                }
                (signal, stopped) = stopped => {
                    stopped?;
                    let mut ending = Ending::stopped(signal);
                    if let Ok(Ok(status)) = timeout(LAST_WORDS, &mut status).await {
                        ending.status = status.into();
                    }
                    return Ok(Some(ending));
                }
                Some(()) = resize => {
                    if let Some(on) = &self.terminal {
                        // One that has ended needs no size any more.
                        drop(control.resize(on.terminal.window()).await);
                    }
                }
                now = self.bottle.changed(&condition) => {
                    self.printer.say(&match &now {
                        Condition::Running => format!("`{}` goes on", self.bottle.id()),
                        Condition::Frozen { why } => {
                            let why = EscapedUpTo(why, MAX_REASON);
                            format!("`{}` is frozen: {why}", self.bottle.id())
                        }
                    });
                    condition = now;
                }
                Some(signal) = self.signals.recv() => match judge.judge(signal, Instant::now()) {
                    // One that has ended already needs no signal any more.
                    Action::Forward => drop(control.signal(signal.number().into()).await),
                    Action::Leave => return Ok(None),
                    Action::Stop(grace) => stop = Some((signal, self.bottle.stop(grace))),
                },
            }
        }
    }

    /// Finds out why the process was lost.
    async fn explain(&self, error: BackendError) -> Failure {
        let id = self.bottle.id();
        match timeout(LAST_WORDS, self.bottle.wait()).await {
            Ok(Ok(Ended::Crashed(why))) => Failure::guest(anyhow!("bottle `{id}` crashed"))
                .console(why.lines().map(str::to_owned)),
            Ok(Ok(Ended::Killed)) => {
                Failure::environment(anyhow!("bottle `{id}` was ended from outside"))
            }
            Ok(Ok(Ended::Goodbye(_)) | Err(_)) | Err(_) => error.into(),
        }
    }
}

/// How a main process ended.
struct Ending {
    status: Status,
    /// Whether the bottle was stopped on request, which may cut its streams short.
    stopped: bool,
}

impl Ending {
    /// The bottle was stopped because of this signal, and the process did not say more.
    fn stopped(signal: Signal) -> Self {
        Self {
            status: Status::signaled(signal.number()),
            stopped: true,
        }
    }
}

/// Passes standard input on. Returns when the keys were typed that detach; the end of the input
/// never ends a session.
async fn feed(
    from: &mut (dyn AsyncRead + Send + Unpin),
    to: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    mut keys: Option<Detector>,
) {
    let Some(mut to) = to else {
        return pending().await;
    };
    let mut chunk = vec![0; 64 * 1024];
    // An input that cannot be read has ended; a process that reads no more is no error.
    while let Ok(length @ 1..) = from.read(&mut chunk).await {
        let typed = chunk.get(..length).unwrap_or_default();
        let (typed, detached) = match &mut keys {
            Some(keys) => keys.filter(typed),
            None => (typed.to_vec(), false),
        };
        if to.write_all(&typed).await.is_err() || to.flush().await.is_err() {
            break;
        }
        if detached {
            return;
        }
    }
    let _ = to.shutdown().await;
    // Dropping it could be taken for a reset.
    pending::<()>().await;
}

/// What a signal to us means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Action {
    /// It is the workload's.
    Forward,
    /// We go, and the process stays.
    Leave,
    /// It ends the bottle, with this grace.
    Stop(Duration),
}

/// Remembers what was asked before.
#[derive(Debug)]
struct Judge {
    role: Role,
    interrupted: Option<Instant>,
    stopping: bool,
}

impl Judge {
    fn new(role: Role) -> Self {
        Self {
            role,
            interrupted: None,
            stopping: false,
        }
    }

    fn judge(&mut self, signal: Signal, now: Instant) -> Action {
        match signal {
            Signal::Hangup if self.role == Role::Visitor => Action::Leave,
            _ if self.role == Role::Visitor => Action::Forward,
            Signal::Hangup | Signal::Quit | Signal::User1 | Signal::User2 => Action::Forward,
            Signal::Interrupt if !self.stopping => {
                let before = self.interrupted.replace(now);
                let double = |before| now.saturating_duration_since(before) <= DOUBLE;
                if before.is_some_and(double) {
                    self.stop()
                } else {
                    Action::Forward
                }
            }
            Signal::Interrupt | Signal::Terminate => self.stop(),
        }
    }

    fn stop(&mut self) -> Action {
        let grace = if self.stopping { Duration::ZERO } else { GRACE };
        self.stopping = true;
        Action::Stop(grace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_interrupts_at_once_stop_the_bottle_and_a_third_does_not_wait() {
        let now = Instant::now();
        let later = |ms| now + Duration::from_millis(ms);
        let mut judge = Judge::new(Role::Owner);
        assert_eq!(judge.judge(Signal::Interrupt, now), Action::Forward);
        assert_eq!(judge.judge(Signal::Interrupt, later(2001)), Action::Forward);
        assert_eq!(
            judge.judge(Signal::Interrupt, later(4000)),
            Action::Stop(GRACE)
        );
        assert_eq!(
            judge.judge(Signal::Interrupt, later(9000)),
            Action::Stop(Duration::ZERO)
        );
    }

    #[test]
    fn a_request_to_terminate_stops_the_bottle() {
        let mut judge = Judge::new(Role::Owner);
        assert_eq!(
            judge.judge(Signal::Terminate, Instant::now()),
            Action::Stop(GRACE)
        );
        assert_eq!(
            judge.judge(Signal::Terminate, Instant::now()),
            Action::Stop(Duration::ZERO)
        );
    }

    #[test]
    fn a_visitor_never_stops_the_bottle_and_leaves_with_its_terminal() {
        let mut judge = Judge::new(Role::Visitor);
        for signal in Signal::ALL {
            let action = judge.judge(signal, Instant::now());
            let expected = if signal == Signal::Hangup {
                Action::Leave
            } else {
                Action::Forward
            };
            assert_eq!(action, expected, "{signal:?}");
        }
    }

    #[test]
    fn any_other_signal_is_the_workloads() {
        let mut judge = Judge::new(Role::Owner);
        for signal in [Signal::Hangup, Signal::Quit, Signal::User1, Signal::User2] {
            assert_eq!(judge.judge(signal, Instant::now()), Action::Forward);
        }
    }
}
