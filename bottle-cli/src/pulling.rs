//! A pull as it is seen: a bar for each layer that comes in on a terminal, else plain lines.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bottle_core::images::{NeededLayer, PullReporter};
use bottle_core::text::Escaped;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::printer::Printer;
use crate::progress::Verbosity;
use crate::sizes::bytes;

/// How much of a digest tells layers apart, in characters with `sha256:`.
const SHORT: usize = 19;

/// Tells a pull on standard error.
#[derive(Debug)]
pub(crate) struct Pulling {
    printer: Printer,
    shape: Shape,
    layers: Mutex<Vec<Layer>>,
}

#[derive(Debug)]
enum Shape {
    Bars(MultiProgress),
    Lines,
    Nothing,
}

#[derive(Debug)]
struct Layer {
    digest: String,
    size: u64,
    /// While bytes come in.
    bar: Option<ProgressBar>,
}

impl Pulling {
    /// Begins to tell a pull.
    pub(crate) fn new(printer: &Printer, verbosity: Verbosity, terminal: bool) -> Self {
        let shape = match verbosity {
            Verbosity::Quiet => Shape::Nothing,
            Verbosity::Normal if terminal => {
                Shape::Bars(MultiProgress::with_draw_target(ProgressDrawTarget::stderr()))
            }
            Verbosity::Normal | Verbosity::Verbose => Shape::Lines,
        };
        Self {
            printer: printer.clone(),
            shape,
            layers: Mutex::default(),
        }
    }

    /// Takes the bars away: what comes next is the last word, even if layers still come in.
    pub(crate) fn finish(&self) {
        for layer in self.lock().drain(..) {
            if let Some(bar) = layer.bar {
                bar.finish_and_clear();
            }
        }
        if let Shape::Bars(bars) = &self.shape {
            // A terminal that has gone needs no clearing.
            let _ = bars.clear();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Layer>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pulling {
    fn drop(&mut self) {
        self.finish();
    }
}

impl PullReporter for Pulling {
    fn found(&self, layers: &[NeededLayer]) {
        let missing = layers.iter().filter(|layer| !layer.stored);
        let (count, size) = missing.fold((0, 0), |(count, size), layer| {
            (count + 1, size + layer.size)
        });
        if let (Shape::Lines, 1..) = (&self.shape, count) {
            let all = layers.len();
            self.printer.say(&format!(
                "{count} of {all} layers are not here yet: {}",
                bytes(size)
            ));
        }
        *self.lock() = layers
            .iter()
            .map(|layer| Layer {
                digest: Escaped(layer.digest.get(..SHORT).unwrap_or(&layer.digest)).to_string(),
                size: layer.size,
                bar: None,
            })
            .collect();
    }

    fn read(&self, layer: usize, bytes: u64) {
        let Shape::Bars(bars) = &self.shape else {
            return;
        };
        let mut layers = self.lock();
        let Some(layer) = layers.get_mut(layer) else {
            return;
        };
        let bar = layer.bar.get_or_insert_with(|| {
            self.printer.hide();
            let bar = ProgressBar::new(layer.size)
                .with_style(style())
                .with_prefix(layer.digest.clone());
            bars.add(bar)
        });
        bar.inc(bytes);
    }

    fn done(&self, layer: usize) {
        let mut layers = self.lock();
        let all = layers.len();
        let Some(it) = layers.get_mut(layer) else {
            return;
        };
        if let Some(bar) = it.bar.take() {
            bar.finish_and_clear();
        }
        if let Shape::Lines = self.shape {
            let Layer { digest, size, .. } = it;
            let number = layer + 1;
            self.printer.say(&format!(
                "layer {number} of {all} is whole: {digest}, {}",
                bytes(*size)
            ));
        }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{prefix} {bar:24} {decimal_bytes:>9} of {decimal_total_bytes:>9} {decimal_bytes_per_sec}",
    )
    .expect("the template is well-formed")
    .progress_chars("=> ")
}
