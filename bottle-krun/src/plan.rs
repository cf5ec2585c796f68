//! What a specification comes to with a given image: the words of a plan, and the launch.

use std::io;
use std::path::Path;

use bottle_core::backend::PlanLine;
use bottle_core::id::{BottleId, MAX_ID_LEN};
use bottle_core::ports::Publish;
use bottle_core::spec::{Overlay, Resolve, Spec};
use bottle_core::text::Escaped;
use bottle_egress::HostProxy;
use bottle_image::{ImageConfig, ImageDisk, ImageRef};
use bottle_wire::client::{Launch, LaunchImage, LaunchPort, LaunchResolve};
use thiserror::Error;

use crate::random;
use crate::rules;
use crate::state::Dirs;
use crate::stop_signal;
use crate::stored::millis;

/// Derives an id from a name: `<name>-<5 base32 characters>`.
pub(crate) fn new_id(name: &BottleId) -> io::Result<BottleId> {
    let suffix = random::base32::<5>()?;
    let longest = MAX_ID_LEN - 1 - suffix.len();
    let name: String = name.as_str().chars().take(longest).collect();
    let id = format!("{}-{suffix}", name.trim_end_matches('-'));
    Ok(id.parse().expect("a name and base32 characters make an id"))
}

/// What an image and a bottle together run, and how it is asked to end.
#[derive(Debug)]
pub(crate) struct Workload {
    /// At least one word.
    pub(crate) argv: Vec<String>,
    /// The Linux number.
    pub(crate) stop_signal: u8,
}

impl Workload {
    /// Combines entrypoint and command as docker does.
    ///
    /// # Errors
    ///
    /// [`Unrunnable`] says what the image lacks.
    pub(crate) fn of(spec: &Spec, config: &ImageConfig) -> Result<Self, Unrunnable> {
        let command = spec.command.as_ref().unwrap_or(&config.cmd);
        let argv: Vec<_> = config.entrypoint.iter().chain(command).cloned().collect();
        if argv.is_empty() {
            return Err(Unrunnable::NoCommand);
        }
        let unknown = || Unrunnable::StopSignal {
            name: config.stop_signal.clone(),
        };
        Ok(Self {
            argv,
            stop_signal: stop_signal::number(&config.stop_signal).ok_or_else(unknown)?,
        })
    }
}

/// Why nothing can be run in a bottle of an image.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum Unrunnable {
    /// Neither the image nor the specification names a command.
    #[error("the image names neither an entrypoint nor a command")]
    NoCommand,
    /// The image's stop signal is none.
    #[error("the image's stop signal `{}` is no signal of Linux", Escaped(name))]
    StopSignal {
        /// What it says.
        name: String,
    },
}

impl Unrunnable {
    /// Returns what a person can do about it.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::NoCommand => "name a command: `bottle start … -- COMMAND`",
            Self::StopSignal { .. } => "build the image again with a `STOPSIGNAL` such as SIGTERM",
        }
    }
}

/// The environment of every process: the image's, overridden by the bottle's.
fn environment(spec: &Spec, config: &ImageConfig) -> Vec<(String, String)> {
    let mut env = config.env.clone();
    for (name, value) in spec.env.iter() {
        env.retain(|(known, _)| known != name);
        env.push((name.to_owned(), value.to_owned()));
    }
    env
}

fn user_of(spec: &Spec, config: &ImageConfig) -> String {
    spec.user
        .as_ref()
        .map_or_else(|| config.user.clone(), |user| user.as_str().to_owned())
}

/// Says line by line what a start would do.
pub(crate) fn plan_lines(
    spec: &Spec,
    image: &ImageRef,
    workload: &Workload,
    kernel: &Path,
    proxy: Option<&HostProxy>,
    record: &Path,
) -> Vec<PlanLine> {
    let line = |what, value| PlanLine { what, value };
    let or = |text: String, none: &str| {
        if text.is_empty() {
            none.to_owned()
        } else {
            text
        }
    };
    let mut lines = vec![
        line("image", format!("{} {}", spec.image, image.manifest)),
        line("kernel", kernel.display().to_string()),
        line("machine", {
            let sizes = spec.resources;
            format!(
                "{} CPU, {}, overlay {}",
                sizes.vcpus, sizes.memory, sizes.overlay
            )
        }),
        line("user", or(user_of(spec, &image.config), "root")),
        line("command", workload.argv.join(" ")),
        line(
            "env",
            or(
                spec.env
                    .iter()
                    .map(|(name, _)| name)
                    .collect::<Vec<_>>()
                    .join(" "),
                "nothing added",
            ),
        ),
    ];
    if spec.policy.rules().is_empty() {
        lines.push(line("egress", "nothing is reachable".to_owned()));
    }
    lines.extend(
        spec.policy
            .rules()
            .iter()
            .map(|rule| line("egress", rule.to_string())),
    );
    lines.extend(spec.resolve.iter().map(|resolve| {
        let Resolve {
            host,
            port,
            address,
            dial_port,
        } = resolve;
        line(
            "resolve",
            format!("{host}:{port} is dialed at {address} port {dial_port}"),
        )
    }));
    lines.extend(proxy.map(|proxy| line("proxy", proxy.to_string())));
    if !spec.upstream_roots.is_empty() {
        lines.push(line(
            "upstream-ca",
            format!("{} further roots", spec.upstream_roots.len()),
        ));
    }
    lines.extend(
        spec.known_values
            .iter()
            .map(|secret| line("secret", format!("{} may not leave", secret.name()))),
    );
    lines.extend(
        spec.ports
            .iter()
            .map(|it| line("port", format!("{} leads to {} in it", it.host, it.guest))),
    );
    if let Some(limit) = spec.timeout {
        lines.push(line("timeout", format!("{limit:?}")));
    }
    lines.push(line(
        "life",
        match (spec.detached, spec.kept) {
            (false, false) => "ends with this command, and nothing stays",
            (false, true) => "ends with this command, and can be started again",
            (true, false) => "goes on by itself, and nothing stays when it ends",
            (true, true) => "goes on by itself, and can be started again when it has ended",
        }
        .to_owned(),
    ));
    lines.push(line("record", record.display().to_string()));
    lines
}

/// Puts everything together that the shim needs.
pub(crate) fn launch_of(
    spec: &Spec,
    id: &BottleId,
    dirs: &Dirs,
    disk: &ImageDisk,
    workload: Workload,
    kernel: &Path,
    helper: &Path,
) -> Launch {
    let Spec {
        name,
        image: _,
        pull: _,
        command: _,
        user: _,
        env: _,
        policy,
        resolve,
        proxy,
        upstream_roots,
        known_values,
        resources,
        detached,
        kept,
        stdin: _,
        tty: _,
        labels: _,
        ports,
        timeout,
    } = spec;
    let config = &disk.image.config;
    Launch {
        id: id.to_string(),
        hostname: name.to_string(),
        helper: helper.to_owned(),
        kernel: kernel.to_owned(),
        image: LaunchImage {
            descriptor: disk.descriptor.clone(),
            parts: disk.parts.clone(),
        },
        overlay: matches!(resources.overlay, Overlay::Disk(_)).then(|| dirs.overlay()),
        state_dir: dirs.state.clone(),
        runtime_dir: dirs.runtime.clone(),
        vcpus: resources.vcpus.0.get(),
        ram_mib: resources.memory.0,
        rules: rules::launched(policy),
        resolve: resolve
            .iter()
            .map(
                |Resolve {
                     host,
                     port,
                     address,
                     dial_port,
                 }| LaunchResolve {
                    host: host.to_string(),
                    port: *port,
                    dial: (*address, *dial_port).into(),
                },
            )
            .collect(),
        proxy: proxy
            .as_ref()
            .map(|proxy| (proxy.url.to_string(), proxy.excepted.clone())),
        upstream_roots: upstream_roots.clone(),
        known_values: known_values
            .iter()
            .map(|secret| (secret.name().to_owned(), secret.expose().to_vec()))
            .collect(),
        env: environment(spec, config),
        user: user_of(spec, config),
        cwd: config.working_dir.clone(),
        default_argv: workload.argv,
        stop_signal: workload.stop_signal,
        detached: *detached,
        kept: *kept,
        timeout_ms: timeout.map(millis),
        ports: ports
            .iter()
            .map(|Publish { host, guest }| LaunchPort {
                host: *host,
                guest: *guest,
            })
            .collect(),
    }
}
