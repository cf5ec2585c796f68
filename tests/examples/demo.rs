//! What `cargo xtask demo` shows: a bottle that may reach one host, and tries more.
//!
//! ```text
//! this program ── starts an HTTPS server with a CA of its own, and a listener that counts
//!              ── runs `bottle start --allow allowed.test … -- bash -c SCRIPT`
//!              ── reads the bottle's record, prints both sides of each step, and judges
//! ```
//!
//! It is given what the tests are given, by the same variables.
#![forbid(unsafe_code)]

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bottle_core::event::{Event, Happening};
use bottle_core::policy::Reason;
use bottle_core::text::{Escaped, EscapedUpTo};
use bottle_tests::cli::run;
use bottle_tests::given::Given;
use bottle_tests::host::TestHost;
use bottle_tests::token::github;
use bottle_tests::upstream::{Tripwire, Upstream};
use tokio::runtime::Runtime;

const NAME: &str = "demo";

/// Where a guest finds the gateway as a proxy.
const PROXY: &str = "http://198.18.0.1:3128";

/// What precedes a step's output; nothing else begins a line so.
const MARK: &str = "@@step ";

/// What the demo tries, and how it has to end.
struct Step {
    title: &'static str,
    /// A command of the script.
    command: String,
    /// What the guest has to see.
    guest_sees: &'static str,
    /// Finds the step's events in the record.
    recorded: fn(&Happening) -> bool,
    /// Whether there has to be one.
    needs_event: bool,
}

fn main() -> ExitCode {
    let result = Runtime::new()
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(demo()));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn demo() -> Result<()> {
    let path = |name: &str| {
        env::var_os(name).map(PathBuf::from).with_context(|| {
            format!("`{name}` is not set; this program is run by `cargo xtask demo`")
        })
    };
    // Lives as long as the program.
    let given: &'static Given = Box::leak(Box::new(Given {
        bottle: path("BOTTLE_TEST_BOTTLE")?,
        image: path("BOTTLE_TEST_IMAGE")?,
        kernel: path("BOTTLE_TEST_KERNEL")?,
    }));
    let host = TestHost::new(given)?;
    let upstream = Upstream::start(&["allowed.test"]).await?;
    let tripwire = Tripwire::start().await?;
    let steps = steps(tripwire.address.port());

    let mut args = host.start_args(NAME);
    args.extend(host.allow_args(&upstream)?);
    say(&format!("$ bottle {} -- bash -c SCRIPT\n", args.join(" ")));
    args.extend(["--", "bash", "-c", &script(&steps)].map(str::to_owned));
    let output = run(host.bottle(&args), b"").await?;

    let record = record(&host).with_context(|| format!("the bottle said:\n{output}"))?;
    let events: Vec<Event> = record
        .lines()
        .map(|line| serde_json::from_str(line).context("a line of the record is no event"))
        .collect::<Result<_>>()?;
    let seen = String::from_utf8_lossy(&output.stdout);
    let mut surprises = 0;
    for (number, step) in steps.iter().enumerate() {
        surprises += usize::from(!show(number, step, &seen, &events));
    }

    let (uploads, knocks) = (upstream.seen("/upload").len(), tripwire.connections());
    say(&format!(
        "upstream saw {} requests, {uploads} of them uploads; the listener on the host's loopback \
         saw {knocks} connections",
        upstream.seen("/").len(),
    ));
    if surprises > 0 || uploads > 0 || knocks > 0 {
        bail!("not as it should be; the bottle said:\n{output}");
    }
    say("all as it should be");
    Ok(())
}

/// Reads the record of the only bottle that there ever was; its id was made from its name.
fn record(host: &TestHost) -> Result<String> {
    let bottles = host.dir.join("state/bottle/bottles");
    let bottle = fs::read_dir(&bottles)
        .with_context(|| format!("cannot list `{}`", bottles.display()))?
        .find_map(Result::ok)
        .with_context(|| format!("`{}` holds no bottle", bottles.display()))?;
    let path = bottle.path().join("record.jsonl");
    fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))
}

fn steps(port: u16) -> [Step; 5] {
    let curl = "curl -sS --max-time 60 -w '\\nHTTP %{http_code}\\n'";
    // Well-formed, with a valid checksum, and nobody's.
    let token = github("demo");
    [
        Step {
            title: "the host that it may reach",
            command: format!("{curl} https://allowed.test/hello"),
            guest_sees: "HTTP 200",
            recorded: |what| {
                matches!(what, Happening::Allowed { host, path, .. }
                    if host == "allowed.test" && path.as_deref() == Some("/hello"))
            },
            needs_event: true,
        },
        Step {
            title: "another host",
            command: format!("{curl} https://elsewhere.example.org/"),
            guest_sees: "HTTP 403",
            recorded: |what| {
                matches!(what, Happening::Refused { host, reason: Reason::HostNotAllowed, .. }
                    if host == "elsewhere.example.org")
            },
            needs_event: true,
        },
        Step {
            title: "a GitHub token, sent to the host that it may reach",
            command: format!("{curl} --data 'note={token}' https://allowed.test/upload"),
            guest_sees: "request body contains secret: GitHub Token",
            recorded: |what| {
                matches!(what, Happening::Refused { host, reason: Reason::SecretFound, .. }
                    if host == "allowed.test")
            },
            needs_event: true,
        },
        Step {
            title: "the host's loopback, by the gateway",
            command: format!("{curl} --insecure --proxy {PROXY} https://127.0.0.1:{port}/"),
            guest_sees: "403",
            recorded: |what| matches!(what, Happening::Refused { host, .. } if host == "127.0.0.1"),
            needs_event: true,
        },
        Step {
            title: "the host's loopback, directly (it is the bottle's own: nothing listens there)",
            command: format!("{curl} --noproxy '*' http://127.0.0.1:{port}/"),
            guest_sees: "HTTP 000",
            recorded: |_| false,
            needs_event: false,
        },
    ]
}

/// Writes the script: a mark, then the step; a failure is part of the show.
fn script(steps: &[Step]) -> String {
    let mut script = String::from("exec 2>&1\n");
    for (number, step) in steps.iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = writeln!(script, "echo; echo '{MARK}{number}'; {}", step.command);
    }
    script.push_str("exit 0\n");
    script
}

/// Prints both sides of a step and says whether they are what they should be.
fn show(number: usize, step: &Step, seen: &str, events: &[Event]) -> bool {
    say(&format!("{}. {}", number + 1, step.title));
    let seen: Vec<&str> = seen
        .lines()
        .skip_while(|line| **line != format!("{MARK}{number}"))
        .skip(1)
        .take_while(|line| !line.starts_with(MARK))
        .filter(|line| !line.trim().is_empty())
        .collect();
    for line in &seen {
        say(&format!("   guest    {}", Escaped(line)));
    }
    let mut count = 0;
    for event in events.iter().filter(|event| (step.recorded)(&event.what)) {
        count += 1;
        say(&format!("   gateway  {}", described(&event.what)));
    }
    if count == 0 {
        say("   gateway  (nothing: it never came out of the bottle)");
    }
    let good =
        seen.iter().any(|line| line.contains(step.guest_sees)) && (count > 0) == step.needs_event;
    if !good {
        say(&format!(
            "   UNEXPECTED: the guest should have seen `{}`",
            step.guest_sees
        ));
    }
    say("");
    good
}

fn described(what: &Happening) -> String {
    let text = serde_json::to_string(what).unwrap_or_default();
    EscapedUpTo(&text, 600).to_string()
}

/// Writes a line; a reader that went away is no error.
fn say(text: &str) {
    drop(writeln!(io::stdout(), "{text}"));
}
