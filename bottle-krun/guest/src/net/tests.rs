//! The whole network in namespaces of the test's own: the kernel's side of the promises.
//!
//! Needs root; without it these tests say so and pass, and the microVM tests cover the same.

use std::future::pending;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use bottle_wire::guest::FromHost;
use bottle_wire::mux::{self, Incoming, MuxStream, Side};
use nix::libc::linger;
use nix::sched::setns;
use nix::unistd::Uid;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::{LocalSet, yield_now};
use tokio::time::timeout;

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

/// Runs `workload` on a thread inside the laid network, and `host` at the other end of the mux.
fn with_network<W, H, F, R>(ports: &'static [u16], workload: W, host: H) -> Option<R>
where
    W: FnOnce() -> R + Send + 'static,
    H: FnOnce(Incoming<FromGuest>) -> F + Send + 'static,
    F: Future<Output = ()>,
    R: Send + 'static,
{
    if !Uid::effective().is_root() {
        eprintln!("skipped: network namespaces need root");
        return None;
    }
    let test = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let network = Network::lay().unwrap();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async move {
            let (guest_end, host_end) = duplex(64 << 10);
            let (opener, _from_host, driver) =
                mux::start::<_, FromGuest, FromHost>(guest_end, Side::Dialer);
            tokio::spawn(driver);
            let (_opener, incoming, driver) =
                mux::start::<_, FromHost, FromGuest>(host_end, Side::Listener);
            tokio::spawn(driver);
            let namespace = network.serve(ports, &opener).unwrap();
            let (sender, done) = oneshot::channel();
            thread::spawn(move || {
                setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
                let _ = sender.send(workload());
            });
            let hosting = async {
                host(incoming).await;
                pending().await
            };
            tokio::select! {
                result = timeout(DEADLINE, done) => result.expect("in time").expect("no panic"),
                never = hosting => never,
            }
        })
    });
    Some(test.join().unwrap())
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

async fn next_flow(incoming: &mut Incoming<FromGuest>) -> (String, MuxStream) {
    loop {
        if let (FromGuest::Flow { destination }, stream) = incoming.accept().await.unwrap() {
            return (destination.to_string(), stream);
        }
    }
}

#[test]
fn a_connection_to_anywhere_is_a_flow_with_its_destination_and_half_closes() {
    let answers = with_network(
        &[443],
        || {
            [
                "93.184.216.34:443",
                "[2606:4700::1111]:443",
                "10.200.0.1:443",
            ]
            .map(|address| {
                let mut stream = connect(address);
                stream.write_all(b"question").unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                answer
            })
        },
        |mut incoming| async move {
            loop {
                let (destination, mut stream) = next_flow(&mut incoming).await;
                let mut question = String::new();
                stream.read_to_string(&mut question).await.unwrap();
                let answer = format!("{destination} {question}");
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            }
        },
    );
    let expected = [
        "93.184.216.34:443 question",
        "[2606:4700::1111]:443 question",
        "10.200.0.1:443 question",
    ];
    assert!(answers.is_none_or(|answers| answers == expected));
}

#[test]
fn resets_are_carried_in_both_directions() {
    let (seen, reset_seen) = channel();
    let kinds = with_network(
        &[80],
        move || {
            // The reset may be here before the call that connects has returned.
            let refused = TcpStream::connect("1.2.3.4:80").and_then(|mut s| s.read(&mut [0]));
            let by_host = refused.unwrap_err().kind();
            let mut stream = connect("1.2.3.4:80");
            stream.read_exact(&mut [0]).unwrap();
            set_zero_linger(&stream);
            drop(stream);
            (by_host, reset_seen.recv_timeout(DEADLINE).unwrap())
        },
        move |mut incoming| async move {
            drop(next_flow(&mut incoming).await);
            let (_, mut stream) = next_flow(&mut incoming).await;
            stream.write_all(&[0]).await.unwrap();
            let kind = stream.read(&mut [0]).await.unwrap_err().kind();
            seen.send(kind).unwrap();
        },
    );
    let reset = ErrorKind::ConnectionReset;
    assert!(kinds.is_none_or(|kinds| kinds == (reset, reset)));
}

#[test]
fn an_early_answer_to_a_long_upload_arrives_although_nobody_reads_the_rest() {
    let answer = with_network(
        &[443],
        || {
            let mut stream = connect("1.2.3.4:443");
            for _ in 0..256 {
                stream.write_all(&[7; 64 << 10]).unwrap();
            }
            stream.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        },
        |mut incoming| async move {
            let (_, mut stream) = next_flow(&mut incoming).await;
            stream.read_exact(&mut [0; 1000]).await.unwrap();
            stream.write_all(b"too much").await.unwrap();
            stream.shutdown().await.unwrap();
        },
    );
    assert!(answer.is_none_or(|answer| answer == "too much"));
}

/// Makes dropping the socket a reset.
fn set_zero_linger(stream: &TcpStream) {
    let linger = linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(stream, sockopt::Linger, &linger).unwrap();
}

#[test]
fn what_nobody_listens_on_is_refused_at_once_and_datagrams_are_told() {
    let result = with_network(
        &[443],
        || {
            let start = Instant::now();
            let tcp = ["1.2.3.4:444", "[2001:db8::1]:444", "127.0.0.1:443"]
                .map(|address| TcpStream::connect(address).unwrap_err().kind());
            let udp = [
                ("0.0.0.0:0", "8.8.8.8:123"),
                ("[::]:0", "[2001:db8::8]:443"),
            ]
            .map(|(own, address)| {
                let socket = UdpSocket::bind(own).unwrap();
                socket.set_read_timeout(Some(DEADLINE)).unwrap();
                socket.connect(address).unwrap();
                socket.send(b"hello").unwrap();
                socket.recv(&mut [0]).unwrap_err().kind()
            });
            (tcp, udp, start.elapsed())
        },
        |mut incoming| async move {
            let mut told = Vec::new();
            while told.len() < 2 {
                if let (FromGuest::UdpRefused { destination }, _) = incoming.accept().await.unwrap()
                {
                    told.push(destination.to_string());
                }
            }
            assert_eq!(told, ["8.8.8.8:123", "[2001:db8::8]:443"]);
        },
    );
    let refused = ErrorKind::ConnectionRefused;
    let Some((tcp, udp, elapsed)) = result else {
        return;
    };
    assert_eq!(tcp, [refused; 3]);
    assert_eq!(udp, [refused; 2]);
    assert!(elapsed < DEADLINE, "{elapsed:?}");
}

#[test]
fn dns_is_answered_from_the_address_that_was_asked() {
    let answers = with_network(
        &[],
        || {
            let question = b"\x12\x34\x01\x00\0\0\0\0\0\0\0\0";
            let udp = [
                ("0.0.0.0:0", "8.8.8.8:53"),
                ("127.0.0.1:0", "127.0.0.1:53"),
                ("[::]:0", "[2001:4860:4860::8888]:53"),
            ]
            .map(|(own, address)| {
                let socket = UdpSocket::bind(own).unwrap();
                socket.set_read_timeout(Some(DEADLINE)).unwrap();
                socket.send_to(question, address).unwrap();
                let mut answer = [0; 64];
                let (length, from) = socket.recv_from(&mut answer).unwrap();
                (from.to_string(), answer[..length].to_vec())
            });
            let mut stream = connect("9.9.9.9:53");
            stream.write_all(&[0, 12]).unwrap();
            stream.write_all(question).unwrap();
            let mut answer = [0; 14];
            stream.read_exact(&mut answer).unwrap();
            (udp, answer)
        },
        |mut incoming| async move {
            let (open, mut stream) = incoming.accept().await.unwrap();
            assert_eq!(open, FromGuest::Dns);
            loop {
                let length = stream.read_u16().await.unwrap();
                let mut message = vec![0; usize::from(length)];
                stream.read_exact(&mut message).await.unwrap();
                message[2] |= 0x80;
                stream.write_u16(length).await.unwrap();
                stream.write_all(&message).await.unwrap();
            }
        },
    );
    let Some((udp, tcp)) = answers else { return };
    let answer = b"\x12\x34\x81\x00\0\0\0\0\0\0\0\0";
    for (from, asked) in udp
        .iter()
        .zip(["8.8.8.8:53", "127.0.0.1:53", "[2001:4860:4860::8888]:53"])
    {
        assert_eq!(from, &(asked.to_owned(), answer.to_vec()));
    }
    assert_eq!(&tcp[2..], answer);
}

#[test]
fn servers_of_the_workload_are_its_own() {
    let served = with_network(
        &[443, 8080],
        || {
            ["127.0.0.1:0", "127.0.0.1:443", "0.0.0.0:8080", "[::1]:443"].map(|own| {
                let listener = TcpListener::bind(own).unwrap();
                let port = listener.local_addr().unwrap().port();
                let server = thread::spawn(move || {
                    listener.accept().unwrap().0.write_all(b"served").unwrap();
                });
                let host = if own.starts_with('[') {
                    "[::1]"
                } else {
                    "127.0.0.1"
                };
                let mut answer = String::new();
                connect(&format!("{host}:{port}"))
                    .read_to_string(&mut answer)
                    .unwrap();
                server.join().unwrap();
                answer
            })
        },
        |_| async {},
    );
    assert!(served.is_none_or(|served| served == ["served"; 4]));
}

#[test]
fn a_stalled_flow_takes_a_window_and_leaves_the_others_alone() {
    let result = with_network(
        &[80, 443],
        || {
            let mut stalled = connect("1.1.1.1:80");
            stalled.set_nonblocking(true).unwrap();
            let start = Instant::now();
            let mut sent = 0;
            let mut answered = 0;
            while answered < 20 {
                match stalled.write(&[0; 65536]) {
                    Ok(length) => sent += length,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::WouldBlock);
                        let mut answer = String::new();
                        connect("2.2.2.2:443").read_to_string(&mut answer).unwrap();
                        assert_eq!(answer, "here");
                        answered += 1;
                    }
                }
            }
            (sent, start.elapsed())
        },
        |mut incoming| async move {
            let mut held = Vec::new();
            loop {
                let (destination, mut stream) = next_flow(&mut incoming).await;
                if destination.ends_with(":443") {
                    stream.write_all(b"here").await.unwrap();
                    stream.shutdown().await.unwrap();
                } else {
                    held.push(stream);
                }
            }
        },
    );
    // The window, the kernel's buffers, no more.
    assert!(result.is_none_or(|(sent, _)| sent < 32 << 20), "{result:?}");
}

#[test]
fn a_client_that_gives_up_a_stalled_upload_resets_its_flow() {
    let (seen, reset_seen) = channel();
    let kind = with_network(
        &[80],
        move || {
            let mut stream = connect("1.1.1.1:80");
            stream
                .set_write_timeout(Some(Duration::from_millis(500)))
                .unwrap();
            while stream.write(&[0; 65536]).is_ok() {}
            set_zero_linger(&stream);
            drop(stream);
            reset_seen.recv_timeout(DEADLINE).unwrap()
        },
        move |mut incoming| async move {
            let (_, mut stream) = next_flow(&mut incoming).await;
            // Writing tells of the reset without reading, which would give credit.
            let kind = loop {
                match timeout(Duration::from_millis(20), stream.write_all(&[0])).await {
                    Ok(Err(error)) => break error.kind(),
                    Ok(Ok(())) | Err(_) => yield_now().await,
                }
            };
            seen.send(kind).unwrap();
        },
    );
    assert!(kind.is_none_or(|kind| kind == ErrorKind::ConnectionReset));
}
