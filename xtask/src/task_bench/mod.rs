//! `cargo xtask bench NAME`: figures side by side with peers and floors, all in one run.
//!
//! Prints a table, or with `--json` a line a figure. Nothing is asserted: figures depend on the
//! machine, which `docs/performance.md` names beside them.

mod images;

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

use crate::report::line;
use crate::tree::Tree;

/// How often a command is timed; the median counts.
const ROUNDS: usize = 3;

/// Arguments of the task.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What is measured
    name: Name,
    /// Print JSON, a line a figure
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Name {
    /// From a registry on loopback to a disk that boots, against skopeo, umoci and mkfs.erofs
    Images,
}

/// One thing that was measured.
#[derive(Debug, Serialize)]
struct Figure {
    bench: &'static str,
    figure: String,
    unit: &'static str,
    ours: f64,
    /// The least that any program could do with.
    floor: Option<f64>,
    /// What others take.
    peers: BTreeMap<&'static str, f64>,
    /// Ours to the best peer's, or to the floor if there is no peer.
    ratio: Option<f64>,
}

impl Figure {
    fn new(bench: &'static str, figure: impl Into<String>, unit: &'static str, ours: f64) -> Self {
        Self {
            bench,
            figure: figure.into(),
            unit,
            ours,
            floor: None,
            peers: BTreeMap::new(),
            ratio: None,
        }
    }

    fn floor(mut self, floor: f64) -> Self {
        self.floor = Some(floor);
        self.compared()
    }

    fn peer(mut self, name: &'static str, value: f64) -> Self {
        self.peers.insert(name, value);
        self.compared()
    }

    fn compared(mut self) -> Self {
        let best = self.peers.values().copied().reduce(f64::min);
        self.ratio = best.or(self.floor).map(|other| self.ours / other);
        self
    }
}

/// Runs the task.
pub(crate) fn run(tree: &Tree, args: &Args) -> Result<()> {
    let figures = match args.name {
        Name::Images => images::measure(tree)?,
    };
    if args.json {
        for figure in &figures {
            line(serde_json::to_string(figure)?);
        }
        return Ok(());
    }
    let row = |cells: [String; 6]| {
        let [figure, unit, ours, floor, peers, ratio] = cells;
        line(format!(
            "{figure:<28} {unit:<4} {ours:>9} {floor:>9}  {ratio:>6}  {peers}"
        ));
    };
    row(["FIGURE", "UNIT", "OURS", "FLOOR", "PEERS", "RATIO"].map(str::to_owned));
    for figure in &figures {
        let number = |value: f64| format!("{value:.3}");
        let peers = figure.peers.iter();
        row([
            figure.figure.clone(),
            figure.unit.to_owned(),
            number(figure.ours),
            figure.floor.map_or_else(String::new, number),
            peers
                .map(|(name, value)| format!("{name} {}", number(*value)))
                .collect::<Vec<_>>()
                .join(", "),
            figure.ratio.map_or_else(String::new, number),
        ]);
    }
    Ok(())
}

/// Runs something several times and returns the median of its durations in seconds.
fn median_seconds(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[ROUNDS / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_compared_with_its_best_peer_or_else_its_floor() {
        let figure = Figure::new("b", "f", "s", 3.0);
        assert_eq!(figure.ratio, None);
        let figure = figure.floor(2.0);
        assert_eq!(figure.ratio, Some(1.5));
        let figure = figure.peer("slow", 12.0).peer("fast", 6.0);
        assert_eq!(figure.ratio, Some(0.5));
        let json = serde_json::to_value(&figure).unwrap();
        assert_eq!(json["peers"]["fast"], 6.0);
    }
}
