//! Programs in a bottle: streams are binary-clean, and every way to end comes through.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bottle_core::backend::{BackendError, Command, ExitStatus, SpawnFailure};
use bottle_tests::bench::PATIENCE;
use bottle_tests::frame::in_shared_bottle;
use bottle_tests::token::hex;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// What goes through standard input and output: 200 MB.
const MUCH: usize = 200_000_000;

#[test]
fn the_exit_status_of_a_program_comes_through() {
    in_shared_bottle(async |bench| {
        for code in [0_u8, 7, 255] {
            let output = bench.run(["sh", "-c", &format!("exit {code}")]).await?;
            assert_eq!(output.status, ExitStatus::Exited(code), "{output}");
        }
        // A shell's own 127 and 126 are plain statuses.
        let output = bench.run(["sh", "-c", "no-such-program"]).await?;
        assert_eq!(output.status, ExitStatus::Exited(127), "{output}");
        Ok(())
    });
}

#[test]
fn death_by_signal_comes_through() {
    in_shared_bottle(async |bench| {
        for (name, number) in [("KILL", 9_u8), ("TERM", 15), ("SEGV", 11)] {
            let output = bench.run(["sh", "-c", &format!("kill -{name} $$")]).await?;
            assert_eq!(output.status, ExitStatus::Signaled(number), "{output}");
        }
        Ok(())
    });
}

#[test]
fn a_program_that_cannot_be_started_says_why() {
    in_shared_bottle(async |bench| {
        let failure = async |program: &str| match bench.bottle.exec(&Command::new([program])).await
        {
            Err(BackendError::Spawn(failure)) => Ok(failure),
            Err(error) => Err(error).context("another error than a spawn failure"),
            Ok(_) => bail!("{program} was started"),
        };
        let missing = failure("no-such-program").await?;
        ensure!(
            matches!(missing, SpawnFailure::NotFound { .. }),
            "{missing:?}"
        );
        assert_eq!(missing.code(), 127);
        let data = failure("/etc/passwd").await?;
        ensure!(
            matches!(data, SpawnFailure::NotExecutable { .. }),
            "{data:?}"
        );
        assert_eq!(data.code(), 126);

        let mut command = Command::new(["true"]);
        command.cwd = Some("/no/such/directory".to_owned());
        match bench.bottle.exec(&command).await {
            Err(BackendError::Spawn(failure)) => assert_eq!(failure.code(), 125, "{failure:?}"),
            other => bail!("a directory that does not exist: {other:?}"),
        }
        Ok(())
    });
}

#[test]
fn variables_and_arguments_arrive_as_they_were_given() {
    in_shared_bottle(async |bench| {
        let mut command =
            Command::new(["sh", "-c", "printf '%s|%s|%s' \"$ODD\" \"$1\" \"$2\"", "sh"]);
        command.argv.extend(["".to_owned(), "ü \n'\"$x".to_owned()]);
        command.env.push(("ODD".to_owned(), "a=b c\n".to_owned()));
        let output = bench.run_command(command, b"").await?;
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "a=b c\n||ü \n'\"$x"
        );
        Ok(())
    });
}

#[test]
fn standard_output_and_error_are_two_streams() {
    in_shared_bottle(async |bench| {
        let output = bench.run(["sh", "-c", "echo out; echo err >&2"]).await?;
        assert_eq!(
            (&*output.stdout, &*output.stderr),
            (&b"out\n"[..], &b"err\n"[..]),
            "{output}"
        );
        Ok(())
    });
}

#[test]
fn a_program_without_standard_input_reads_end_of_file() {
    in_shared_bottle(async |bench| {
        let mut command = Command::new(["cat"]);
        command.stdin = false;
        bench.run_command(command, b"").await?.success()?;
        Ok(())
    });
}

/// A short input is written and ended before the program runs; none of it may be lost on the way.
#[test]
fn a_short_standard_input_arrives_whole_every_time() {
    in_shared_bottle(async |bench| {
        for round in 0..25 {
            let text = format!("round {round}");
            let cat = || bench.run_command(Command::new(["cat"]), text.as_bytes());
            let (one, two, three, four) = tokio::try_join!(cat(), cat(), cat(), cat())?;
            for output in [one, two, three, four] {
                assert_eq!(output.success()?, text);
            }
        }
        Ok(())
    });
}

#[test]
fn a_signal_reaches_the_whole_group_of_a_program() {
    in_shared_bottle(async |bench| {
        let command = Command::new(["sh", "-c", "sleep 600 & echo ready; wait"]);
        let mut process = bench.bottle.exec(&command).await?;
        let mut ready = [0_u8; 6];
        timeout(PATIENCE, process.stdout.read_exact(&mut ready)).await??;
        process.control.signal(15).await?;
        let status = timeout(PATIENCE, process.control.wait()).await??;
        assert_eq!(status, ExitStatus::Signaled(15));
        // The stream ends only if `sleep`, which holds it too, has gone as well.
        let mut rest = Vec::new();
        timeout(
            Duration::from_secs(20),
            process.stdout.read_to_end(&mut rest),
        )
        .await
        .context("a process of the group is left")??;
        Ok(())
    });
}

#[test]
fn several_programs_run_at_once() {
    in_shared_bottle(async |bench| {
        let numbers: Vec<String> = (0..8).map(|number| number.to_string()).collect();
        let script = "cat >/dev/null; echo $1";
        // They all wait for their input, so none ends before all run.
        let mut running = Vec::new();
        for number in &numbers {
            let command = Command::new(["sh", "-c", script, "sh", number]);
            running.push(bench.bottle.exec(&command).await?);
        }
        for (number, mut process) in numbers.iter().zip(running).rev() {
            drop(process.stdin.take());
            let mut told = String::new();
            timeout(PATIENCE, process.stdout.read_to_string(&mut told)).await??;
            assert_eq!(told.trim(), number);
            assert_eq!(process.control.wait().await?, ExitStatus::Exited(0));
        }
        Ok(())
    });
}

#[test]
fn two_hundred_megabytes_come_back_byte_for_byte() {
    in_shared_bottle(async |bench| {
        let process = bench.bottle.exec(&Command::new(["cat"])).await?;
        let (mut stdin, mut stdout) = (process.stdin, process.stdout);
        let stdin = stdin.as_mut().context("no standard input")?;
        let write = async {
            let mut hash = Sha256::new();
            let mut left = MUCH;
            let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
            while left > 0 {
                let piece = noise.piece();
                let piece = &piece[..piece.len().min(left)];
                stdin.write_all(piece).await?;
                hash.update(piece);
                left -= piece.len();
            }
            stdin.shutdown().await?;
            Ok::<_, anyhow::Error>(hex(&hash.finalize()))
        };
        let read = async {
            let mut hash = Sha256::new();
            let mut bytes = 0;
            let mut buffer = vec![0; 1 << 16];
            loop {
                let got = stdout.read(&mut buffer).await?;
                if got == 0 {
                    return Ok::<_, anyhow::Error>((bytes, hex(&hash.finalize())));
                }
                hash.update(&buffer[..got]);
                bytes += got;
            }
        };
        let both = timeout(Duration::from_secs(360), async {
            tokio::try_join!(write, read)
        });
        let (sent, (bytes, received)) = both.await.context("200 MB took too long")??;
        assert_eq!(bytes, MUCH);
        assert_eq!(sent, received);
        assert_eq!(process.control.wait().await?, ExitStatus::Exited(0));
        Ok(())
    });
}

/// Bytes without a pattern (xorshift): all values, no run that a codec could mistake.
struct Noise(u64);

impl Noise {
    fn piece(&mut self) -> Vec<u8> {
        let mut piece = Vec::with_capacity(1 << 16);
        while piece.len() < 1 << 16 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            piece.extend_from_slice(&self.0.to_le_bytes());
        }
        piece
    }
}

/// One stream that nobody reads holds back itself and nothing else: no credit, no bytes.
#[test]
fn a_program_whose_output_is_not_read_holds_up_no_other() {
    in_shared_bottle(async |bench| -> Result<()> {
        let flood = Command::new(["head", "-c", "100000000", "/dev/zero"]);
        let unread = bench.bottle.exec(&flood).await?;
        for _ in 0..3 {
            assert_eq!(bench.run(["echo", "here"]).await?.success()?, "here");
        }
        unread.control.signal(9).await?;
        assert_eq!(
            timeout(PATIENCE, unread.control.wait()).await??,
            ExitStatus::Signaled(9)
        );
        Ok(())
    });
}
