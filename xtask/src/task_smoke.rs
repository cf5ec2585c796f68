//! `cargo xtask smoke`: the tests that need real microVMs.
//!
//! They run on this machine where KVM is usable, else all together in one outer guest. Either way
//! they are told by their environment what to work with:
//!
//! | variable | what it names |
//! |---|---|
//! | `BOTTLE_TEST_IMAGE` | the OCI layout of images/base |
//! | `BOTTLE_TEST_BOTTLE` | the `bottle` program |
//! | `BOTTLE_TEST_KERNEL` | the guest kernel library |
//! | `BOTTLE_TEST_REQUIRE_VM` | nothing; it is set so that no test skips itself |
//!
//! In the outer guest these are copies or bind mounts below `/run/bottle-test`, which every user
//! can reach; `TMPDIR` is on a disk; the users `tester` (1001, may use KVM) and `stranger` (1002, may
//! not) exist; `/dev/kvm` is 0660 root:kvm.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::built::{Built, JAIL_TESTS, TestProgram, VM_TESTS};
use crate::kvm::{Signs, signs};
use crate::outer::{self, Job};
use crate::report::{say, took};
use crate::run::{Run, quoted};
use crate::tree::Tree;
use crate::{task_images, task_setup};

/// Arguments of the task.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Run only tests whose name contains this
    filter: Option<String>,
    /// Run only this test program: `it` or `bottle_krun` (can be repeated)
    #[arg(long = "test", value_name = "NAME")]
    tests: Vec<String>,
    /// Use the outer guest even where KVM is usable
    #[arg(long)]
    outer: bool,
    /// Kill the outer guest after this many minutes
    #[arg(long, value_name = "MINUTES", default_value_t = 25)]
    timeout: u64,
    /// Run this shell script in the place of the tests, with the same environment
    #[arg(long, value_name = "FILE", conflicts_with_all = ["filter", "tests"])]
    script: Option<PathBuf>,
}

impl Args {
    /// Which tests of a program are run: of the jail's package only those that need a machine.
    fn filter_for(&self, test: &TestProgram) -> Option<&str> {
        let all = test.is(JAIL_TESTS).then_some("vmm::");
        self.filter.as_deref().or(all)
    }

    /// All tests, with a limit for the outer guest.
    pub(crate) fn everything(timeout: Duration) -> Self {
        Self {
            timeout: timeout.as_secs() / 60,
            ..Self::default()
        }
    }
}

/// Where microVMs run.
#[derive(Debug)]
pub(crate) enum Place {
    /// On this machine.
    Here,
    /// In the outer guest, for this reason.
    Outer(String),
}

/// Decides by the cheap signs alone; the probe needs a program that is not built yet.
pub(crate) fn first_look() -> Place {
    match signs(Path::new("/")) {
        Signs::Hopeful => Place::Here,
        Signs::Hopeless(why) => Place::Outer(why),
    }
}

/// Decides where microVMs run and says so: the cheap signs first, then a real vCPU.
pub(crate) fn choose(bottle: &Path) -> Place {
    let place = match first_look() {
        Place::Here if vcpu_runs(bottle) => Place::Here,
        Place::Here => Place::Outer("KVM shows every sign, but the probe ran no vCPU".into()),
        outer @ Place::Outer(_) => outer,
    };
    match &place {
        Place::Here => say("microVMs run on this machine: its KVM ran a vCPU"),
        Place::Outer(why) => say(format!(
            "microVMs run in the outer guest (emulated, slow): {why}"
        )),
    }
    place
}

/// Asks the probe of bottle-krun, the one that `bottle doctor` uses: it runs three instructions.
fn vcpu_runs(bottle: &Path) -> bool {
    Run::new("timeout")
        .arg("5")
        .arg(bottle)
        .arg("--bottle-krun-helper=probe-kvm")
        .output()
        .is_ok_and(|answer| answer.trim() == "\"Ran\"")
}

/// Runs the task; the exit status is the tests'.
pub(crate) fn run(tree: &Tree, args: &Args) -> Result<u8> {
    let kernel = task_setup::for_machines(tree)?;
    let image = task_images::ensure(tree, "base")?;
    let built = Built::workspace(tree)?;
    with(tree, args, &built, &kernel, &image)
}

/// Runs the tests of a build that is there.
pub(crate) fn with(
    tree: &Tree,
    args: &Args,
    built: &Built,
    kernel: &Path,
    image: &Path,
) -> Result<u8> {
    let bottle = built.program("bottle")?;
    let tests: Vec<&TestProgram> = built
        .tests
        .iter()
        .filter(|test| test.package == VM_TESTS || test.is(JAIL_TESTS))
        .filter(|test| args.tests.is_empty() || args.tests.contains(&test.target))
        .collect();
    if tests.is_empty() {
        bail!("no such test program: {}", args.tests.join(", "));
    }
    let start = Instant::now();
    let place = if args.outer {
        Place::Outer("asked for".into())
    } else {
        choose(bottle)
    };
    let code = match place {
        Place::Here => here(args, &tests, bottle, kernel, image)?,
        Place::Outer(_) => {
            task_setup::for_outer(tree)?;
            let mut script = stage(bottle, kernel, image)?;
            match &args.script {
                Some(file) => {
                    writeln!(script, "exec /bin/bash {}", word(&fs::canonicalize(file)?)?)?;
                }
                None => script.push_str(&job(args, &tests)?),
            }
            outer::run(
                tree,
                &Job {
                    script,
                    timeout: Duration::from_secs(args.timeout * 60),
                },
            )?
        }
    };
    say(format!("tests in microVMs took {}", took(start.elapsed())));
    Ok(code)
}

fn here(
    args: &Args,
    tests: &[&TestProgram],
    bottle: &Path,
    kernel: &Path,
    image: &Path,
) -> Result<u8> {
    let environment = |run: Run| {
        run.env("BOTTLE_TEST_BOTTLE", bottle)
            .env("BOTTLE_TEST_IMAGE", image)
            .env("BOTTLE_TEST_KERNEL", kernel)
            .env("BOTTLE_TEST_REQUIRE_VM", "1")
    };
    if let Some(file) = &args.script {
        return environment(Run::new("/bin/bash").arg(file)).status();
    }
    let mut worst = 0;
    for test in tests {
        worst = worst.max(environment(test.run().args(args.filter_for(test))).status()?);
    }
    Ok(worst)
}

/// Makes what the job works with reachable for every user, and writes its environment.
pub(crate) fn stage(bottle: &Path, kernel: &Path, image: &Path) -> Result<String> {
    let mut script = String::from("set -u\nmkdir -p /run/bottle-test/image\n");
    for (from, name, mode) in [(bottle, "bottle", "755"), (kernel, "libkrunfw.so.5", "644")] {
        writeln!(
            script,
            "install -m {mode} {} /run/bottle-test/{name}",
            word(from)?
        )?;
    }
    writeln!(
        script,
        "mount --bind {} /run/bottle-test/image",
        word(image)?
    )?;
    script.push_str(
        "export BOTTLE_TEST_BOTTLE=/run/bottle-test/bottle\n\
         export BOTTLE_TEST_IMAGE=/run/bottle-test/image\n\
         export BOTTLE_TEST_KERNEL=/run/bottle-test/libkrunfw.so.5\n\
         export BOTTLE_TEST_REQUIRE_VM=1\n",
    );
    Ok(script)
}

/// Runs what follows as the user that may use KVM and is not root.
const AS_TESTER: &str = "setpriv --reuid=tester --regid=tester --init-groups";

/// Runs each test program; the highest exit status is the job's.
fn job(args: &Args, tests: &[&TestProgram]) -> Result<String> {
    let mut script = String::from("worst=0\n");
    for test in tests {
        let TestProgram {
            package,
            target,
            directory,
            path,
        } = test;
        let copy = format!("/run/bottle-test/{target}.test");
        writeln!(script, "install -m 755 {} {}", word(path)?, word(&copy)?)?;
        writeln!(script, "export CARGO_MANIFEST_DIR={}", word(directory)?)?;
        writeln!(script, "cd \"$CARGO_MANIFEST_DIR\"")?;
        // The jail is another one for a user who is not root; it is looked at in both.
        let users: &[&str] = if test.is(JAIL_TESTS) {
            &["", AS_TESTER]
        } else {
            &[""]
        };
        for user in users {
            writeln!(
                script,
                "echo {}",
                word(&format!("     Running {package}: {target} {user}"))?
            )?;
            write!(script, "{user} {}", word(&copy)?)?;
            if let Some(filter) = args.filter_for(test) {
                write!(script, " {}", word(filter)?)?;
            }
            script.push_str("\nstatus=$?\n[ $status -le $worst ] || worst=$status\n");
        }
    }
    script.push_str("exit $worst\n");
    Ok(script)
}

/// Quotes a word; scripts are text, so a path that is none is refused.
pub(crate) fn word(word: &(impl AsRef<OsStr> + ?Sized)) -> Result<String> {
    match quoted(word).into_string() {
        Ok(text) => Ok(text),
        Err(odd) => bail!("`{}` is no UTF-8", odd.display()),
    }
}
