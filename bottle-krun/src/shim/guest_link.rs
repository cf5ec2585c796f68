//! The shim's end of the one connection with init.
//!
//! The vsock port is a Unix socket here. One connection per boot is taken, which comes before any
//! workload exists. From then on the socket is a tripwire: whatever dials it is cut off unread, and
//! recorded. (AF_VSOCK has no namespaces, so any process of the guest can dial.)

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bottle_core::event::{EventSink, Happening};
use bottle_core::text::Escaped;
use bottle_wire::guest::{FromGuest, FromHost, GuestHello, HostHello, ToHost, ToInit, VERSION};
use bottle_wire::message;
use bottle_wire::mux::{self, Incoming, MuxError, MuxStream, Opener, Side};
use thiserror::Error;
use tokio::io::{AsyncWrite, ReadHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::record::Record;
use crate::state::{self, Dirs, StateError};
use crate::vmm::launch::CONTROL_SOCKET;

/// Where init's one connection arrives.
#[derive(Debug)]
pub(super) struct ControlSocket {
    listener: UnixListener,
}

/// How many processes that were killed for want of memory are recorded.
const MAX_KILLED_EVENTS: usize = 64;

/// How many attempts to dial the control port again are recorded.
const MAX_DIAL_EVENTS: usize = 16;

impl ControlSocket {
    /// Makes the directory that the jail sees, and listens in it.
    ///
    /// # Errors
    ///
    /// What the file system says.
    ///
    /// # Security
    ///
    /// Both are ours alone; the launch gives the jail's user what it needs of them.
    pub(super) fn bind(dirs: &Dirs) -> Result<Self, StateError> {
        let path = dirs.jail_sockets();
        state::private_dir(&path)?;
        let io = |op, path| move |source| StateError::Io { op, path, source };
        let dir = File::open(&path).map_err(io("open", path.clone()))?;
        let listener = UnixListener::bind(state::short_path(&dir, CONTROL_SOCKET))
            .map_err(io("listen on", dirs.control()))?;
        Ok(Self { listener })
    }

    /// Takes the one connection.
    ///
    /// # Errors
    ///
    /// What the socket says.
    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept().await?;
        Ok(stream)
    }

    /// Cuts off and records whoever dials after init, for as long as the bottle lives.
    ///
    /// # Security
    ///
    /// Nothing is read from such a connection.
    pub(super) async fn watch(self, record: Arc<Record>) {
        let mut count = 0;
        while let Ok((stream, _)) = self.listener.accept().await {
            drop(stream);
            if count < MAX_DIAL_EVENTS {
                count += 1;
                let what = "something in the guest dialed the control port again".to_owned();
                record.record(Happening::Violation { what });
            }
        }
    }
}

/// Both ends have proved who they are; streams can be opened.
#[derive(Debug)]
pub(super) struct GuestLink {
    /// Opens streams to init.
    pub(super) opener: Opener<FromHost>,
    /// Receives init's streams.
    pub(super) incoming: Incoming<FromGuest>,
    /// The control stream.
    pub(super) control: MuxStream,
    /// Ends when the connection does.
    pub(super) driver: JoinHandle<Result<(), MuxError>>,
    /// The guest kernel's release, as init says.
    pub(super) kernel: String,
}

impl GuestLink {
    /// Says hello, checks init's answer and starts the mux.
    ///
    /// # Errors
    ///
    /// [`LinkError`].
    pub(super) async fn hello(mut stream: UnixStream, nonce: &[u8; 32]) -> Result<Self, LinkError> {
        let io = |source| LinkError::Io { source };
        message::write(
            &mut stream,
            &HostHello {
                version: VERSION.to_owned(),
            },
        )
        .await
        .map_err(io)?;
        let GuestHello {
            version,
            nonce: theirs,
            kernel,
        } = message::read(&mut stream)
            .await
            .map_err(io)?
            .ok_or(LinkError::Silent)?;
        if version != VERSION {
            return Err(LinkError::Version { found: version });
        }
        if theirs != *nonce {
            return Err(LinkError::Nonce);
        }
        let (opener, incoming, driver) = mux::start(stream, Side::Listener);
        let driver = tokio::spawn(driver);
        let control = opener
            .open(&FromHost::Control)
            .await
            .map_err(|_| LinkError::Silent)?;
        Ok(Self {
            opener,
            incoming,
            control,
            driver,
            kernel,
        })
    }

    /// Sends what makes the guest habitable and waits for its answer.
    ///
    /// # Errors
    ///
    /// [`LinkError`].
    pub(super) async fn provision(&mut self, message: ToInit) -> Result<(), LinkError> {
        let io = |source| LinkError::Io { source };
        message::write(&mut self.control, &message)
            .await
            .map_err(io)?;
        match message::read(&mut self.control).await.map_err(io)? {
            Some(ToHost::Provisioned(Ok(()))) => Ok(()),
            Some(ToHost::Provisioned(Err(why))) => Err(LinkError::Provision { why }),
            Some(ToHost::OutOfMemory { .. } | ToHost::Goodbye) | None => Err(LinkError::Silent),
        }
    }
}

/// What init says next, read by a task of its own: nothing is lost by who stops waiting for it.
pub(super) type NextWord = JoinHandle<io::Result<Option<ToHost>>>;

/// Asks init to end everything and waits for its goodbye; says whether it came.
pub(super) async fn shut_down<W: AsyncWrite + Unpin>(
    control: &mut W,
    said: &mut NextWord,
    grace: Duration,
    margin: Duration,
) -> bool {
    let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    let asking = async {
        let told = message::write(control, &ToInit::Shutdown { grace_ms }).await;
        told.is_ok() && matches!(said.await, Ok(Ok(Some(ToHost::Goodbye))))
    };
    let answer = timeout(grace.saturating_add(margin), asking).await;
    answer.unwrap_or(false)
}

/// Reads what init says next; processes that were killed for want of memory go into the record.
///
/// # Errors
///
/// What the stream says.
pub(super) async fn next_word(
    mut control: ReadHalf<MuxStream>,
    record: Arc<Record>,
) -> io::Result<Option<ToHost>> {
    let mut killed = 0;
    loop {
        match message::read(&mut control).await? {
            Some(ToHost::OutOfMemory { pid, name }) => {
                killed += 1;
                if killed <= MAX_KILLED_EVENTS {
                    record.record(Happening::OutOfMemory { pid, name });
                }
            }
            other => return Ok(other),
        }
    }
}

/// Why init and the shim did not come together.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(super) enum LinkError {
    /// The connection broke.
    #[error("the connection with the guest broke")]
    Io {
        /// How.
        source: io::Error,
    },
    /// Whoever answered is not the init of this boot.
    #[error("what answered on the control channel does not know this boot's nonce")]
    Nonce,
    /// Init could not do its part.
    #[error("the guest could not be provisioned: {}", Escaped(why))]
    Provision {
        /// What it says.
        why: String,
    },
    /// The guest closed the connection.
    #[error("the guest closed the control channel")]
    Silent,
    /// It is of another build.
    #[error("the guest speaks version {found:?} of the control protocol, this program {VERSION:?}")]
    Version {
        /// Its version.
        found: String,
    },
}
