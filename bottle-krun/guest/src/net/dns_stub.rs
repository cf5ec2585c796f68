//! The DNS stub: hands questions to the host's filter and its answers back, understanding neither.
//!
//! All questions share one stream, so each goes out under an id of ours; the asker's own comes
//! back on the answer. What the host does not answer in time is forgotten: resolvers ask again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bottle_wire::guest::FromGuest;
use bottle_wire::mux::{MuxError, MuxStream, Opener};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use super::udp_server::{Asker, UdpServer};

/// The longest question; the filter refuses longer ones anyway.
const MAX_QUESTION: usize = 4096;

/// Bytes of a DNS header.
const HEADER: usize = 12;

/// Questions under way at once, and waiting to be sent.
const MAX_PENDING: usize = 1024;
const MAX_WAITING: usize = 64;

/// After this a question is forgotten, and an idle TCP connection closed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Before a broken stream is opened again.
const BREATH: Duration = Duration::from_millis(100);

/// The longest answer over UDP to an asker who did not say what he takes, and to one who did.
const PLAIN_UDP: usize = 512;
const EXTENDED_UDP: usize = 1232;

/// Takes questions from sockets.
#[derive(Clone, Debug)]
pub(crate) struct DnsStub(mpsc::Sender<Question>);

#[derive(Debug)]
struct Question {
    message: Vec<u8>,
    asker: Reply,
}

/// Where an answer goes.
#[derive(Clone, Debug)]
enum Reply {
    Udp {
        server: Rc<UdpServer>,
        asker: Asker,
        limit: usize,
    },
    Tcp(mpsc::Sender<Vec<u8>>),
}

impl DnsStub {
    /// Starts to forward.
    pub(crate) fn start(opener: Opener<FromGuest>) -> Self {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        spawn_local(forward(receiver, opener));
        Self(sender)
    }

    /// Takes questions from a UDP socket.
    pub(crate) fn serve_udp(&self, server: UdpServer) {
        let (stub, server) = (self.clone(), Rc::new(server));
        spawn_local(async move {
            let mut buffer = vec![0; MAX_QUESTION];
            loop {
                let Ok((length, asker)) = server.receive(&mut buffer).await else {
                    sleep(BREATH).await;
                    continue;
                };
                let message = buffer[..length].to_vec();
                let limit = if has_additional(&message) {
                    EXTENDED_UDP
                } else {
                    PLAIN_UDP
                };
                let server = Rc::clone(&server);
                stub.ask(
                    message,
                    Reply::Udp {
                        server,
                        asker,
                        limit,
                    },
                )
                .await;
            }
        });
    }

    /// Takes questions from TCP connections.
    pub(crate) fn serve_tcp(&self, listener: TcpListener) {
        let stub = self.clone();
        spawn_local(async move {
            loop {
                match listener.accept().await {
                    Ok((client, _)) => drop(spawn_local(stub.clone().converse(client))),
                    Err(_) => sleep(BREATH).await,
                }
            }
        });
    }

    async fn ask(&self, message: Vec<u8>, asker: Reply) {
        if message.len() >= HEADER {
            let _ = self.0.send(Question { message, asker }).await;
        }
    }

    async fn converse(self, client: TcpStream) {
        let (mut reader, mut writer) = client.into_split();
        let (sender, mut answers) = mpsc::channel::<Vec<u8>>(MAX_WAITING);
        spawn_local(async move {
            while let Some(answer) = answers.recv().await {
                if write_framed(&mut writer, &answer).await.is_err() {
                    return;
                }
            }
        });
        while let Ok(Ok(Some(question))) =
            timeout(PATIENCE, read_framed(&mut reader, MAX_QUESTION)).await
        {
            self.ask(question, Reply::Tcp(sender.clone())).await;
        }
    }
}

/// Forwards until the connection is over.
async fn forward(mut questions: mpsc::Receiver<Question>, opener: Opener<FromGuest>) {
    loop {
        match opener.open(&FromGuest::Dns).await {
            Ok(stream) => {
                let _ = forward_on(stream, &mut questions).await;
            }
            Err(MuxError::Gone) => return,
            Err(_) => {}
        }
        sleep(BREATH).await;
    }
}

async fn forward_on(stream: MuxStream, questions: &mut mpsc::Receiver<Question>) -> io::Result<()> {
    let (reader, writer) = split(stream);
    let pending = RefCell::new(Pending::default());
    tokio::try_join!(send(questions, writer, &pending), receive(reader, &pending))?;
    Ok(())
}

async fn send(
    questions: &mut mpsc::Receiver<Question>,
    mut writer: WriteHalf<MuxStream>,
    pending: &RefCell<Pending<Reply>>,
) -> io::Result<()> {
    while let Some(Question { mut message, asker }) = questions.recv().await {
        let original = [message[0], message[1]];
        let Some(id) = pending.borrow_mut().add(original, asker, Instant::now()) else {
            continue;
        };
        message[..2].copy_from_slice(&id.to_be_bytes());
        write_framed(&mut writer, &message).await?;
    }
    Ok(())
}

async fn receive(
    mut reader: ReadHalf<MuxStream>,
    pending: &RefCell<Pending<Reply>>,
) -> io::Result<()> {
    loop {
        let Some(mut answer) = read_framed(&mut reader, usize::from(u16::MAX)).await? else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let Some(id) = answer.first_chunk().map(|id| u16::from_be_bytes(*id)) else {
            continue;
        };
        let asked = pending.borrow_mut().take(id);
        let Some((original, reply)) = asked else {
            continue;
        };
        answer[..2].copy_from_slice(&original);
        match reply {
            Reply::Udp {
                server,
                asker,
                limit,
            } => server.answer(&fit(answer, limit), &asker),
            // An asker who does not read loses his answer, not everybody's.
            Reply::Tcp(sender) => drop(sender.try_send(answer)),
        }
    }
}

/// Questions that wait for their answers.
#[derive(Debug)]
struct Pending<R> {
    asked: HashMap<u16, ([u8; 2], R, Instant)>,
    next: u16,
}

impl<R> Default for Pending<R> {
    fn default() -> Self {
        Self {
            asked: HashMap::new(),
            next: 0,
        }
    }
}

impl<R> Pending<R> {
    /// Remembers a question; `None` if too many wait.
    fn add(&mut self, original: [u8; 2], reply: R, now: Instant) -> Option<u16> {
        if self.asked.len() >= MAX_PENDING {
            self.asked
                .retain(|_, (_, _, since)| now.duration_since(*since) < PATIENCE);
            if self.asked.len() >= MAX_PENDING {
                return None;
            }
        }
        while self.asked.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let id = self.next;
        self.next = id.wrapping_add(1);
        self.asked.insert(id, (original, reply, now));
        Some(id)
    }

    fn take(&mut self, id: u16) -> Option<([u8; 2], R)> {
        self.asked
            .remove(&id)
            .map(|(original, reply, _)| (original, reply))
    }
}

/// Whether a question has additional records: EDNS is the only one that anybody sends.
fn has_additional(message: &[u8]) -> bool {
    message.get(10..HEADER).is_some_and(|count| count != [0, 0])
}

/// Cuts an answer that is too long to its header, marked as truncated: the asker will use TCP.
fn fit(mut answer: Vec<u8>, limit: usize) -> Vec<u8> {
    if answer.len() > limit {
        answer.truncate(HEADER);
        answer[2] |= 0x02; // TC
        answer[4..].fill(0);
    }
    answer
}

/// Reads one message with its two-byte length; `None` at the end before the first byte.
async fn read_framed<R: AsyncReadExt + Unpin>(
    reader: &mut R,
    limit: usize,
) -> io::Result<Option<Vec<u8>>> {
    let length = match reader.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > limit {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    reader.read_exact(&mut message).await?;
    Ok(Some(message))
}

async fn write_framed<W: AsyncWriteExt + Unpin>(writer: &mut W, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut framed = Vec::with_capacity(2 + message.len());
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    writer.write_all(&framed).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_while_pending_and_old_questions_make_room() {
        let start = Instant::now();
        let mut pending = Pending::default();
        for i in 0..MAX_PENDING {
            assert_eq!(
                pending.add([1, 2], i, start),
                Some(u16::try_from(i).unwrap())
            );
        }
        assert_eq!(pending.add([1, 2], 0, start), None);
        assert_eq!(pending.take(7), Some(([1, 2], 7)));
        assert_eq!(pending.take(7), None);
        pending.next = 5;
        assert_eq!(
            pending.add([3, 4], 9999, start),
            Some(7),
            "the first free one"
        );
        assert_eq!(pending.add([1, 2], 0, start), None);
        assert!(pending.add([1, 2], 0, start + PATIENCE).is_some());
        assert_eq!(pending.asked.len(), 1);
    }

    #[test]
    fn a_long_answer_becomes_a_truncated_header() {
        let answer = vec![0x81; 600];
        assert_eq!(fit(answer.clone(), 600), answer);
        let cut = fit(answer, PLAIN_UDP);
        assert_eq!(cut, [0x81, 0x81, 0x83, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
