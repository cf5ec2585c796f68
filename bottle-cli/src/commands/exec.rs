//! `bottle exec`: one more process in a bottle that runs.

use anyhow::anyhow;
use bottle_core::backend::Command;

use super::start::{variables, with_files};
use crate::args::{Args, ExecArgs};
use crate::exit::Status;
use crate::failure::Failure;
use crate::found;
use crate::host::Host;
use crate::printer::Printer;
use crate::session::{OnTerminal, Outcome, Role, Session};

pub(super) async fn run(
    args: &Args,
    exec: &ExecArgs,
    host: &mut Host,
    printer: &Printer,
) -> Result<Status, Failure> {
    let ExecArgs {
        interactive,
        tty,
        detach,
        env,
        env_file,
        user,
        workdir,
        bottle,
        command: words,
    } = exec;
    let backend = host.registry.make(&args.backend)?;
    let mut command = Command::new(words);
    let env = variables(&with_files(env, env_file)?, host)?;
    command.env = env
        .iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    command.user.clone_from(user);
    command.cwd.clone_from(workdir);
    command.stdin = *interactive || *tty;
    command.unheard = *detach;
    let terminal = host.terminal.clone().filter(|_| *tty);
    if *tty {
        let Some(terminal) = &terminal else {
            return Err(Failure::user(anyhow!(
                "standard input and output are no terminal to put in front of the command"
            ))
            .hint("leave `--tty` away"));
        };
        command.tty = Some(terminal.window());
        let term = (host.variable)("TERM").and_then(|term| term.into_string().ok());
        let named = command.env.iter().any(|(name, _)| name == "TERM");
        command.env.extend(
            term.filter(|_| !named)
                .map(|term| ("TERM".to_owned(), term)),
        );
    }

    let bottle = found::open(&*backend, bottle).await?;
    let process = bottle.exec(&command).await?;
    if *detach {
        return Ok(Status::DONE);
    }
    let session = Session {
        bottle: bottle.as_ref(),
        printer,
        signals: &mut host.signals,
        role: Role::Visitor,
        terminal: terminal.map(|terminal| OnTerminal {
            terminal,
            keys: None,
        }),
    };
    match session.run(process, &mut host.stdin).await? {
        Outcome::Ended(status) => Ok(status),
        Outcome::Left => Ok(Status::DONE),
    }
}
