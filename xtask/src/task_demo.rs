//! `cargo xtask demo`: a bottle at work, in front of a reader.
//!
//! What it shows is in `tests/examples/demo.rs`, on the harness of the tests; this task makes what
//! it needs and runs it where microVMs can run.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;

use crate::built::Built;
use crate::outer::{self, Job};
use crate::run::Run;
use crate::task_smoke::{Place, choose, stage, word};
use crate::tree::Tree;
use crate::{task_images, task_setup};

const LIMIT: Duration = Duration::from_secs(10 * 60);

/// Runs the task; the exit status is the demo's.
pub(crate) fn run(tree: &Tree) -> Result<u8> {
    let kernel = task_setup::for_machines(tree)?;
    let image = task_images::ensure(tree, "base")?;
    let built = Built::demo(tree)?;
    let (bottle, demo) = (built.program("bottle")?, built.program("demo")?);
    match choose(bottle) {
        Place::Here => Run::new(demo)
            .env("BOTTLE_TEST_BOTTLE", bottle)
            .env("BOTTLE_TEST_IMAGE", &image)
            .env("BOTTLE_TEST_KERNEL", &kernel)
            .status(),
        Place::Outer(_) => {
            task_setup::for_outer(tree)?;
            let mut script = stage(bottle, &kernel, &image)?;
            writeln!(script, "exec {}", word(demo)?)?;
            outer::run(
                tree,
                &Job {
                    script,
                    timeout: LIMIT,
                },
            )
        }
    }
}
