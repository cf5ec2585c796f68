//! `cargo xtask test`: everything, in the order in which it fails fastest.
//!
//! One line per phase says how long it took; all phases run that still make sense.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::built::{Built, VM_TESTS};
use crate::report::{say, took};
use crate::tree::Tree;
use crate::{task_check, task_images, task_setup, task_smoke};

/// How long the tests in microVMs may take: three times what they take emulated on two idle cores.
const VM_LIMIT: Duration = Duration::from_secs(40 * 60);

/// Runs the task; the exit status is that of the worst phase.
pub(crate) fn run(tree: &Tree) -> Result<u8> {
    let mut phases = Phases {
        start: Instant::now(),
        failed: Vec::new(),
    };
    phases.timed("setup", || task_setup::run(tree))?;
    let kernel = phases.timed("kernel", || task_setup::for_machines(tree))?;
    let checked = phases.timed("check", || task_check::run(tree));
    phases.note("check", checked);
    // Nothing below makes sense without these two.
    let built = phases.timed("build", || Built::workspace(tree))?;
    let image = phases.timed("image", || task_images::ensure(tree, "base"))?;
    let host = phases.timed("host tests", || host_tests(tree, &built, &image));
    phases.note("host tests", host);
    let vm = phases.timed("microVM tests", || {
        let args = task_smoke::Args::everything(VM_LIMIT);
        match task_smoke::with(tree, &args, &built, &kernel, &image)? {
            0 => Ok(()),
            code => bail!("exit status {code}"),
        }
    });
    phases.note("microVM tests", vm);
    phases.finish()
}

/// Unit, property and CLI tests, and the examples in the documentation.
///
/// The programs of the build are run as `cargo test` would: leaving a package out by `--exclude`
/// would change features and compile the dependencies again.
fn host_tests(tree: &Tree, built: &Built, image: &Path) -> Result<()> {
    let bottle = built.program("bottle")?;
    let mut failed = Vec::new();
    for test in built.tests.iter().filter(|test| test.package != VM_TESTS) {
        say(format!("running {} {}", test.package, test.target));
        let code = test
            .run()
            .env("CARGO_BIN_EXE_bottle", bottle)
            .env("BOTTLE_TEST_LAYOUT", image)
            .status()?;
        if code != 0 {
            failed.push(format!("{} {}", test.package, test.target));
        }
    }
    if tree
        .cargo()
        .args(["test", "--workspace", "--locked", "--doc"])
        .go()
        .is_err()
    {
        failed.push("documentation".to_owned());
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("these test programs failed: {}", failed.join("; "))
}

struct Phases {
    start: Instant,
    failed: Vec<&'static str>,
}

impl Phases {
    fn timed<T>(&self, name: &str, phase: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = phase();
        let word = if result.is_ok() { "done" } else { "FAILED" };
        say(format!("phase {name}: {word} in {}", took(start.elapsed())));
        result
    }

    fn note(&mut self, name: &'static str, result: Result<()>) {
        if let Err(error) = result {
            say(format!("error: {name}: {error:#}"));
            self.failed.push(name);
        }
    }

    fn finish(self) -> Result<u8> {
        let time = took(self.start.elapsed());
        if self.failed.is_empty() {
            say(format!("everything passed in {time}"));
            return Ok(0);
        }
        bail!("failed after {time}: {}", self.failed.join(", "))
    }
}
