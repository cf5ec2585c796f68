//! Bottles that one lives in: detached, attached to, on a terminal, started again.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use bottle_core::backend::{Backend, BackendError, Command, ExitStatus};
use bottle_core::event::Happening;
use bottle_core::log::{LogPosition, LogStream};
use bottle_core::reporter::Silent;
use bottle_core::spec::{ImageSource, Spec};
use bottle_tests::bench::Output;
use bottle_tests::cli::run;
use bottle_tests::frame::on_host;
use bottle_tests::host::TestHost;
use bottle_tests::processes::Process;
use bottle_tests::terminal::Terminal;
use bottle_tests::upstream::Tripwire;
use bottle_tests::wait::{wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How soon something that needs no boot must have happened.
const DEADLINE: Duration = Duration::from_secs(30);

/// Runs `bottle WORDS…`, which must succeed, and returns what it printed without its last newline.
async fn bottle(host: &TestHost, words: &[&str]) -> Result<String> {
    let output = run(host.bottle(words), b"").await?;
    ensure!(output.status == ExitStatus::Exited(0), "{output}");
    Ok(output.text().trim_end().to_owned())
}

/// Starts a bottle by the command line, in the background, and returns its id.
async fn start(host: &TestHost, name: &str, rest: &[&str]) -> Result<String> {
    let mut args = host.start_args(name);
    args.push("--detach".to_owned());
    args.extend(rest.iter().map(|word| (*word).to_owned()));
    let output: Output = run(host.bottle(&args), b"").await?;
    ensure!(output.status == ExitStatus::Exited(0), "{output}");
    let id = output.text().trim_end().to_owned();
    ensure!(id.starts_with(&format!("{name}-")), "{output}");
    Ok(id)
}

async fn inspected(host: &TestHost, name: &str) -> Result<Value> {
    Ok(serde_json::from_str(
        &bottle(host, &["inspect", name]).await?,
    )?)
}

#[test]
fn a_detached_bottle_lives_by_itself_and_starts_again_with_its_disk() {
    on_host(async |host| {
        let script = "echo out; echo err >&2; exec sleep 600";
        let id = start(
            host,
            "lives",
            &["--label", "team=a", "--", "sh", "-c", script],
        )
        .await?;
        assert_eq!(bottle(host, &["list", "--ids"]).await?, id);
        let known = inspected(host, "lives").await?;
        assert_eq!(known["state"], "running", "{known}");
        assert_eq!(known["labels"]["team"], "a", "{known}");
        assert_eq!(known["live"]["main_started"], true, "{known}");

        let logged = wait_for(DEADLINE, "both lines are logged", async || {
            let output = run(host.bottle(["logs", "lives"]), b"").await?;
            let both = output.stdout == b"out\n" && output.stderr == b"err\n";
            Ok(both.then_some(()))
        });
        logged.await?;

        let words = ["exec", "-w", "/tmp", "-e", "A=b c", "lives", "sh", "-c"];
        let write = "echo \"$PWD $A\" > /home/agent/kept; exit 3";
        let output = run(host.bottle(words.iter().chain(&[write])), b"").await?;
        assert_eq!(output.status, ExitStatus::Exited(3), "{output}");
        let output = run(host.bottle(["exec", "-i", "lives", "cat"]), b"through\0it").await?;
        assert_eq!(output.stdout, b"through\0it", "{output}");

        // A second one of the name would make the name useless.
        let mut again = host.start_args("lives");
        again.extend(["--", "true"].map(str::to_owned));
        let refused = run(host.bottle(&again), b"").await?;
        assert_eq!(refused.status, ExitStatus::Exited(125), "{refused}");
        let told = String::from_utf8_lossy(&refused.stderr);
        ensure!(told.contains("bottle attach lives"), "{refused}");

        assert_eq!(bottle(host, &["stop", "--time", "1", "lives"]).await?, id);
        assert_eq!(bottle(host, &["list", "--ids"]).await?, "");
        assert_eq!(bottle(host, &["list", "--all", "--ids"]).await?, id);
        assert_eq!(bottle(host, &["wait", "lives"]).await?, "143");

        assert_eq!(bottle(host, &["restart", "lives"]).await?, id);
        let kept = bottle(host, &["exec", "lives", "cat", "/home/agent/kept"]).await?;
        assert_eq!(kept, "/tmp b c");
        assert_eq!(bottle(host, &["rm", "--force", "lives"]).await?, id);
        assert_eq!(bottle(host, &["list", "--all", "--ids"]).await?, "");
        let left = host.leftovers()?;
        ensure!(left.is_empty(), "{left:?}");
        // What it did is still on record.
        let events = bottle(host, &["events", "--json", &id]).await?;
        assert_eq!(events.matches(r#""event":"end""#).count(), 2, "{events}");
        Ok(())
    });
}

#[test]
fn a_terminal_has_its_size_its_keys_and_is_left_and_found_again() {
    on_host(async |host| {
        let image = format!("oci:{}", host.given.image.display());
        let shell = [
            "start", "-t", &image, "--name", "tty", "--", "bash", "--norc",
        ];
        let mut here = Terminal::start(host, &shell, (30, 100))?;
        let prompt = |contents: &str| contents.trim_end().ends_with('$');
        here.wait_for("a prompt", prompt).await?;
        here.type_in("stty size; tty; echo $TERM\r").await?;
        here.wait_for_line("30 100").await?;
        here.wait_for_line("/dev/pts/").await?;
        here.wait_for_line("xterm-256color").await?;
        here.resize((40, 90))?;
        // The change travels by itself; what asks for it may overtake it.
        here.type_in("while [ \"$(stty size)\" != '40 90' ]; do :; done; echo resized\r")
            .await?;
        here.wait_for_line("resized").await?;
        // Before it says something it may not be in the foreground yet.
        here.type_in("sh -c 'echo sleeps; exec sleep 600'\r")
            .await?;
        here.wait_for_line("sleeps").await?;
        here.type_in("\x03").await?;
        here.wait_for("the prompt behind an interrupted command", |contents| {
            contents.contains("^C") && prompt(contents)
        })
        .await?;
        here.type_in("echo interrupted $?\r").await?;
        here.wait_for_line("interrupted 130").await?;
        here.type_in("\x10\x11").await?;
        here.wait_for_line("detached; ").await?;
        assert_eq!(here.end().await?, 0, "{}", here.contents());
        ensure!(here.is_usual()?, "the terminal is left in raw mode");

        let mut there = Terminal::start(host, &["attach", "tty"], (40, 90))?;
        there.wait_for_line("interrupted 130").await?;
        there.type_in("exit 5\r").await?;
        assert_eq!(there.end().await?, 5, "{}", there.contents());
        ensure!(there.is_usual()?, "the terminal is left in raw mode");
        wait_until(DEADLINE, "nothing is left", || {
            host.leftovers().is_ok_and(|left| left.is_empty())
        })
        .await
    });
}

#[test]
fn a_terminal_is_as_it_was_when_the_shim_is_killed() {
    on_host(async |host| {
        let image = format!("oci:{}", host.given.image.display());
        let shell = ["start", "-t", &image, "--name", "raw", "--", "cat"];
        let mut here = Terminal::start(host, &shell, (24, 80))?;
        let known = wait_for(Duration::from_secs(120), "the bottle runs", async || {
            let output = run(host.bottle(["inspect", "raw"]), b"").await?;
            let known: Value = serde_json::from_str(&output.text()).unwrap_or_default();
            let started = known["live"]["main_started"] == true;
            Ok(started.then_some(known))
        })
        .await?;
        here.type_in("echo of cat\r").await?;
        here.wait_for("the line twice", |it| {
            it.matches("echo of cat").count() == 2
        })
        .await?;
        ensure!(!here.is_usual()?, "the terminal is in raw mode");
        let shim = known["live"]["pid"].as_i64().context("a process id")?;
        kill(Pid::from_raw(i32::try_from(shim)?), Signal::SIGKILL)?;
        assert_eq!(here.end().await?, 125, "{}", here.contents());
        ensure!(here.is_usual()?, "the terminal is left in raw mode");
        Ok(())
    });
}

#[test]
fn a_server_in_the_bottle_is_reached_through_a_published_port() {
    on_host(async |host| {
        let serve = "import http.server as s\n\
            s.HTTPServer(('127.0.0.1', 8000), s.SimpleHTTPRequestHandler).serve_forever()";
        let args = [
            "--rm", "-p", "8000", "-p", "9", "--", "python3", "-c", serve,
        ];
        start(host, "serves", &args).await?;
        let known = inspected(host, "serves").await?;
        let ports = known["live"]["ports"].as_array().context("ports")?;
        let find = |guest: u64| -> Result<SocketAddr> {
            let port = ports.iter().find(|port| port["guest"] == guest);
            let address = port.and_then(|port| port["host"].as_str());
            Ok(address.context("an address")?.parse()?)
        };
        let open = find(8000)?;
        ensure!(open.ip().is_loopback(), "{known}");
        let answer = wait_for(DEADLINE, "the server answers", async || {
            let mut socket = TcpStream::connect(open).await?;
            socket.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
            let mut answer = String::new();
            // Reset until it listens.
            let read = socket.read_to_string(&mut answer).await;
            Ok(read.is_ok().then_some(answer).filter(|it| !it.is_empty()))
        })
        .await?;
        ensure!(answer.starts_with("HTTP/1.0 200"), "{answer}");
        let mut closed = TcpStream::connect(find(9)?).await?;
        let read = timeout(DEADLINE, closed.read_u8()).await?;
        ensure!(read.is_err(), "a port that nobody serves said {read:?}");

        bottle(host, &["kill", "serves"]).await?;
        wait_until(DEADLINE, "nothing is left", || {
            host.leftovers().is_ok_and(|left| left.is_empty())
        })
        .await?;
        ensure!(TcpStream::connect(open).await.is_err(), "the port is open");
        Ok(())
    });
}

#[test]
fn a_bottle_is_stopped_when_its_time_is_over() {
    on_host(async |host| {
        let mut args = host.start_args("limit");
        args.extend(["--timeout", "2s", "--", "sleep", "600"].map(str::to_owned));
        let output = run(host.bottle(&args), b"").await?;
        assert_eq!(output.status, ExitStatus::Exited(143), "{output}");
        let record = host.record_of(&host.only_bottle()?)?;
        let told = record
            .iter()
            .any(|line| line.contains(r#""event":"timed-out","limit_ms":2000"#));
        ensure!(told, "{record:#?}");
        Ok(())
    });
}

/// Somebody attaches and never reads: the process goes on all the same, and whoever lags is told.
#[test]
fn a_client_that_does_not_listen_stalls_nobody() {
    on_host(async |host| {
        let backend = host.backend()?;
        let image = ImageSource::OciLayout {
            dir: host.given.image.clone(),
            reference: None,
        };
        let mut spec = Spec::new("lags".parse()?, image);
        spec.detached = true;
        let bottle = backend.start(backend.plan(&spec)?, &Silent).await?;
        let script = "read go; head -c 16000000 /dev/zero; echo done >&2; exec sleep 600";
        let mut command = Command::new(["sh", "-c", script]);
        command.main = true;
        let mut main = bottle.exec(&command).await?;
        let lazy = bottle.attach(None).await?;
        let mut stdin = main.stdin.take().context("a standard input")?;
        stdin.write_all(b"go\n").await?;
        stdin.flush().await?;
        wait_for(DEADLINE, "the process has said all", async || {
            let mut from = LogPosition::default();
            loop {
                let chunk = backend.log(bottle.id(), from).await?;
                let mut errors = chunk
                    .records
                    .iter()
                    .filter(|it| it.stream == LogStream::Err);
                if errors.any(|record| record.bytes == b"done\n") {
                    return Ok(Some(()));
                }
                if chunk.records.is_empty() {
                    return Ok(None);
                }
                from = chunk.next;
            }
        })
        .await?;
        match timeout(DEADLINE, lazy.control.wait()).await? {
            Err(BackendError::Lagged) => {}
            other => return Err(anyhow!("who did not listen was told {other:?}")),
        }
        let live = bottle.inspect().await?;
        ensure!(live.main_started, "{live:?}");
        bottle.remove().await?;
        Ok(())
    });
}

/// The guest's kernel kills what takes more memory than there is, and that is on record.
#[test]
fn a_process_that_takes_all_memory_is_killed_and_recorded() {
    on_host(async |host| {
        let mut args = host.start_args("oom");
        let hog = "b = []\nwhile True: b.append(bytearray(1 << 24))";
        args.extend(["--memory", "256m", "--", "python3", "-c", hog].map(str::to_owned));
        let output = run(host.bottle(&args), b"").await?;
        assert_eq!(output.status, ExitStatus::Exited(137), "{output}");
        let id = host.only_bottle()?;
        let events = host.backend()?.events(&id, 0).await?;
        let killed = events.iter().any(|event| {
            matches!(&event.what, Happening::OutOfMemory { name, .. } if name.contains("python"))
        });
        ensure!(killed, "{events:#?}");
        let left: Vec<_> = Process::all()?
            .into_iter()
            .filter(|one| one.lives() && one.command.contains(id.as_str()))
            .collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    });
}

/// Names go to the host's proxy as names, and when it fails nothing else is tried.
#[test]
fn the_hosts_proxy_is_used_and_nothing_goes_around_it() {
    on_host(async |host| {
        let proxy = Tripwire::start().await?;
        let mut args = host.start_args("proxied");
        args.extend(["--allow", "proxied.test", "--"].map(str::to_owned));
        let script = "curl -sS --max-time 60 -o /dev/null -w %{http_code} https://proxied.test/";
        args.extend(["sh", "-c", script].map(str::to_owned));
        let mut command = host.bottle(&args);
        command.env(
            "HTTPS_PROXY",
            format!("http://user:pass-word@{}", proxy.address),
        );
        let output = run(command, b"").await?;
        ensure!(proxy.connections() > 0, "the proxy saw nothing: {output}");
        assert_eq!(output.text(), "502", "{output}");
        let record = host.record_of(&host.only_bottle()?)?.join("\n");
        ensure!(record.contains("upstream-unreachable"), "{record}");
        ensure!(!record.contains("pass-word"), "{record}");
        Ok(())
    });
}
