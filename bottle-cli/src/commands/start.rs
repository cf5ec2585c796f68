//! `bottle start`: plan, start, session, removal.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Error, anyhow};
use bottle_core::backend::{Backend, Command, Plan};
use bottle_core::event::{Event, Happening};
use bottle_core::id::BottleId;
use bottle_core::policy::Policy;
use bottle_core::secret::{MIN_SECRET_LEN, Secret};
use bottle_core::spec::{Env, Overlay, Spec, UpstreamProxy};
use bottle_core::text::EscapedUpTo;
use serde_json::json;
use tokio::task::spawn_blocking;
use zeroize::Zeroizing;

use super::print;
use crate::args::{Args, EnvArg, SecretRef, StartArgs};
use crate::exit::Status;
use crate::failure::Failure;
use crate::host::{Host, Lookup};
use crate::names;
use crate::printer::Printer;
use crate::progress::{Progress, Verbosity};
use crate::session::{OnTerminal, Outcome, Role, Session};
use crate::terminal::DetachKeys;

/// The longest line of a plan, in characters.
const MAX_LINE: usize = 1024;

/// The most bytes of a file that a flag names.
const MAX_FILE: u64 = 1 << 20;

pub(super) async fn run(
    args: &Args,
    start: &StartArgs,
    host: &mut Host,
    printer: &Printer,
) -> Result<Status, Failure> {
    let backend = host.registry.make(&args.backend)?;
    let spec = spec(start, host)?;
    if let Some(name) = &start.name {
        refuse_a_name_that_runs(&*backend, name).await?;
    }
    let planner = Arc::clone(&backend);
    let plan = tokio::select! {
        // It may have to ask a registry.
        plan = spawn_blocking(move || planner.plan(&spec)) => {
            plan.expect("planning does not panic")?
        }
        Some(signal) = host.signals.recv() => return Ok(Status::signaled(signal.number())),
    };
    if start.dry_run {
        return print(printer, &shown(&plan, start.json));
    }
    let keys = start.detach_keys.clone().unwrap_or_default();
    launch(&*backend, plan, keys, args.verbosity(), host, printer).await
}

/// Two bottles of one name can be told apart by their ids, but whoever names one means that one.
async fn refuse_a_name_that_runs(backend: &dyn Backend, name: &BottleId) -> Result<(), Failure> {
    let all = backend.list().await?;
    match all.iter().find(|it| it.name == *name && it.runs()) {
        None => Ok(()),
        Some(_) => Err(
            Failure::user(anyhow!("a bottle named `{name}` runs already")).hint(format!(
                "`bottle attach {name}` connects to it, `bottle exec {name} CMD` runs a command in \
                 it; or choose another name"
            )),
        ),
    }
}

/// Starts what was planned: in the background, or with us in front of it until it has ended.
pub(super) async fn launch(
    backend: &dyn Backend,
    plan: Plan,
    keys: DetachKeys,
    verbosity: Verbosity,
    host: &mut Host,
    printer: &Printer,
) -> Result<Status, Failure> {
    let record = plan.lines.iter().find(|line| line.what == "record");
    let record = record.map(|line| line.value.clone());
    let Spec {
        detached,
        kept,
        stdin,
        tty,
        ..
    } = plan.spec;
    let mut command = Command::new::<String>([]);
    command.main = true;
    command.stdin = stdin;
    command.unheard = detached;
    let terminal = host.terminal.clone().filter(|_| tty && !detached);
    if tty {
        if terminal.is_none() && !detached {
            return Err(Failure::user(anyhow!(
                "standard input and output are no terminal to put in front of the command"
            ))
            .hint("leave `--tty` away, or start it in the background with `--detach`"));
        }
        command.tty = Some(terminal.as_ref().map(|it| it.window()).unwrap_or_default());
        let term = (host.variable)("TERM").and_then(|term| term.into_string().ok());
        command
            .env
            .extend(term.map(|term| ("TERM".to_owned(), term)));
    }

    let progress = Progress::new(printer, &plan.id, verbosity, host.stderr_is_terminal);
    let bottle = tokio::select! {
        started = backend.start(plan, &progress) => started?,
        Some(signal) = host.signals.recv() => return Ok(Status::signaled(signal.number())),
    };
    progress.finish();
    let id = bottle.id().clone();
    let process = tokio::select! {
        process = bottle.exec(&command) => process,
        Some(signal) = host.signals.recv() => {
            bottle.remove().await?;
            return Ok(Status::signaled(signal.number()));
        }
    };
    let process = match process {
        Ok(process) => process,
        Err(error) => {
            // It never ran: there is nothing to keep.
            bottle.remove().await?;
            return Err(error.into());
        }
    };
    if detached {
        return print(printer, &format!("{id}\n"));
    }

    let session = Session {
        bottle: bottle.as_ref(),
        printer,
        signals: &mut host.signals,
        role: Role::Owner,
        terminal: terminal.map(|terminal| OnTerminal {
            terminal,
            keys: Some(keys),
        }),
    };
    let outcome = session.run(process, &mut host.stdin).await;
    if let Ok(Outcome::Left) = outcome {
        bottle.release().await?;
        printer.say(&format!("detached; `bottle attach {id}` comes back"));
        return Ok(Status::DONE);
    }
    let ended = if kept {
        bottle.stop(Duration::ZERO).await
    } else {
        bottle.remove().await
    };
    // What happened is worth telling however the session ended; a record that cannot be read is
    // told by the removal.
    let events = backend.events(&id, 1).await.unwrap_or_default();
    if let Some(words) = summary(&events, record.as_deref(), verbosity, &id, kept) {
        printer.say(&words);
    }
    let status = match outcome? {
        Outcome::Ended(status) => status,
        Outcome::Left => Status::DONE,
    };
    ended?;
    Ok(status)
}

/// Makes the specification of the flags, and looks up what they refer to.
fn spec(start: &StartArgs, host: &Host) -> Result<Spec, Failure> {
    let StartArgs {
        image,
        pull,
        name,
        allow,
        env,
        env_file,
        secret,
        user,
        cpus,
        memory,
        disk,
        ephemeral,
        upstream_ca,
        resolve,
        detach,
        interactive,
        tty,
        detach_keys: _,
        keep,
        rm,
        label,
        timeout,
        publish,
        dry_run: _,
        json: _,
        command,
    } = start;
    let Some(image) = image.clone() else {
        return Err(Failure::user(anyhow!("no image was given")).hint(
            "name one: `bottle start IMAGE`; `cargo xtask images build base` makes one and prints \
             its directory, which is the image `oci:DIR`",
        ));
    };
    let mut spec = Spec::new(name.clone().unwrap_or_else(names::make_up), image);
    spec.pull = pull.unwrap_or_default();
    spec.command = (!command.is_empty()).then(|| command.clone());
    spec.user.clone_from(user);
    spec.env = variables(&with_files(env, env_file)?, host)?;
    spec.policy = Policy::new(allow.iter().cloned());
    spec.resolve.clone_from(resolve);
    for path in upstream_ca {
        spec.upstream_roots.push(certificates(path)?);
    }
    for reference in secret {
        spec.known_values.push(value(reference, &*host.variable)?);
    }
    spec.proxy = proxy(&*host.variable)?;
    spec.detached = *detach;
    spec.kept = *keep || (*detach && !rm);
    spec.stdin = !detach || *interactive;
    spec.tty = *tty;
    spec.labels = label.iter().cloned().collect();
    spec.timeout = timeout.map(Into::into);
    spec.ports.clone_from(publish);
    spec.resources.vcpus = cpus.unwrap_or(spec.resources.vcpus);
    spec.resources.memory = memory.unwrap_or(spec.resources.memory);
    if let Some(size) = disk {
        spec.resources.overlay = Overlay::Disk(*size);
    }
    if *ephemeral {
        spec.resources.overlay = Overlay::Memory;
    }
    Ok(spec)
}

/// Finds the proxy through which this host reaches the world, as curl does: by variables, of which
/// the ones in lower case win.
pub(super) fn proxy(variable: &Lookup) -> Result<Option<UpstreamProxy>, Failure> {
    let look_up = |upper: &str| -> Result<Option<String>, Failure> {
        let found = variable(&upper.to_lowercase()).or_else(|| variable(upper));
        let text = found.map(|value| value.into_string()).transpose();
        let text =
            text.map_err(|_| Failure::user(anyhow!("the value of `{upper}` is not UTF-8")))?;
        Ok(text.filter(|text| !text.is_empty()))
    };
    let Some(url) = look_up("HTTPS_PROXY")? else {
        return Ok(None);
    };
    Ok(Some(UpstreamProxy {
        url: Zeroizing::new(url),
        excepted: look_up("NO_PROXY")?.unwrap_or_default(),
    }))
}

/// Reads files of variables; what stands on the command line comes after them and wins.
pub(super) fn with_files(env: &[EnvArg], files: &[PathBuf]) -> Result<Vec<EnvArg>, Failure> {
    let mut all = Vec::new();
    for path in files {
        let what = || format!("cannot read variables from `{}`", path.display());
        let bytes = read(path).with_context(what).map_err(Failure::user)?;
        let text = String::from_utf8(bytes)
            .with_context(what)
            .map_err(Failure::user)?;
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let parsed = line.parse().map_err(|why: String| {
                Failure::user(
                    anyhow!(why)
                        .context(format!("line {number}"))
                        .context(what()),
                )
            })?;
            all.push(parsed);
        }
    }
    all.extend_from_slice(env);
    Ok(all)
}

pub(super) fn variables(args: &[EnvArg], host: &Host) -> Result<Env, Failure> {
    let mut env = Env::default();
    for EnvArg { name, value } in args {
        let value = match value {
            Some(value) => value.clone(),
            None => match (host.variable)(name).map(|value| value.into_string()) {
                Some(Ok(value)) => value,
                Some(Err(_)) => {
                    return Err(Failure::user(anyhow!("the value of `{name}` is not UTF-8")));
                }
                // As docker does: what is not set here is not set there.
                None => continue,
            },
        };
        env.set(name, &value).map_err(Failure::user)?;
    }
    Ok(env)
}

fn certificates(path: &Path) -> Result<String, Failure> {
    let what = || format!("cannot read CA certificates from `{}`", path.display());
    let bytes = read(path).with_context(what).map_err(Failure::user)?;
    match String::from_utf8(bytes) {
        Ok(text) if text.contains("-----BEGIN CERTIFICATE-----") => Ok(text),
        Ok(_) | Err(_) => Err(Failure::user(
            anyhow!("there is no `-----BEGIN CERTIFICATE-----` in it").context(what()),
        )
        .hint("`openssl x509 -inform der -in FILE` turns a DER file into PEM")),
    }
}

pub(super) fn value(reference: &SecretRef, variable: &Lookup) -> Result<Secret, Failure> {
    let what = || format!("cannot take secret `{reference}`");
    let bytes = match reference {
        SecretRef::Env(name) => match variable(name) {
            Some(value) => value.into_encoded_bytes(),
            None => {
                return Err(Failure::user(
                    anyhow!("the variable `{name}` is not set").context(what()),
                ));
            }
        },
        SecretRef::File(path) => {
            let mut bytes = read(path).with_context(what).map_err(Failure::user)?;
            // Editors and `echo` end files with a newline that is not meant.
            while bytes
                .last()
                .is_some_and(|byte| matches!(byte, b'\n' | b'\r'))
            {
                bytes.pop();
            }
            bytes
        }
    };
    Secret::new(reference.to_string(), bytes).ok_or_else(|| {
        let why =
            format!("it has fewer than {MIN_SECRET_LEN} bytes and would be found by accident");
        Failure::user(Error::msg(why).context(what()))
    })
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut file = File::open(path)?.take(MAX_FILE + 1);
    if file.read_to_end(&mut bytes)? as u64 > MAX_FILE {
        return Err(io::Error::other(format!(
            "it has more than {MAX_FILE} bytes"
        )));
    }
    Ok(bytes)
}

fn shown(plan: &Plan, json: bool) -> String {
    let Plan {
        spec: _,
        id,
        backend,
        lines,
        again: _,
    } = plan;
    if json {
        let plan = json!({ "id": id, "backend": backend, "plan": lines });
        return format!("{plan}\n");
    }
    let width = lines.iter().map(|line| line.what.len()).max().unwrap_or(0);
    let line =
        |what: &str, value: &str| format!("{what:<width$}  {}\n", EscapedUpTo(value, MAX_LINE));
    let name = line("name", id.as_str());
    let rest = lines.iter().map(|it| line(it.what, &it.value));
    [name].into_iter().chain(rest).collect()
}

/// Words what is worth knowing once the bottle has gone, if anything is.
fn summary(
    events: &[Event],
    record: Option<&str>,
    verbosity: Verbosity,
    id: &BottleId,
    kept: bool,
) -> Option<String> {
    let refused = events
        .iter()
        .filter(|event| matches!(event.what, Happening::Refused { .. }))
        .count();
    let words = match (verbosity, refused) {
        (Verbosity::Quiet, _) | (Verbosity::Normal, 0) => return None,
        (Verbosity::Verbose, 0) if kept => format!("kept `{id}`; nothing was refused"),
        (Verbosity::Verbose, 0) => format!("removed `{id}`; nothing was refused"),
        (Verbosity::Normal | Verbosity::Verbose, 1) => "1 request was refused".to_owned(),
        (Verbosity::Normal | Verbosity::Verbose, many) => format!("{many} requests were refused"),
    };
    Some(match record {
        Some(path) => format!("{words}; see {}", EscapedUpTo(path, MAX_LINE)),
        None => words,
    })
}
