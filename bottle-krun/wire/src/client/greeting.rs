//! The first words of both ends: who speaks, and whether they understand each other.
//!
//! A shim lives as long as its bottle, so clients of later releases talk to it, and after a
//! downgrade those of earlier ones. The rules are in `docs/compatibility.md`: within one
//! [`PROTOCOL`], messages and fields are only added, each with a new [`MINOR`].

use std::io;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::message;

/// Changes when peers of different values cannot understand each other.
pub const PROTOCOL: u32 = 1;

/// Counts what was added within one [`PROTOCOL`].
pub const MINOR: u32 = 0;

/// The first words of both ends. This type can only ever gain fields.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Greeting {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// [`MINOR`].
    pub minor: u32,
    /// The release, for people.
    pub release: String,
}

impl Greeting {
    /// Returns our own.
    pub fn own() -> Self {
        Self {
            protocol: PROTOCOL,
            minor: MINOR,
            release: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// Why a peer is not talked to.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GreetError {
    /// The connection failed.
    #[error("cannot greet the peer")]
    Io {
        /// Why.
        source: io::Error,
    },
    /// The peer went away, or said something else.
    #[error("the peer did not greet")]
    None,
    /// The peer speaks another protocol.
    #[error(
        "the peer is of bottle {release}, whose protocol {protocol} this release does not speak \
         (its own is {PROTOCOL})"
    )]
    Protocol {
        /// The peer's release.
        release: String,
        /// The peer's protocol.
        protocol: u32,
    },
}

/// Greets the peer on a fresh connection, and returns what it said.
///
/// # Errors
///
/// [`GreetError`]; nothing more can be said on the connection then.
pub async fn greet<T: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut T,
) -> Result<Greeting, GreetError> {
    let io = |source| GreetError::Io { source };
    message::write(socket, &Greeting::own()).await.map_err(io)?;
    let peer: Greeting = message::read(socket)
        .await
        .map_err(io)?
        .ok_or(GreetError::None)?;
    if peer.protocol == PROTOCOL {
        Ok(peer)
    } else {
        let Greeting {
            protocol, release, ..
        } = peer;
        Err(GreetError::Protocol { release, protocol })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn two_ends_that_greet_learn_each_others_release() {
        let (mut client, mut shim) = duplex(1 << 10);
        let (seen, told) = tokio::join!(greet(&mut client), greet(&mut shim));
        assert_eq!(seen.unwrap(), Greeting::own());
        assert_eq!(told.unwrap(), Greeting::own());
    }

    #[tokio::test]
    async fn a_later_minor_with_more_fields_is_understood_and_another_protocol_refused() {
        for (text, understood) in [
            (
                r#"{"protocol":1,"minor":9,"release":"1.9.0","more":[]}"#,
                true,
            ),
            (r#"{"protocol":2,"minor":0,"release":"2.0.0"}"#, false),
        ] {
            let (mut client, mut shim) = duplex(1 << 10);
            let length = u32::try_from(text.len()).unwrap();
            shim.write_all(&length.to_le_bytes()).await.unwrap();
            shim.write_all(text.as_bytes()).await.unwrap();
            match greet(&mut client).await {
                Ok(peer) => assert!(understood && peer.minor == 9),
                Err(GreetError::Protocol {
                    protocol: 2,
                    release,
                }) => {
                    assert!(!understood && release == "2.0.0");
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    }
}
