//! An upstream that stops reading holds up its own upload and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bottle_core::backend::Command;
use bottle_tests::bench::Bench;
use bottle_tests::given::vm;
use bottle_tests::upstream::STALL_AFTER;
use bottle_tests::wait::wait_until;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// What the guest tries to send.
const UPLOAD: u64 = 200_000_000;

/// More than the buffers of all hops together can hold: whoever took more did not stop reading.
const BUFFERS: u64 = 64 << 20;

/// Fails if a stream of the mux has no credits, if the gateway buffers without bound, or if one
/// event loop writes to the stalled peer: TSI freezes all connections, `exec` and `stop` here.
#[test]
fn an_upload_whose_upstream_stops_reading_holds_up_nothing_else() {
    vm(async |given| {
        let bench = Bench::start(given, "stall", |_| {}).await?;
        let args = [
            "curl",
            "-sS",
            "-T",
            "-",
            "-H",
            "Expect:",
            "https://stall.test/stall",
        ];
        let mut upload = bench.bottle.exec(&Command::new(args)).await?;
        let sent = Arc::new(AtomicU64::new(0));
        let stdin = upload.stdin.take().context("no standard input")?;
        let feeder = tokio::spawn(feed(stdin, Arc::clone(&sent)));
        let begun = || bench.upstream.stalled() >= STALL_AFTER;
        wait_until(
            Duration::from_secs(60),
            "the upstream has got its first MB",
            begun,
        )
        .await?;

        assert_eq!(
            bench.run(["echo", "still here"]).await?.success()?,
            "still here"
        );
        let url = "https://allowed.test/big?bytes=20000000";
        let script = format!("curl -sS --max-time 60 '{url}' | wc -c");
        assert_eq!(
            bench.run(["sh", "-c", &script]).await?.success()?,
            "20000000"
        );
        let told = bench
            .run(["getent", "ahostsv4", "allowed.test"])
            .await?
            .success()?;
        ensure!(told.starts_with("198.18."), "{told}");
        let sent = sent.load(Ordering::SeqCst);
        ensure!(
            sent < BUFFERS,
            "{sent} bytes were taken for an upstream that does not read"
        );
        ensure!(sent >= STALL_AFTER, "only {sent} bytes were sent");
        ensure!(!feeder.is_finished(), "the upload is over");
        let ended = timeout(Duration::from_millis(1), upload.control.wait()).await;
        ensure!(ended.is_err(), "the upload has ended: {ended:?}");

        let begun = Instant::now();
        bench.bottle.stop(Duration::from_secs(2)).await?;
        let took = begun.elapsed();
        ensure!(took < Duration::from_secs(20), "stop took {took:?}");
        bench.bottle.remove().await?;
        let left = bench.host.leftovers()?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    });
}

/// Sends the upload and counts what was taken of it.
async fn feed(mut stdin: Box<dyn AsyncWrite + Send + Unpin>, sent: Arc<AtomicU64>) {
    let piece = [b'u'; 1 << 16];
    while sent.load(Ordering::SeqCst) < UPLOAD {
        match stdin.write(&piece).await {
            Ok(taken) if taken > 0 => sent.fetch_add(taken as u64, Ordering::SeqCst),
            Ok(_) | Err(_) => return,
        };
    }
}
