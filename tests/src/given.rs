//! What the run was given, and the frame in which every test in a microVM runs.

use std::env;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

/// No test takes longer, emulated machines included.
const DEADLINE: Duration = Duration::from_secs(400);

/// What a run of these tests needs.
#[derive(Clone, Debug)]
pub struct Given {
    /// The `bottle` command, which is also the helper of the backend (`BOTTLE_TEST_BOTTLE`).
    pub bottle: PathBuf,
    /// An OCI layout of the base image (`BOTTLE_TEST_IMAGE`).
    pub image: PathBuf,
    /// The kernel library (`BOTTLE_TEST_KERNEL`).
    pub kernel: PathBuf,
}

impl Given {
    /// Reads the environment; the text says what is missing.
    fn find() -> Result<Self> {
        let path = |name: &str| -> Result<PathBuf> {
            let path = env::var_os(name).with_context(|| format!("`{name}` is not set"))?;
            let path = PathBuf::from(path);
            if !path.exists() {
                bail!("`{name}` is `{}`, which does not exist", path.display());
            }
            Ok(path)
        };
        Ok(Self {
            bottle: path("BOTTLE_TEST_BOTTLE")?,
            image: path("BOTTLE_TEST_IMAGE")?,
            kernel: path("BOTTLE_TEST_KERNEL")?,
        })
    }
}

/// Runs a check that needs a microVM, under a deadline; without one it is skipped and says so.
///
/// # Panics
///
/// If the check fails or takes too long; and instead of a skip if `BOTTLE_TEST_REQUIRE_VM` is set.
#[track_caller]
pub fn vm(check: impl AsyncFnOnce(&'static Given) -> Result<()>) {
    static GIVEN: OnceLock<Result<Given, String>> = OnceLock::new();
    let given = GIVEN.get_or_init(|| Given::find().map_err(|error| error.to_string()));
    let given = match given {
        Ok(given) => given,
        Err(why) if env::var_os("BOTTLE_TEST_REQUIRE_VM").is_some() => {
            panic!("this run may not skip a test, and {why}")
        }
        Err(why) => {
            // Not `eprintln!`, which libtest would swallow.
            drop(writeln!(
                io::stderr(),
                "SKIPPED, no microVM: {why} (use `cargo xtask smoke`)"
            ));
            return;
        }
    };
    let ended = runtime().block_on(async { timeout(DEADLINE, check(given)).await });
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("{error:?}"),
        Err(_) => panic!("the test did not end within {DEADLINE:?}"),
    }
}

/// Returns the one runtime on which servers and shared bottles outlive single tests.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        Builder::new_multi_thread()
            .enable_all()
            .build()
            .expect("a runtime needs only threads")
    })
}
