//! The backend keeps the contract that every backend keeps (`bottle_core::testing::contract`).

use std::sync::Arc;
use std::time::Duration;

use bottle_core::spec::{ImageSource, Spec};
use bottle_core::testing::contract::{self, Subject};
use bottle_tests::frame::{in_shared_bottle, on_host};
use bottle_tests::host::{TestHost, leftovers};
use bottle_tests::processes::Process;

/// How long one promise may take, a boot included.
const PATIENCE: Duration = Duration::from_secs(90);

#[test]
fn the_krun_backend_keeps_every_promise_about_the_life_of_a_bottle() {
    on_host(async |host| {
        let image = ImageSource::OciLayout {
            dir: host.given.image.clone(),
            reference: None,
        };
        let subject = Subject {
            backend: Arc::new(host.backend()?),
            spec: Spec::new("contract".parse()?, image),
            traces: traces(host),
            patience: PATIENCE,
        };
        contract::lives(&subject).await?;
        Ok(())
    });
}

#[test]
fn the_krun_backend_keeps_every_promise_about_processes_in_a_bottle() {
    in_shared_bottle(async |bench| {
        contract::in_bottle(&*bench.bottle, PATIENCE).await?;
        Ok(())
    });
}

/// Lists the files of all bottles of this host, and the processes that hold one of its paths.
fn traces(host: &TestHost) -> Box<dyn Fn() -> Vec<String> + Send + Sync> {
    let dir = host.dir.clone();
    Box::new(move || {
        let files = leftovers(&dir).unwrap_or_default();
        let mut traces: Vec<_> = files
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let dir = dir.display().to_string();
        let all = Process::all().unwrap_or_default();
        let ours = all
            .iter()
            .filter(|one| one.lives() && one.command.contains(&dir));
        traces.extend(ours.map(|one| format!("{} {}", one.pid, one.command)));
        traces.sort();
        traces
    })
}
