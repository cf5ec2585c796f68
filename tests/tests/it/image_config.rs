//! What an image says about running it is done.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bottle_core::backend::{Backend, Command, Ended, ExitStatus};
use bottle_core::id::BottleId;
use bottle_core::reporter::Silent;
use bottle_core::spec::{ImageSource, Spec};
use bottle_tests::frame::on_host;
use bottle_tests::layout::reconfigured;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;

/// How long the guest may take to say something.
const PATIENCE: Duration = Duration::from_secs(90);

/// Says what it was given, then waits for the signal.
const PROGRAM: &str = "
import os, signal, sys
def asked(number, frame):
    print('asked by', number, flush=True)
    sys.exit(7)
signal.signal(signal.SIGUSR1, asked)
print(sys.argv[1:], os.environ['COLOR'], os.getcwd(), os.getuid(), flush=True)
while True:
    signal.pause()
";

#[test]
fn entrypoint_command_environment_user_directory_and_stop_signal_are_the_images() {
    on_host(async |host| {
        let dir = host.dir.join("reconfigured");
        reconfigured(&host.given.image, &dir, |config| {
            config["Entrypoint"] = json!(["python3", "-c", PROGRAM]);
            config["Cmd"] = json!(["one", "two words"]);
            config["Env"] = json!(["COLOR=blue"]);
            config["User"] = json!("nobody");
            config["WorkingDir"] = json!("/made/for it");
            config["StopSignal"] = json!("SIGUSR1");
        })?;
        let name: BottleId = "config".parse()?;
        let image = ImageSource::OciLayout {
            dir,
            reference: None,
        };
        let backend = host.backend()?;
        let plan = backend.plan(&Spec::new(name, image))?;
        let bottle = backend.start(plan, &Silent).await?;
        let mut command = Command::new::<String>([]);
        command.main = true;
        command.stdin = false;
        let process = bottle.exec(&command).await?;
        let mut lines = BufReader::new(process.stdout).lines();
        let mut next = async || -> Result<String> {
            let line = timeout(PATIENCE, lines.next_line()).await??;
            line.context("the program ended")
        };
        let said = next().await?;
        ensure!(
            said == "['one', 'two words'] blue /made/for it 65534",
            "{said}"
        );
        let stop = bottle.stop(Duration::from_secs(30));
        let (said, stopped) = tokio::join!(next(), stop);
        stopped?;
        ensure!(said? == "asked by 10");
        let ended = bottle.wait().await?;
        ensure!(
            ended == Ended::Goodbye(Some(ExitStatus::Exited(7))),
            "{ended:?}"
        );
        bottle.remove().await?;
        Ok(())
    });
}
