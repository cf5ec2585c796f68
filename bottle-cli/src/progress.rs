//! A start as it is seen: one live line on a terminal, plain lines with `-v`, else nothing.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bottle_core::id::BottleId;
use bottle_core::images::PullReporter;
use bottle_core::reporter::{Reporter, Stage};
use bottle_core::text::Escaped;

use crate::printer::Printer;
use crate::pulling::Pulling;

/// How much is said.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Verbosity {
    /// Errors only.
    Quiet,
    /// What a person at a terminal wants to know.
    Normal,
    /// Every stage, a line each.
    Verbose,
}

/// Tells a start on standard error.
#[derive(Debug)]
pub(crate) struct Progress {
    printer: Printer,
    id: BottleId,
    shape: Shape,
    since: Instant,
    current: Mutex<BTreeSet<Stage>>,
    pulling: Arc<Pulling>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Shape {
    Lines,
    Live,
    Nothing,
}

impl Progress {
    /// Begins to tell the start of this bottle.
    pub(crate) fn new(
        printer: &Printer,
        id: &BottleId,
        verbosity: Verbosity,
        terminal: bool,
    ) -> Self {
        let shape = match verbosity {
            Verbosity::Verbose => Shape::Lines,
            Verbosity::Normal if terminal => Shape::Live,
            Verbosity::Normal | Verbosity::Quiet => Shape::Nothing,
        };
        // A start that nobody looks at says nothing of its own accord.
        let heard = match shape {
            Shape::Nothing => Verbosity::Quiet,
            Shape::Lines | Shape::Live => verbosity,
        };
        Self {
            printer: printer.clone(),
            id: id.clone(),
            shape,
            since: Instant::now(),
            current: Mutex::default(),
            pulling: Arc::new(Pulling::new(printer, heard, terminal)),
        }
    }

    /// Leaves one line behind that says how long it took.
    pub(crate) fn finish(self) {
        if self.shape != Shape::Nothing {
            let took = seconds(self.since.elapsed());
            self.printer
                .say(&format!("started `{}` in {took}", self.id));
        }
    }

    fn change(&self, change: impl FnOnce(&mut BTreeSet<Stage>)) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut current);
        // Stages overlap: the earliest is the one that is waited for.
        if let (Shape::Live, Some(stage)) = (self.shape, current.first()) {
            self.printer
                .show(&format!("{}: {}…", self.id, doing(*stage)));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.pulling.finish();
        self.printer.hide();
    }
}

impl Reporter for Progress {
    fn pull(&self) -> Arc<dyn PullReporter> {
        Arc::clone(&self.pulling) as _
    }

    fn began(&self, stage: Stage) {
        self.change(|current| {
            current.insert(stage);
        });
    }

    fn ended(&self, stage: Stage, took: Duration, note: &str) {
        self.change(|current| {
            current.remove(&stage);
        });
        if self.shape == Shape::Lines {
            let (id, stage, took) = (&self.id, stage.name(), seconds(took));
            let note = Escaped(note);
            self.printer.say(&format!("{id}: {stage} {took} ({note})"));
        }
    }
}

fn doing(stage: Stage) -> &'static str {
    match stage {
        Stage::Resolve => "looking things up",
        Stage::Image => "preparing the image",
        Stage::Disks => "making its disk",
        Stage::Shim => "starting its host process",
        Stage::Jail => "building the jail",
        Stage::Boot => "booting",
        Stage::Hello => "waiting for a hello",
        Stage::Provision => "setting it up",
        Stage::Run => "starting the workload",
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1}s", time.as_secs_f64())
}
