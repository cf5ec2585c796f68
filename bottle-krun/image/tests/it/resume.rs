//! Downloads that break off: continued within a pull, and by the next one.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bottle_core::reporter::Silent;
use bottle_image::RegistryRule;

use crate::bench::{Bench, leftovers, patient};
use crate::calls::chain;
use crate::registry::{Fault, Reply, Seen, Server, ranged};

/// Serves the image; what is sent of the larger layer is up to `large`, who also learns how
/// often it was asked for before.
fn serving(
    bench: &mut Bench,
    large: impl Fn(&Seen, Vec<u8>) -> Reply + Send + Sync + 'static,
) -> Server {
    let (digest, bytes) = bench.large();
    let repo = bench.repo();
    let server = Server::start(move |seen| {
        if seen.is_blob(&digest) {
            return large(seen, bytes.clone());
        }
        repo.answer(seen)
    });
    bench.plain(&server);
    server
}

fn ranges(server: &Server, bench: &Bench) -> Vec<Option<String>> {
    let (digest, _) = bench.large();
    let seen = server.seen_of(&digest).into_iter();
    seen.map(|seen| seen.header("range").map(str::to_owned))
        .collect()
}

#[test]
fn a_cut_connection_is_continued_where_it_broke_off() {
    let mut bench = Bench::new();
    let server = serving(&mut bench, |seen, bytes| {
        let reply = ranged(seen, bytes);
        let cut = reply.body.len().min(300_000);
        if cut < reply.body.len() {
            reply.fault(Fault::Cut(cut))
        } else {
            reply
        }
    });
    bench.succeeds(&server);
    let range = |from: u64| Some(format!("bytes={from}-"));
    let expected = [None, range(300_000), range(600_000), range(900_000)];
    assert_eq!(
        ranges(&server, &bench),
        expected[..ranges(&server, &bench).len()]
    );
    assert!(ranges(&server, &bench).len() >= 3);
}

#[test]
fn a_server_without_ranges_sends_all_of_it_again() {
    let mut bench = Bench::new();
    let server = serving(&mut bench, |seen, bytes| {
        let reply = Reply::new(200, bytes);
        if seen.before == 0 {
            reply.fault(Fault::Cut(300_000))
        } else {
            reply
        }
    });
    bench.succeeds(&server);
    assert_eq!(
        ranges(&server, &bench),
        [None, Some("bytes=300000-".to_owned())]
    );
}

#[test]
fn a_connection_that_breaks_again_and_again_is_given_up_and_continued_by_the_next_pull() {
    let mut bench = Bench::new();
    let steady = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&steady);
    let server = serving(&mut bench, move |seen, bytes| {
        let reply = ranged(seen, bytes);
        if asked.load(Ordering::SeqCst) == 0 {
            reply.fault(Fault::Cut(10_000))
        } else {
            reply
        }
    });
    let (digest, bytes) = bench.large();
    let error = bench.pull(&server, "team/app:v1").unwrap_err();
    assert!(!error.is_bad_image());
    let message = chain(&error);
    assert!(
        message.starts_with(&format!("cannot read layer {digest}")),
        "{message}"
    );
    let expected = format!(
        "the connection to `{}` broke off while it sent layer {digest}; try again: a layer \
         continues where it stopped",
        server.host()
    );
    assert!(message.contains(&expected), "{message}");
    assert_eq!(ranges(&server, &bench).len(), 6);
    let left = leftovers(&bench.store());
    assert_eq!(left, [format!("blobs/{}.partial", &digest[7..])]);
    assert_eq!(fs::read(bench.partial()).unwrap(), bytes[..60_000]);

    steady.store(1, Ordering::SeqCst);
    bench.succeeds(&server);
    assert_eq!(ranges(&server, &bench)[6].as_deref(), Some("bytes=60000-"));
}

#[test]
fn a_stalled_download_is_continued_by_the_next_pull() {
    let mut bench = Bench::new();
    let server = serving(&mut bench, |seen, bytes| {
        let reply = ranged(seen, bytes);
        if seen.before == 0 {
            reply.fault(Fault::Stall(123_456))
        } else {
            reply
        }
    });
    let (digest, _) = bench.large();
    bench.hasty();
    let message = bench.fails_leaving(&server);
    let expected = format!(
        "`{}` sent nothing more of layer {digest} for 500 ms; try again: a layer continues where \
         it stopped",
        server.host()
    );
    assert!(message.ends_with(&expected), "{message}");
    assert_eq!(fs::metadata(bench.partial()).unwrap().len(), 123_456);
    bench.options.timeouts.stall = patient().timeouts.stall;
    bench.succeeds(&server);
    assert_eq!(ranges(&server, &bench)[1].as_deref(), Some("bytes=123456-"));
}

#[test]
fn what_a_killed_pull_left_is_used() {
    let mut bench = Bench::new();
    let server = serving(&mut bench, ranged);
    let (_, bytes) = bench.large();
    let plant = |content: &[u8]| {
        fs::create_dir_all(bench.store().join("blobs")).unwrap();
        fs::write(bench.partial(), content).unwrap();
    };
    plant(&bytes[..500_000]);
    bench.succeeds(&server);
    // All of it was there already: nothing is asked for.
    fs::remove_dir_all(bench.store()).unwrap();
    plant(&bytes);
    bench.succeeds(&server);
    assert_eq!(ranges(&server, &bench), [Some("bytes=500000-".to_owned())]);
    // Longer than it can be: worth nothing.
    fs::remove_dir_all(bench.store()).unwrap();
    plant(&[&bytes[..], b"x"].concat());
    bench.succeeds(&server);
    assert_eq!(ranges(&server, &bench)[1], None);
}

#[test]
fn a_wrong_beginning_is_found_out_and_forgotten() {
    let mut bench = Bench::new();
    let server = serving(&mut bench, ranged);
    let (digest, mut bytes) = bench.large();
    bytes[100] ^= 1;
    fs::create_dir_all(bench.store().join("blobs")).unwrap();
    fs::write(bench.partial(), &bytes[..500_000]).unwrap();
    let message = bench.fails(&server);
    assert!(message.starts_with("a layer has digest"), "{message}");
    assert!(message.contains(&format!("expected {digest}")), "{message}");
    bench.succeeds(&server);
}

#[test]
fn another_range_than_was_asked_for_is_refused() {
    // One for each: a download that was refused may still be letting go of its file.
    let begun = || {
        let bench = Bench::new();
        fs::create_dir_all(bench.store().join("blobs")).unwrap();
        fs::write(bench.partial(), &bench.large().1[..500_000]).unwrap();
        bench
    };
    let size = begun().large().1.len();
    for range in [
        format!("bytes 400000-{}/{size}", size - 1),
        "bytes */5".to_owned(),
        "items 500000-".to_owned(),
        String::new(),
    ] {
        let mut bench = begun();
        let server = serving(&mut bench, move |_, bytes| {
            Reply::new(206, &bytes[500_000..]).header("Content-Range", range.clone())
        });
        let message = bench.fails_leaving(&server);
        assert!(
            message.ends_with("it sends another part than was asked for"),
            "{message}"
        );
    }
    let mut bench = begun();
    let server = serving(&mut bench, |_, bytes| {
        Reply::new(206, &bytes[500_000..]).header("Content-Range", "bytes 500000-500001/500002")
    });
    let message = bench.fails_leaving(&server);
    assert!(message.contains("has 500002 bytes, expected"), "{message}");
    // Unasked.
    let mut bench = Bench::new();
    let server = serving(&mut bench, |_, bytes| {
        Reply::new(206, &bytes[5..]).header("Content-Range", format!("bytes 5-9/{}", bytes.len()))
    });
    let message = bench.fails(&server);
    assert!(
        message.ends_with("it sends a part that was not asked for"),
        "{message}"
    );
}

/// Not a test by itself: what the next ones run in processes of their own.
#[test]
fn pull_in_a_process_of_its_own() {
    let Ok(order) = env::var(ORDER) else {
        return;
    };
    let (host, store) = order.split_once(' ').unwrap();
    let mut options = patient();
    let mut rule = RegistryRule::new(host);
    rule.plain_http = true;
    options.registries.push(rule);
    let source = format!("{host}/team/app:v1").parse().unwrap();
    bottle_image::to_disk(&source, &options, Path::new(store), &Silent).unwrap();
}

const ORDER: &str = "BOTTLE_TEST_PULL";

fn pull_elsewhere(server: &Server, bench: &Bench) -> Child {
    let order = format!("{} {}", server.host(), bench.store().display());
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "resume::pull_in_a_process_of_its_own"])
        .env(ORDER, order)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn two_processes_download_each_layer_once() {
    let mut bench = Bench::new();
    let server = serving(&mut bench, ranged);
    let mut children: Vec<Child> = (0..4).map(|_| pull_elsewhere(&server, &bench)).collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(ranges(&server, &bench), [None]);
    bench.succeeds(&server);
    assert_eq!(ranges(&server, &bench).len(), 1);
}

#[test]
fn a_download_of_another_process_is_waited_for() {
    let mut bench = Bench::new();
    let server = serving(&mut bench, ranged);
    let (_, bytes) = bench.large();
    fs::create_dir_all(bench.store().join("blobs")).unwrap();
    fs::write(bench.partial(), &bytes[..500_000]).unwrap();
    let theirs = OpenOptions::new()
        .append(true)
        .open(bench.partial())
        .unwrap();
    theirs.lock().unwrap();
    thread::scope(|scope| {
        let pull = scope.spawn(|| bench.succeeds(&server));
        // Manifest and config are read, and then it has to wait.
        let deadline = Instant::now() + Duration::from_secs(30);
        while server.seen().len() < 2 {
            assert!(Instant::now() < deadline, "the pull did not come so far");
            thread::yield_now();
        }
        let a_while = Instant::now() + Duration::from_millis(300);
        while Instant::now() < a_while {
            assert_eq!(ranges(&server, &bench).len(), 0, "it did not wait");
            thread::yield_now();
        }
        (&theirs).write_all(&bytes[500_000..]).unwrap();
        theirs.unlock().unwrap();
        pull.join().unwrap();
    });
    assert_eq!(ranges(&server, &bench).len(), 0);
}

#[test]
fn a_pull_that_is_killed_is_continued() {
    let mut bench = Bench::new();
    let server = serving(&mut bench, |seen, bytes| {
        let reply = ranged(seen, bytes);
        if seen.before == 0 {
            reply.fault(Fault::Stall(200_000))
        } else {
            reply
        }
    });
    let mut child = pull_elsewhere(&server, &bench);
    let deadline = Instant::now() + Duration::from_secs(30);
    while fs::metadata(bench.partial()).map_or(0, |found| found.len()) < 200_000 {
        assert!(
            Instant::now() < deadline,
            "the download did not come so far"
        );
        assert!(child.try_wait().unwrap().is_none(), "the child ended");
        thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    bench.succeeds(&server);
    assert_eq!(ranges(&server, &bench)[1].as_deref(), Some("bytes=200000-"));
}
