//! The life of a bottle's main process: streams, signals, status.
//!
//! ```text
//! stdin ──► process ──► stdout, stderr          byte for byte; end of input is a half-close
//! SIGINT ──► forwarded; a second one within 2 s ──► stop with grace; a third ──► stop at once
//! SIGTERM ──► stop with grace       other signals ──► forwarded
//! ```

use std::future::{Future, pending};
use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use bottle_core::backend::{
    BackendError, Bottle, Command, Condition, Ended, Process, ProcessControl,
};
use bottle_core::text::EscapedUpTo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::exit::Status;
use crate::failure::Failure;
use crate::host::Signal;
use crate::printer::{Lost, Printer, Stream};

/// From SIGTERM to SIGKILL, as docker has it.
const GRACE: Duration = Duration::from_secs(10);

/// Two interrupts within this time mean the bottle.
const DOUBLE: Duration = Duration::from_secs(2);

/// The longest reason of a frozen bottle, in characters.
const MAX_REASON: usize = 1024;

/// How long a bottle that is ending may take to say how.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// A running bottle with everything its main process is connected to.
pub(crate) struct Session<'a> {
    pub(crate) bottle: &'a dyn Bottle,
    pub(crate) printer: &'a Printer,
    pub(crate) signals: &'a mut mpsc::Receiver<Signal>,
}

type Stop<'a> = Pin<Box<dyn Future<Output = Result<(), BackendError>> + Send + 'a>>;

impl Session<'_> {
    /// Runs the words, or what the image says if there are none, to the end.
    pub(crate) async fn run(
        mut self,
        words: &[String],
        stdin: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<Status, Failure> {
        let mut command = Command::new(words);
        command.main = true;
        let process = tokio::select! {
            process = self.bottle.exec(&command) => process?,
            Some(signal) = self.signals.recv() => return Ok(Status::signaled(signal.number())),
        };
        let Process {
            stdin: input,
            stdout,
            stderr,
            control,
        } = process;
        let (ended, has_ended) = watch::channel(false);
        let pass_on = |from, to| {
            let printer = self.printer.clone();
            tokio::spawn(printer.pass_on(from, to, has_ended.clone()))
        };
        let out = pass_on(stdout, Stream::Out);
        let err = pass_on(stderr, Stream::Err);

        let outcome = tokio::select! {
            outcome = self.conduct(control.as_ref()) => outcome,
            never = feed(stdin, input) => match never {},
        };
        ended.send_replace(true);
        let passed = [out.await, err.await];
        let ending = match outcome {
            Ok(ending) => ending,
            Err(error) => return Err(self.explain(error).await),
        };
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
        Ok(ending.status)
    }

    /// Waits for the end of the process and obeys signals until then.
    async fn conduct(&mut self, control: &dyn ProcessControl) -> Result<Ending, BackendError> {
        let mut judge = Judge::default();
        let mut stop: Option<(Signal, Stop<'_>)> = None;
        let mut status = control.wait();
        let mut condition = Condition::Running;
        loop {
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
                        (Ok(status), _) => Ok(Ending { status: status.into(), stopped }),
                        // We took the bottle away from under it.
                        (Err(_), Some((signal, _))) => Ok(Ending::stopped(*signal)),
                        (Err(error), None) => Err(error),
                    };
                }
                (signal, stopped) = stopped => {
                    stopped?;
                    let mut ending = Ending::stopped(signal);
                    if let Ok(Ok(status)) = timeout(LAST_WORDS, &mut status).await {
                        ending.status = status.into();
                    }
                    return Ok(ending);
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

/// A value that cannot be.
enum Never {}

/// Passes standard input on to its end, then waits forever: it never ends a session.
async fn feed(
    from: &mut (dyn AsyncRead + Send + Unpin),
    to: Option<Box<dyn AsyncWrite + Send + Unpin>>,
) -> Never {
    if let Some(mut to) = to {
        let mut chunk = vec![0; 64 * 1024];
        // An input that cannot be read has ended; a process that reads no more is no error.
        while let Ok(length @ 1..) = from.read(&mut chunk).await {
            let written = to.write_all(chunk.get(..length).unwrap_or_default()).await;
            if written.is_err() || to.flush().await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
        // Dropping it could be taken for a reset.
        return pending::<Never>().await;
    }
    pending().await
}

/// What a signal to us means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Action {
    /// It is the workload's.
    Forward,
    /// It ends the bottle, with this grace.
    Stop(Duration),
}

/// Remembers what was asked before.
#[derive(Debug, Default)]
struct Judge {
    interrupted: Option<Instant>,
    stopping: bool,
}

impl Judge {
    fn judge(&mut self, signal: Signal, now: Instant) -> Action {
        match signal {
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
        let mut judge = Judge::default();
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
        let mut judge = Judge::default();
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
    fn any_other_signal_is_the_workloads() {
        let mut judge = Judge::default();
        for signal in [Signal::Hangup, Signal::Quit, Signal::User1, Signal::User2] {
            assert_eq!(judge.judge(signal, Instant::now()), Action::Forward);
        }
    }
}
