//! What the mux promises, over in-memory connections.

use std::time::Duration;

use bytes::BytesMut;
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, copy, duplex, split};
use tokio::runtime::Builder;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::timeout;

use super::*;

type End = (Opener<u32>, Incoming<u32>, JoinHandle<Result<(), MuxError>>);

fn end(io: DuplexStream, side: Side) -> End {
    let (opener, incoming, driver) = start(io, side);
    (opener, incoming, tokio::spawn(driver))
}

fn pair(buffer: usize) -> (End, End) {
    let (a, b) = duplex(buffer);
    (end(a, Side::Dialer), end(b, Side::Listener))
}

/// Runs `test` with a deadline for all of its waiting.
#[track_caller]
fn run<F: Future>(test: F) -> F::Output {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap();
    runtime
        .block_on(async { timeout(Duration::from_secs(60), test).await })
        .expect("the test ends within its deadline")
}

fn pattern(length: usize, seed: usize) -> Vec<u8> {
    let word = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7).wrapping_add(seed) % 251;
    (0..length)
        .map(|i| u8::try_from(word(i)).unwrap())
        .collect()
}

#[test]
fn first_messages_arrive_in_order_from_both_ends() {
    run(async {
        let ((a, mut a_in, _), (b, mut b_in, _)) = pair(64);
        let mut streams = Vec::new();
        for i in 0..100 {
            streams.push(a.open(&i).await.unwrap());
            streams.push(b.open(&(1000 + i)).await.unwrap());
        }
        for i in 0..100 {
            assert_eq!(b_in.accept().await.unwrap().0, i);
            assert_eq!(a_in.accept().await.unwrap().0, 1000 + i);
        }
    });
}

#[test]
fn a_half_close_ends_one_direction_only() {
    run(async {
        let ((a, _a_in, _), (_b, mut b_in, _)) = pair(4096);
        let mut near = a.open(&1).await.unwrap();
        let (_, mut far) = b_in.accept().await.unwrap();
        near.write_all(b"question").await.unwrap();
        near.shutdown().await.unwrap();
        assert_eq!(
            near.write(b"x").await.unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
        let mut question = String::new();
        far.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        far.write_all(b"answer").await.unwrap();
        far.shutdown().await.unwrap();
        drop(far);
        let mut answer = String::new();
        near.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
    });
}

#[test]
fn what_was_written_before_end_and_drop_arrives_after_the_peers_end() {
    run(async {
        let ((a, _a_in, _), (_b, mut b_in, _)) = pair(16);
        let mut near = a.open(&1).await.unwrap();
        let (_, mut far) = b_in.accept().await.unwrap();
        far.shutdown().await.unwrap();
        assert_eq!(near.read(&mut [0; 8]).await.unwrap(), 0);
        let sent = pattern(50_000, 0);
        near.write_all(&sent).await.unwrap();
        near.shutdown().await.unwrap();
        drop(near);
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, sent);
    });
}

#[test]
fn dropping_an_unended_stream_resets_both_directions() {
    run(async {
        let ((a, _a_in, _), (_b, mut b_in, _)) = pair(4096);
        let mut near = a.open(&1).await.unwrap();
        near.write_all(b"before").await.unwrap();
        let (_, mut far) = b_in.accept().await.unwrap();
        let mut before = [0; 6];
        far.read_exact(&mut before).await.unwrap();
        drop(near);
        assert_eq!(
            far.read(&mut [0]).await.unwrap_err().kind(),
            io::ErrorKind::ConnectionReset
        );
        assert_eq!(
            far.write(&[0]).await.unwrap_err().kind(),
            io::ErrorKind::ConnectionReset
        );
    });
}

#[test]
fn a_drop_after_an_end_loses_nothing() {
    run(async {
        let ((a, _a_in, _), (_b, mut b_in, _)) = pair(4096);
        let mut near = a.open(&1).await.unwrap();
        let sent = pattern(60_000, 1);
        near.write_all(&sent).await.unwrap();
        near.shutdown().await.unwrap();
        drop(near);
        let (_, mut far) = b_in.accept().await.unwrap();
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.unwrap();
        assert!(received == sent);
        while far.write(&[0]).await.is_ok() {
            yield_now().await;
        }
    });
}

#[test]
fn a_writer_that_waits_for_credit_learns_of_the_reset() {
    run(async {
        let ((a, _a_in, _), (_b, mut b_in, _)) = pair(1 << 20);
        let mut near = a.open(&1).await.unwrap();
        let (_, far) = b_in.accept().await.unwrap();
        let writer = tokio::spawn(async move { near.write_all(&vec![0; 2 * WINDOW]).await });
        drop(far);
        let error = writer.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_reset_stream_is_not_accepted_any_more() {
    run(async {
        let ((a, _a_in, _), (_b, mut b_in, _)) = pair(4096);
        // More than may be open at once, one after the other, while nobody accepts.
        for i in 0..2000 {
            loop {
                match a.open(&i).await {
                    Ok(stream) => break drop(stream),
                    Err(MuxError::TooManyStreams) => yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        let mut last = loop {
            match a.open(&9999).await {
                Ok(stream) => break stream,
                Err(_) => yield_now().await,
            }
        };
        last.write_all(b"!").await.unwrap();
        loop {
            let (first, mut stream) = b_in.accept().await.unwrap();
            if first == 9999 {
                assert_eq!(stream.read_u8().await.unwrap(), b'!');
                break;
            }
        }
    });
}

#[test]
fn streams_are_reset_once_nobody_accepts_them() {
    run(async {
        let ((a, _a_in, _), (_b, b_in, _)) = pair(4096);
        let mut early = a.open(&1).await.unwrap();
        drop(b_in);
        let mut late = a.open(&2).await.unwrap();
        for stream in [&mut early, &mut late] {
            let error = stream.read(&mut [0]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    });
}

#[test]
fn the_end_of_the_connection_resets_every_stream() {
    run(async {
        let ((a, _a_in, _), (_b, mut b_in, b_driver)) = pair(4096);
        let near = a.open(&1).await.unwrap();
        let (_, mut far) = b_in.accept().await.unwrap();
        let (mut reader, mut writer) = split(near);
        let pending = tokio::spawn(async move { reader.read(&mut [0]).await });
        b_driver.abort();
        assert_eq!(
            pending.await.unwrap().unwrap_err().kind(),
            io::ErrorKind::ConnectionReset
        );
        assert_eq!(
            writer.write(&[0]).await.unwrap_err().kind(),
            io::ErrorKind::ConnectionReset
        );
        assert_eq!(
            far.read(&mut [0]).await.unwrap_err().kind(),
            io::ErrorKind::ConnectionReset
        );
        assert!(b_in.accept().await.is_none());
        assert!(matches!(a.open(&2).await, Err(MuxError::Gone)));
    });
}

#[test]
fn drivers_end_in_order_when_nobody_is_left() {
    run(async {
        let ((a, a_in, a_driver), (b, mut b_in, b_driver)) = pair(4096);
        let mut near = a.open(&1).await.unwrap();
        drop((a, a_in, b));
        let (_, mut far) = b_in.accept().await.unwrap();
        drop(b_in);
        far.write_all(b"bye").await.unwrap();
        far.shutdown().await.unwrap();
        near.shutdown().await.unwrap();
        let mut bye = String::new();
        near.read_to_string(&mut bye).await.unwrap();
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
        drop((near, far));
        a_driver.await.unwrap().unwrap();
        b_driver.await.unwrap().unwrap();
        assert_eq!(bye, "bye");
    });
}

#[test]
fn a_stalled_stream_holds_back_its_own_writer_and_nothing_else() {
    run(async {
        let ((a, _a_in, _), (b, mut b_in, _)) = pair(64 << 10);
        let mut stalled = a.open(&1).await.unwrap();
        let (_, _unread) = b_in.accept().await.unwrap();
        let accepted = async {
            let mut accepted = 0;
            while let Ok(Ok(n)) =
                timeout(Duration::from_millis(200), stalled.write(&[7; 8192])).await
            {
                accepted += n;
            }
            accepted
        };
        assert_eq!(accepted.await, WINDOW, "a writer gets exactly the window");
        for i in 0..20 {
            let mut near = a.open(&i).await.unwrap();
            let (_, mut far) = b_in.accept().await.unwrap();
            let sent = pattern(WINDOW * 2, 3);
            let expected = sent.clone();
            let writer = tokio::spawn(async move {
                near.write_all(&sent).await.unwrap();
                near.shutdown().await.unwrap();
                near
            });
            let mut received = Vec::new();
            far.read_to_end(&mut received).await.unwrap();
            assert!(received == expected);
            drop(writer.await.unwrap());
        }
        drop(b);
    });
}

#[test]
fn streams_take_turns() {
    run(async {
        let ((a, _a_in, _), (_b, mut b_in, _)) = pair(8 << 10);
        let mut big = a.open(&1).await.unwrap();
        let mut small = a.open(&2).await.unwrap();
        let (_, mut big_far) = b_in.accept().await.unwrap();
        let (_, mut small_far) = b_in.accept().await.unwrap();
        let flood = tokio::spawn(async move { while big.write_all(&[0; 65536]).await.is_ok() {} });
        let sink = tokio::spawn(async move {
            let mut buffer = vec![0; 65536];
            let mut total = 0;
            while let Ok(n @ 1..) = big_far.read(&mut buffer).await {
                total += n;
            }
            total
        });
        for i in 0..200 {
            small.write_u32(i).await.unwrap();
            assert_eq!(small_far.read_u32().await.unwrap(), i);
        }
        flood.abort();
        assert!(sink.await.unwrap() > 0);
    });
}

#[test]
fn a_hundred_megabytes_arrive_as_they_were_sent() {
    run(async {
        let ((a, _a_in, _), (_b, mut b_in, _)) = pair(256 << 10);
        let mut near = a.open(&1).await.unwrap();
        let (_, mut far) = b_in.accept().await.unwrap();
        let chunk = pattern(1 << 20, 11);
        let expected = chunk.clone();
        tokio::spawn(async move {
            for _ in 0..100 {
                near.write_all(&chunk).await.unwrap();
            }
            near.shutdown().await.unwrap();
            let _ = near.read(&mut [0]).await;
        });
        let mut buffer = vec![0; 1 << 20];
        for _ in 0..100 {
            far.read_exact(&mut buffer).await.unwrap();
            assert!(buffer == expected);
        }
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
        far.shutdown().await.unwrap();
    });
}

#[test]
fn as_many_streams_as_allowed_echo_at_once_and_one_more_is_refused() {
    run(async {
        let ((a, _a_in, _), (_b, mut b_in, _)) = pair(4096);
        tokio::spawn(async move {
            while let Some((_, stream)) = b_in.accept().await {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = split(stream);
                    let _ = copy(&mut reader, &mut writer).await;
                    let _ = writer.shutdown().await;
                });
            }
        });
        for _ in 0..2 {
            let mut open = Vec::new();
            for i in 0..MAX_STREAMS {
                open.push(a.open(&u32::try_from(i).unwrap()).await.unwrap());
            }
            assert!(matches!(a.open(&0).await, Err(MuxError::TooManyStreams)));
            for (i, stream) in open.iter_mut().enumerate() {
                stream.write_all(&pattern(100, i)).await.unwrap();
                stream.shutdown().await.unwrap();
            }
            for (i, mut stream) in open.into_iter().enumerate() {
                let mut echo = Vec::new();
                stream.read_to_end(&mut echo).await.unwrap();
                assert_eq!(echo, pattern(100, i));
            }
        }
    });
}

#[test]
fn a_first_message_that_is_too_long_is_refused_here() {
    run(async {
        let (io, _peer) = duplex(64);
        let (opener, _incoming, _driver) = start::<_, Vec<u8>, u32>(io, Side::Dialer);
        let long = vec![0; MAX_OPEN];
        assert!(matches!(opener.open(&long).await, Err(MuxError::LongOpen)));
    });
}

/// What becomes of a connection whose peer, a dialler, says `bytes`.
fn verdict(bytes: &[u8]) -> Result<(), MuxError> {
    run(async {
        let (io, mut peer) = duplex(1 << 20);
        let (_opener, incoming, driver) = end(io, Side::Listener);
        peer.write_all(bytes).await.unwrap();
        peer.shutdown().await.unwrap();
        let result = driver.await.unwrap();
        drop(incoming);
        result
    })
}

#[test]
fn every_violation_has_its_name() {
    let hostile = |build: &dyn Fn(&mut BytesMut)| {
        let mut bytes = BytesMut::new();
        build(&mut bytes);
        match verdict(&bytes) {
            Err(MuxError::Violation { source }) => source,
            other => panic!("{other:?}"),
        }
    };
    let open = |out: &mut BytesMut, id| frame::put_open(out, id, &[0]);
    assert_eq!(
        hostile(&|out| open(out, 2)),
        Violation::WrongNumber {
            stream: 2,
            expected: 1
        }
    );
    assert_eq!(
        hostile(&|out| open(out, 3)),
        Violation::WrongNumber {
            stream: 3,
            expected: 1
        }
    );
    for id in [0, 1, 2, 77] {
        let expected = Violation::UnopenedStream { stream: id };
        assert_eq!(hostile(&|out| frame::put_data(out, id, &[0])), expected);
        assert_eq!(hostile(&|out| frame::put_reset(out, id)), expected);
    }
    assert_eq!(
        hostile(&|out| frame::put_open(out, 1, &[0xff; 9])),
        Violation::BadOpen { stream: 1 }
    );
    assert_eq!(
        hostile(&|out| frame::put_open(out, 1, &[0; 9])),
        Violation::BadOpen { stream: 1 }
    );
    assert_eq!(
        hostile(&|out| (0..=MAX_STREAMS).for_each(|i| open(out, u32::try_from(i).unwrap() * 2 + 1))),
        Violation::TooManyStreams
    );
    assert_eq!(
        hostile(&|out| {
            open(out, 1);
            (0..9).for_each(|_| frame::put_data(out, 1, &[0; frame::MAX_DATA]));
        }),
        Violation::WindowExceeded { stream: 1 }
    );
    assert_eq!(
        hostile(&|out| {
            open(out, 1);
            frame::put_credit(out, 1, 1);
        }),
        Violation::CreditExceeded { stream: 1 }
    );
    assert_eq!(
        hostile(&|out| {
            open(out, 1);
            frame::put_end(out, 1);
            frame::put_data(out, 1, &[0]);
        }),
        Violation::AfterEnd {
            kind: frame::DATA,
            stream: 1
        }
    );
    let mut cut = BytesMut::new();
    open(&mut cut, 1);
    assert!(matches!(verdict(&cut[..5]), Err(MuxError::Truncated)));
    assert!(matches!(verdict(&cut), Ok(())));
}

#[test]
fn first_messages_that_nobody_accepts_are_bounded() {
    let result = run(async {
        let (io, mut peer) = duplex(1 << 20);
        let (_opener, _incoming, driver) = start::<_, u32, Vec<u8>>(io, Side::Listener);
        let driver = tokio::spawn(driver);
        let message = postcard::to_stdvec(&vec![0_u8; MAX_OPEN - 8]).unwrap();
        for i in 0..10 {
            let mut out = BytesMut::new();
            frame::put_open(&mut out, i * 2 + 1, &message);
            if peer.write_all(&out).await.is_err() {
                break;
            }
        }
        driver.await.unwrap()
    });
    let Err(MuxError::Violation {
        source: Violation::Backlog,
    }) = result
    else {
        panic!("{result:?}");
    };
}

/// A step of a random conversation.
#[derive(Clone, Debug)]
enum Step {
    Write { stream: usize, length: usize },
    Read { stream: usize, length: usize },
}

fn step(streams: usize) -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..streams, 1_usize..100_000).prop_map(|(stream, length)| Step::Write { stream, length }),
        (0..streams, 1_usize..100_000).prop_map(|(stream, length)| Step::Read { stream, length }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_interleaving_delivers_exactly_what_was_written(
        buffer in prop_oneof![1_usize..64, 1_usize..100_000],
        steps in vec(step(4), 1..60),
    ) {
        run(async {
            let ((a, _a_in, _), (_b, mut b_in, _)) = pair(buffer);
            let mut near = Vec::new();
            let mut far = Vec::new();
            let mut sent = vec![Vec::new(); 4];
            let mut received = vec![Vec::new(); 4];
            for i in 0..4 {
                near.push(a.open(&i).await.unwrap());
                far.push(b_in.accept().await.unwrap().1);
            }
            for step in steps {
                match step {
                    Step::Write { stream, length } => {
                        // What cannot be written without a reader is left out.
                        let room = WINDOW - (sent[stream].len() - received[stream].len());
                        let room = room.saturating_sub(WINDOW / 4);
                        let bytes = pattern(length.min(room), sent[stream].len() + stream);
                        near[stream].write_all(&bytes).await.unwrap();
                        sent[stream].extend_from_slice(&bytes);
                    }
                    Step::Read { stream, length } => {
                        let length = length.min(sent[stream].len() - received[stream].len());
                        let mut bytes = vec![0; length];
                        far[stream].read_exact(&mut bytes).await.unwrap();
                        received[stream].extend_from_slice(&bytes);
                    }
                }
            }
            for i in 0..4 {
                near[i].shutdown().await.unwrap();
                far[i].read_to_end(&mut received[i]).await.unwrap();
                assert!(received[i] == sent[i]);
            }
        });
    }

    #[test]
    fn hostile_bytes_end_the_connection_or_mean_something(
        bytes in vec(any::<u8>(), 0..300),
        opened in any::<bool>(),
    ) {
        let mut said = BytesMut::new();
        if opened {
            frame::put_open(&mut said, 1, &[5]);
        }
        said.extend_from_slice(&bytes);
        let _ = verdict(&said);
    }

    #[test]
    fn hostile_frames_end_the_connection_or_mean_something(
        frames in vec((0_u8..7, 0_u32..6, 0_u32..5), 0..40),
    ) {
        let mut said = BytesMut::new();
        for (kind, stream, value) in frames {
            said.extend_from_slice(&[kind]);
            said.extend_from_slice(&stream.to_le_bytes());
            said.extend_from_slice(&value.to_le_bytes());
            said.extend_from_slice(&[1, 1, 1, 1][..if kind < 3 { value as usize } else { 0 }]);
        }
        let _ = verdict(&said);
    }
}
