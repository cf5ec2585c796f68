//! The conversation with the host: hello, provisioning, processes, the end.

#[cfg(test)]
pub(crate) mod testing;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::File;
use std::future::pending;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bottle_wire::guest::{
    FromGuest, FromHost, GuestHello, HostHello, MAX_PROCESSES, PORT, Provision, SpawnFailure,
    ToHost, ToInit, VERSION,
};
use bottle_wire::message;
use bottle_wire::mux::{self, Incoming, MuxStream, Opener, Side};
use nix::sys::utsname::uname;
use tokio::io::{ReadHalf, WriteHalf, split};
use tokio::runtime::Builder;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use crate::boot::Booted;
use crate::descriptor::Descriptor;
use crate::error::{InitError, chain, failed};
use crate::exec::{self, Stdio};
use crate::files::{self, Copying};
use crate::net::Network;
use crate::net::dial::{dial, refuse};
use crate::out_of_memory;
use crate::provision::{self, Defaults};
use crate::reap::Reaper;
use crate::shutdown;
use crate::vsock;

/// How long the last output of ended processes may take to reach the host.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Copies of files at once; each has a thread.
const MAX_COPIES: u32 = 16;

/// Where processes live, once it is provisioned.
#[derive(Debug)]
pub(crate) struct Habitat {
    pub(crate) defaults: Defaults,
    pub(crate) namespace: OwnedFd,
    stop_signal: u8,
}

/// What the tasks of init share.
struct Init {
    opener: Opener<FromGuest>,
    reaper: Reaper,
    overlay: File,
    network: RefCell<Option<Network>>,
    habitat: OnceCell<Habitat>,
    stopping: Cell<bool>,
    /// Streams that wait for their process.
    stdio: RefCell<HashMap<u32, Stdio>>,
    /// One permit each; when all of them are back, all last words have been said.
    processes: Semaphore,
    copies: Arc<Semaphore>,
}

/// Serves the host until one of the two ends.
pub(crate) fn serve(booted: Booted) -> Result<Infallible, InitError> {
    let network = Network::lay()?;
    let socket = vsock::dial(PORT)?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("start", "the runtime"))?;
    LocalSet::new().block_on(&runtime, converse(booted, network, socket))
}

async fn converse(
    booted: Booted,
    network: Network,
    socket: OwnedFd,
) -> Result<Infallible, InitError> {
    let mut stream = Descriptor::new(socket).map_err(failed("use", "the connection"))?;
    hello(&mut stream, booted.nonce).await?;
    let (opener, incoming, driver) = mux::start(stream, Side::Dialer);
    let init = Rc::new(Init {
        opener,
        reaper: Reaper::default(),
        overlay: booted.overlay,
        network: RefCell::new(Some(network)),
        habitat: OnceCell::new(),
        stopping: Cell::new(false),
        stdio: RefCell::default(),
        processes: Semaphore::new(MAX_PROCESSES as usize),
        copies: Arc::new(Semaphore::new(MAX_COPIES as usize)),
    });
    init.reaper.start()?;
    let (fatal, mut deaths) = mpsc::unbounded_channel();
    spawn_local(accept(init, incoming, fatal));
    tokio::select! {
        _ = driver => Err(InitError::HostGone),
        death = deaths.recv() => Err(death.unwrap_or(InitError::HostGone)),
    }
}

/// The host speaks first: libkrun acknowledges our dial before anybody has taken it.
async fn hello(stream: &mut Descriptor, nonce: [u8; 32]) -> Result<(), InitError> {
    let named = || failed("say hello to", "the host");
    let host: HostHello = message::read(stream)
        .await
        .map_err(named())?
        .ok_or(InitError::HostGone)?;
    if host.version != VERSION {
        return Err(InitError::Version {
            found: host.version,
            own: VERSION,
        });
    }
    let kernel = uname().map_err(failed("ask", "the kernel's release"))?;
    let kernel = kernel.release().to_string_lossy().into_owned();
    let own = GuestHello {
        version: VERSION.to_owned(),
        nonce,
        kernel,
    };
    message::write(stream, &own).await.map_err(named())
}

/// Takes the streams that the host opens, in their order.
async fn accept(
    init: Rc<Init>,
    mut incoming: Incoming<FromHost>,
    fatal: mpsc::UnboundedSender<InitError>,
) {
    while let Some((open, stream)) = incoming.accept().await {
        match open {
            FromHost::Control => {
                let (init, fatal) = (Rc::clone(&init), fatal.clone());
                spawn_local(async move {
                    let Err(error) = control(&init, stream).await;
                    let _ = fatal.send(error);
                });
            }
            FromHost::Stdio { exec, fd } => {
                let mut waiting = init.stdio.borrow_mut();
                let stdio = waiting.entry(exec).or_default();
                match fd {
                    0 => stdio.stdin = Some(stream),
                    1 => stdio.stdout = Some(stream),
                    2 => stdio.stderr = Some(stream),
                    _ => {}
                }
            }
            FromHost::Exec(exec) => {
                let stdio = init.take_stdio(exec.exec);
                let init = Rc::clone(&init);
                spawn_local(async move {
                    let place = init.processes.try_acquire();
                    let limit = MAX_PROCESSES;
                    let habitat = match (init.habitat(), &place) {
                        (Err(why), _) => Err(SpawnFailure::Setup(why)),
                        (_, Err(_)) => Err(SpawnFailure::TooMany { limit }),
                        (Ok(habitat), Ok(_)) => Ok(habitat),
                    };
                    exec::run(habitat, &init.reaper, exec, stdio, stream).await;
                    drop(place);
                });
            }
            FromHost::CopyOut(request) => {
                let stdio = init.take_stdio(request.exec);
                let init = Rc::clone(&init);
                spawn_local(async move {
                    let _ = files::copy_out(init.copying(), request, stdio.stdout, stream).await;
                });
            }
            FromHost::CopyIn(request) => {
                let stdio = init.take_stdio(request.exec);
                let init = Rc::clone(&init);
                spawn_local(async move {
                    let _ = files::copy_in(init.copying(), request, stdio.stdin, stream).await;
                });
            }
            FromHost::Dial { port } => match init.habitat() {
                Ok(habitat) => drop(spawn_local(dial(
                    habitat.namespace.try_clone(),
                    port,
                    stream,
                ))),
                Err(why) => drop(spawn_local(refuse(stream, why))),
            },
        }
    }
}

/// Serves the control stream. After the goodbye nothing happens any more.
async fn control(init: &Init, stream: MuxStream) -> Result<Infallible, InitError> {
    let (requests, answers) = split(stream);
    let (say, words) = mpsc::unbounded_channel();
    tokio::select! {
        over = listen(init, requests, say) => over,
        over = speak(answers, words) => over,
    }
}

async fn listen(
    init: &Init,
    mut requests: ReadHalf<MuxStream>,
    say: mpsc::UnboundedSender<ToHost>,
) -> Result<Infallible, InitError> {
    let named = || failed("listen to", "the host");
    loop {
        match message::read(&mut requests).await.map_err(named())? {
            Some(ToInit::Provision(provision)) => {
                let done = init.provision(&provision);
                let _ = say.send(ToHost::Provisioned(done.map_err(|error| chain(&error))));
                // A kernel without a log leaves nothing to be told.
                let _ = out_of_memory::watch(say.clone());
            }
            // A clock that stays wrong is no reason to end a bottle that runs.
            Some(ToInit::Time { unix_ns }) => drop(provision::clock::set(unix_ns)),
            Some(ToInit::Shutdown { grace_ms }) => {
                init.shut_down(Duration::from_millis(grace_ms)).await;
                let _ = say.send(ToHost::Goodbye);
                return pending().await;
            }
            None => return Err(InitError::HostGone),
        }
    }
}

async fn speak(
    mut answers: WriteHalf<MuxStream>,
    mut words: mpsc::UnboundedReceiver<ToHost>,
) -> Result<Infallible, InitError> {
    let named = || failed("talk to", "the host");
    while let Some(word) = words.recv().await {
        message::write(&mut answers, &word).await.map_err(named())?;
        if word == ToHost::Goodbye {
            break;
        }
    }
    pending().await
}

impl Init {
    fn take_stdio(&self, exec: u32) -> Stdio {
        self.stdio.borrow_mut().remove(&exec).unwrap_or_default()
    }

    /// A place for one more copy.
    fn copying(&self) -> Result<(Copying, &Habitat), String> {
        let habitat = self.habitat()?;
        let copying = Arc::clone(&self.copies)
            .try_acquire_owned()
            .map_err(|_| format!("{MAX_COPIES} copies are under way, which is the limit"))?;
        Ok((Copying::new(copying), habitat))
    }

    fn habitat(&self) -> Result<&Habitat, String> {
        if self.stopping.get() {
            return Err("the bottle is stopping".to_owned());
        }
        let provisioned = self.habitat.get();
        provisioned.ok_or_else(|| "the bottle is not provisioned".to_owned())
    }

    fn provision(&self, provision: &Provision) -> Result<(), InitError> {
        let twice = || InitError::Unusable {
            what: "provisioning data",
            why: "they were sent before".to_owned(),
        };
        let network = self.network.borrow_mut().take().ok_or_else(twice)?;
        let defaults = provision::apply(provision)?;
        let namespace = network.serve(&provision.ports, &self.opener)?;
        self.habitat
            .set(Habitat {
                defaults,
                namespace,
                stop_signal: provision.stop_signal,
            })
            .map_err(|_| twice())
    }

    async fn shut_down(&self, grace: Duration) {
        self.stopping.set(true);
        // Before there is a habitat there are no processes.
        let signal = self.habitat.get().map_or(0, |habitat| habitat.stop_signal);
        shutdown::end_processes(&self.reaper, signal, grace).await;
        let last_words = async {
            let _ = self.processes.acquire_many(MAX_PROCESSES).await;
            let _ = self.copies.acquire_many(MAX_COPIES).await;
        };
        let _ = timeout(LAST_WORDS, last_words).await;
        shutdown::close_disks(&self.overlay);
    }
}
