//! Why init cannot go on.

use std::io;

use nix::errno::Errno;
use thiserror::Error;

/// What ends the VM.
#[derive(Debug, Error)]
pub(crate) enum InitError {
    /// This program was started somewhere else.
    #[error("this program is PID 1 of a bottle and does nothing anywhere else")]
    NotPid1,
    /// A system call failed.
    #[error("cannot {operation} `{object}`")]
    System {
        operation: &'static str,
        object: String,
        source: io::Error,
    },
    /// No disk has this serial.
    #[error("no disk has the serial `{serial}`; there are: {found}")]
    NoDisk { serial: &'static str, found: String },
    /// The nonce has another length.
    #[error("the nonce is {length} bytes long, not 32")]
    Nonce { length: usize },
    /// The host speaks another version.
    #[error("the host speaks version `{found}`, this init `{own}`")]
    Version { found: String, own: &'static str },
    /// The host went away.
    #[error("the connection with the host is over")]
    HostGone,
    /// The kernel answered a netlink request with something else.
    #[error("netlink answered `{object}` with no acknowledgement")]
    Netlink { object: &'static str },
    /// The image's user database does not know a user or group.
    #[error("the image has no {kind} `{name}`")]
    Unknown { kind: &'static str, name: String },
    /// Provisioning data make no sense.
    #[error("cannot use {what}: {why}")]
    Unusable { what: &'static str, why: String },
}

/// Names the operation and the object of a failed system call.
pub(crate) fn failed<E: Into<io::Error>>(
    operation: &'static str,
    object: impl Into<String>,
) -> impl FnOnce(E) -> InitError {
    let object = object.into();
    move |source| InitError::System {
        operation,
        object,
        source: source.into(),
    }
}

/// The whole chain of an error on one line.
pub(crate) fn chain(error: &InitError) -> String {
    match error {
        InitError::System { source, .. } => format!("{error}: {source}"),
        InitError::NotPid1
        | InitError::NoDisk { .. }
        | InitError::Nonce { .. }
        | InitError::Version { .. }
        | InitError::HostGone
        | InitError::Netlink { .. }
        | InitError::Unknown { .. }
        | InitError::Unusable { .. } => error.to_string(),
    }
}

/// Whether something was done before.
pub(crate) fn unless_busy(result: nix::Result<()>) -> nix::Result<()> {
    match result {
        Err(Errno::EBUSY) => Ok(()),
        other => other,
    }
}
