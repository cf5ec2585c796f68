//! What host process and init say to each other. Init is embedded in the host's program: the two
//! are of one build, so versions must be equal; and init may be taken over, so nothing it says is
//! believed beyond what its type says.
//!
//! ```text
//! init dials vsock port PORT of CID 2; libkrun forwards to the shim's Unix socket
//! shim  ── HostHello ──►            (the host speaks first: libkrun acknowledges early)
//!       ◄── GuestHello ──           (message::write on the bare connection; then both start the mux)
//! shim is Side::Listener, init is Side::Dialer
//!
//! shim  ── open Control ──►         Provision ►, ◄ Provisioned, then Shutdown ►, ◄ Goodbye
//!       ── open Stdio × 0..3, open Exec ──►   ◄ ExecReport…, ProcessRequest… ►
//!       ── open Stdio, open CopyOut or CopyIn ──►   ◄ CopyReport…
//!       ── open Dial ──►              ◄ DialReport, then bytes both ways
//!       ◄── open Dns, open Flow ──
//! ```

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::message::as_postcard;

/// The vsock port on which the host process takes exactly one connection per boot.
pub const PORT: u32 = 5000;

/// The file of the virtual root in which init finds its nonce: 32 bytes.
pub const NONCE_FILE: &str = "/bottle.nonce";

/// The file of the virtual root whose presence says that there is no overlay disk: what is written
/// is kept in memory.
pub const EPHEMERAL_FILE: &str = "/bottle.ephemeral";

/// Directories that the virtual root must have: init mounts on them.
pub const ROOT_DIRS: [&str; 4] = ["/dev", "/proc", "/run", "/sys"];

/// Processes that init serves at once: started by the host, and running or with output to come.
/// With their streams they leave room for others in [`mux::MAX_STREAMS`](crate::mux::MAX_STREAMS).
pub const MAX_PROCESSES: u32 = 100;

/// Serials of the disks, as `/sys/block/vd*/serial` shows them.
pub mod disk {
    /// The read-only EROFS image.
    pub const IMAGE: &str = "bottle-image";
    /// The writable ext4 overlay.
    pub const OVERLAY: &str = "bottle-overlay";
}

/// First words of the host.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct HostHello {
    /// [`VERSION`].
    pub version: String,
}

/// First words of init.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct GuestHello {
    /// [`VERSION`]; must be equal.
    pub version: String,
    /// What stood in [`NONCE_FILE`].
    pub nonce: [u8; 32],
    /// The guest kernel's release, as `uname -r`.
    pub kernel: String,
}

/// The version of this protocol; equal on both ends or the boot fails.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "/2");

/// First message of a stream that the host opens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_enums, reason = "both ends are of one build")]
pub enum FromHost {
    /// The control stream; opened once. Carries [`ToInit`] and [`ToHost`].
    Control,
    /// Carries one of a process's standard streams; opened before the [`FromHost::Exec`] it
    /// belongs to. 0 flows to the guest, 1 and 2 flow to the host; a stream that is not opened is
    /// `/dev/null`. An output ends when nobody in the guest can write to it any more, which may be
    /// after the process. If the process closes its input, 0 is reset; if the host resets an
    /// output, the process's next write fails.
    ///
    /// Of a process with a terminal ([`Exec::tty`]), 0 is what is typed and 1 is what is shown; 2
    /// is not opened. The end of 0 is not told to the process: a terminal has no end of file but
    /// the character for it. The terminal ends with its process: when all that was shown has been
    /// read, whoever else still holds it is hung up (SIGHUP) and 1 ends. If the host resets 1 it is
    /// hung up at once. Without 1, what is shown is thrown away.
    Stdio {
        /// The number that the [`Exec`] will carry.
        exec: u32,
        /// 0, 1 or 2.
        fd: u8,
    },
    /// Starts a process. Carries [`ExecReport`]s to the host and [`ProcessRequest`]s to the guest.
    Exec(Exec),
    /// Sends files of the bottle as a tar stream. Carries [`CopyReport`]s to the host.
    CopyOut(CopyOut),
    /// Makes files of a tar stream. Carries one [`CopyReport`] to the host.
    CopyIn(CopyIn),
    /// Connects to a server of the workload. Init answers with a [`DialReport`]; then follow the
    /// connection's bytes, with half-close, reset and backpressure.
    Dial {
        /// The TCP port on the workload's loopback, IPv4 first: a server on all addresses is
        /// reached, too.
        port: u16,
    },
}

/// Files that the host wants.
///
/// The archive comes on the stream 1 that was opened as [`FromHost::Stdio`] before; without one
/// the host only wants to know what is there. Its entries are called [`CopyReport::Ready::name`],
/// and `name/…` below it. Owners are numeric; holes are left out; links are what they are, hard
/// links among the files included; sockets are left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CopyOut {
    /// Pairs it with its stream: of the same numbers as [`Exec::exec`].
    pub exec: u32,
    /// A path as the workload knows it; relative to `/`.
    pub path: String,
    /// Whether a symbolic link at its end is followed. One with a slash behind it always is.
    pub follow: bool,
}

/// Files that the host brings.
///
/// The archive comes on the stream 0 that was opened as [`FromHost::Stdio`] before. If `path` is a
/// directory, its entries are unpacked below it by their names. Else its parent must be one, and
/// `path` is what becomes of the archive's one file or directory, whatever the archive calls it: of
/// `.` in an archive of `.` and `./…`. A file replaces a file or a link; a file and a directory
/// never replace each other, and a directory that is there keeps its mode. No symbolic link below
/// `path` is followed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CopyIn {
    /// Pairs it with its stream: of the same numbers as [`Exec::exec`].
    pub exec: u32,
    /// A path as the workload knows it; relative to `/`.
    pub path: String,
    /// Whether the archive's numeric owners and set-id bits are kept, also by directories that are
    /// there; else all becomes the property of [`Provision::user`].
    pub archive: bool,
}

/// What becomes of a copy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_enums, reason = "both ends are of one build")]
pub enum CopyReport {
    /// Of [`CopyOut`] only, and first: this is there.
    Ready {
        /// What it is.
        kind: FileKind,
        /// What the archive calls it: the last component of the path that was asked for, `.` if
        /// that has no name.
        name: String,
        /// The length of a file, in bytes.
        size: u64,
    },
    /// The archive was whole; the last report.
    Done {
        /// How many entries it had.
        entries: u64,
        /// The length of all its files together, holes left out of what was sent.
        bytes: u64,
    },
    /// Something went wrong; the last report. What was sent or made until then stays.
    Failed {
        /// Of what sort it is.
        problem: CopyProblem,
        /// The path in the bottle or, of an archive's entry, its name there; may be empty.
        path: String,
        /// Why, for a person.
        why: String,
        /// How many entries were done.
        entries: u64,
    },
}

/// What a path leads to.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_enums, reason = "both ends are of one build")]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A device, pipe or socket.
    Special,
    /// A symbolic link.
    Symlink,
}

/// Why a copy failed, as far as a program may care.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_enums, reason = "both ends are of one build")]
pub enum CopyProblem {
    /// The archive can't be read, or was cut off.
    Archive,
    /// A directory is missing where there is something else.
    NotADirectory,
    /// There is no such file or directory.
    NotFound,
    /// It is not done: for what it would replace, where it would lead, or what it is.
    Refused,
    /// The system says no: permissions, room, input and output.
    System,
}

/// First message of init on a stream of [`FromHost::Dial`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_enums, reason = "both ends are of one build")]
pub enum DialReport {
    /// The bytes follow.
    Connected,
    /// Nobody serves the port, or why else there is no connection; the stream ends.
    Refused(String),
}

/// First message of a stream that init opens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_enums, reason = "both ends are of one build")]
pub enum FromGuest {
    /// DNS messages with a 2-byte big-endian length each (RFC 1035, 4.2.2), answered in any order.
    Dns,
    /// A captured TCP connection: its bytes follow.
    Flow {
        /// Where the workload wanted to go. Never trusted for more than that.
        destination: SocketAddr,
    },
    /// The workload sent a UDP datagram to another port than 53; carries nothing, for the record.
    UdpRefused {
        /// Where it wanted to go.
        destination: SocketAddr,
    },
}

/// Host to init on the control stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_enums, reason = "both ends are of one build")]
pub enum ToInit {
    /// Make the bottle habitable; first message, sent once.
    Provision(Box<Provision>),
    /// End everything: [`Provision::stop_signal`], then SIGKILL after `grace_ms`, unmount, say
    /// goodbye.
    Shutdown {
        /// Milliseconds between the two signals.
        grace_ms: u64,
    },
    /// What time it is, after the host's clock was set or the host slept. Not answered.
    Time {
        /// Host time, nanoseconds since the Unix epoch.
        unix_ns: u64,
    },
}

/// Init to host on the control stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_enums, reason = "both ends are of one build")]
pub enum ToHost {
    /// The answer to [`ToInit::Provision`]: done, or what could not be done.
    Provisioned(Result<(), String>),
    /// The kernel killed a process for want of memory; at any time after [`ToHost::Provisioned`].
    OutOfMemory {
        /// The process's id: that of [`ExecReport::Started`], or of a descendant.
        pid: u32,
        /// What it called itself, control characters escaped by the guest's kernel.
        name: String,
    },
    /// The last message: processes have ended, disks are synced and read-only. The host may kill
    /// the VM.
    Goodbye,
}

/// Everything that makes a booted kernel a bottle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provision {
    /// Host time, nanoseconds since the Unix epoch.
    pub unix_ns: u64,
    /// Host name.
    pub hostname: String,
    /// The bottle's CA, PEM.
    pub ca_pem: String,
    /// TCP ports on which connections to anywhere are captured; all others are refused. 53 is
    /// always the DNS stub's.
    pub ports: Vec<u16>,
    /// The environment of every process: the image's, then the bottle's, names unique. Init adds
    /// what is missing: `PATH`, `HOME`, `USER`, `LOGNAME`, and the variables that make runtimes
    /// trust the bottle's CA.
    pub env: Vec<(String, String)>,
    /// The default user of processes, `USER[:GROUP]`, names or numbers; empty means root.
    pub user: String,
    /// The default working directory, made if there is none; empty means `/`.
    pub cwd: String,
    /// The Linux signal that asks processes to end, before SIGKILL.
    pub stop_signal: u8,
    /// 32 bytes to credit the guest's random pool with.
    pub entropy: [u8; 32],
}

/// A process to start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exec {
    /// Pairs it with its [`FromHost::Stdio`] streams; not reused in a boot.
    pub exec: u32,
    /// Program and arguments; at least one.
    pub argv: Vec<String>,
    /// Variables on top of [`Provision::env`].
    pub env: Vec<(String, String)>,
    /// Working directory, if not the default.
    pub cwd: Option<String>,
    /// `USER[:GROUP]`, if not the default.
    pub user: Option<String>,
    /// Whether a stream for standard input was opened; if not it is `/dev/null`, or a terminal at
    /// which nobody types.
    pub stdin: bool,
    /// A pseudo-terminal of this size instead of pipes: the process's controlling terminal, owned
    /// by its user. `TERM` is `xterm` unless [`Exec::env`] or [`Provision::env`] say otherwise.
    pub tty: Option<Window>,
}

/// The size of a terminal.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Lines of text.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
    /// Width in pixels; 0 if unknown.
    pub x_pixels: u16,
    /// Height in pixels; 0 if unknown.
    pub y_pixels: u16,
}

/// What becomes of a process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_enums, reason = "both ends are of one build")]
pub enum ExecReport {
    /// It runs.
    Started {
        /// Its process id in the guest.
        pid: u32,
    },
    /// It could not be started; the last report.
    Failed(SpawnFailure),
    /// It ended by itself; the last report. Its streams may still carry bytes of descendants.
    Exited {
        /// The exit code.
        code: u8,
    },
    /// A signal ended it; the last report.
    Signaled {
        /// The Linux signal number.
        signal: u8,
    },
}

/// Why a process could not be started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_enums, reason = "both ends are of one build")]
pub enum SpawnFailure {
    /// No such program.
    NotFound,
    /// The program is there and cannot be run.
    NotExecutable(String),
    /// User, directory or limits are impossible.
    Setup(String),
    /// As many processes as init serves at once are being served.
    TooMany {
        /// How many.
        limit: u32,
    },
}

/// What the host asks of a process that runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_enums, reason = "both ends are of one build")]
pub enum ProcessRequest {
    /// Sends a signal to the process and its group, with or without a terminal. What a shell on a
    /// terminal runs in groups of its own is not reached: a key that is typed reaches it.
    Signal {
        /// The Linux signal number.
        signal: u8,
    },
    /// The terminal has another size; ignored if there is none. The foreground group is told with
    /// SIGWINCH, by the kernel.
    Resize(Window),
}

as_postcard!(
    HostHello,
    GuestHello,
    FromHost,
    FromGuest,
    ToInit,
    ToHost,
    ExecReport,
    ProcessRequest,
    CopyReport,
    DialReport,
);
