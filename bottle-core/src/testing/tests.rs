//! The fake keeps the contract, the contract notices a backend that does not, and starts that fail
//! or are given up leave nothing behind.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;

use super::FakeBackend;
use super::contract::{self, Subject};
use crate::backend::{Backend, BackendError, Bottle, Capabilities, LookUp, Plan, Summary};
use crate::event::{Event, Happening};
use crate::id::BottleId;
use crate::log::{LogChunk, LogPosition};
use crate::reporter::{Reporter, Silent, Stage};
use crate::spec::Spec;
use crate::units::Vcpus;

fn spec() -> Spec {
    Spec::new("web".parse().unwrap(), FakeBackend::image())
}

fn subject(backend: Arc<dyn Backend>, fake: FakeBackend) -> Subject {
    Subject {
        backend,
        spec: spec(),
        traces: Box::new(move || fake.traces()),
        patience: Duration::from_secs(20),
    }
}

#[tokio::test]
async fn the_fake_keeps_the_contract() {
    let kept = contract::run(|| {
        let fake = FakeBackend::new();
        subject(Arc::new(fake.clone()), fake)
    });
    if let Err(broken) = kept.await {
        panic!("{broken}");
    }
}

/// Creates when it plans, and shows no bottle in its list.
#[derive(Debug)]
struct Sloppy(FakeBackend);

#[async_trait]
impl Backend for Sloppy {
    fn name(&self) -> &'static str {
        "sloppy"
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn plan(&self, spec: &Spec) -> Result<Plan, BackendError> {
        let mut spec = spec.clone();
        spec.resources.vcpus = Vcpus::ONE;
        self.0.plan(&spec)
    }

    async fn start(
        &self,
        plan: Plan,
        reporter: &dyn Reporter,
    ) -> Result<Box<dyn Bottle>, BackendError> {
        self.0.start(plan, reporter).await
    }

    fn plan_again(&self, id: &BottleId, look_up: &LookUp<'_>) -> Result<Plan, BackendError> {
        self.0.plan_again(id, look_up)
    }

    async fn events(&self, id: &BottleId, from: u64) -> Result<Vec<Event>, BackendError> {
        self.0.events(id, from).await
    }

    async fn log(&self, id: &BottleId, from: LogPosition) -> Result<LogChunk, BackendError> {
        self.0.log(id, from).await
    }

    async fn remove(&self, id: &BottleId) -> Result<(), BackendError> {
        self.0.remove(id).await
    }

    async fn list(&self) -> Result<Vec<Summary>, BackendError> {
        Ok(Vec::new())
    }

    async fn open(&self, id: &BottleId) -> Result<Box<dyn Bottle>, BackendError> {
        self.0.open(id).await
    }
}

#[tokio::test]
async fn the_contract_notices_a_backend_that_breaks_it() {
    let fake = FakeBackend::new();
    let sloppy = subject(Arc::new(Sloppy(fake.clone())), fake);
    let broken = contract::run(|| Subject {
        backend: Arc::clone(&sloppy.backend),
        spec: spec(),
        traces: Box::new(Vec::new),
        patience: sloppy.patience,
    });
    let broken = broken.await.unwrap_err();
    let names: Vec<_> = broken.0.iter().map(|(case, _)| *case).collect();
    assert_eq!(
        names,
        [
            "a_plan_creates_nothing",
            "what_the_backend_lacks_is_refused_when_it_is_planned",
            "a_bottle_is_listed_and_opened_while_it_runs_and_leaves_nothing_when_removed",
            "dropping_the_handle_that_started_a_bottle_ends_it",
            "a_detached_bottle_goes_on_without_its_handle_and_ends_with_its_main_process",
            "a_bottle_that_is_kept_starts_again_until_it_is_removed",
        ],
        "{broken}"
    );
    let text = broken.to_string();
    assert!(
        text.contains("the plan of `sloppy` is one of `fake`"),
        "{text}"
    );
}

#[tokio::test]
async fn a_start_that_fails_at_any_stage_removes_what_it_made_in_reverse_order() {
    for (made, stage) in (1..).zip(Stage::ALL) {
        let fake = FakeBackend::new().failing_at(stage);
        let plan = fake.plan(&spec()).unwrap();
        let error = fake.start(plan, &Silent).await.unwrap_err();
        assert!(
            matches!(error, BackendError::Start { stage: at, .. } if at == stage),
            "{error:?}"
        );
        assert!(fake.traces().is_empty(), "{:?}", fake.traces());
        assert!(fake.list().await.unwrap().is_empty());
        let expected: Vec<_> = Stage::ALL[..made]
            .iter()
            .rev()
            .map(|stage| format!("web/{}", stage.name()))
            .collect();
        assert_eq!(fake.cleaned(), expected);
    }
}

#[tokio::test]
async fn a_start_that_is_given_up_removes_what_it_made() {
    let fake = FakeBackend::new().hanging_at(Stage::Boot);
    let plan = fake.plan(&spec()).unwrap();
    let start = fake.start(plan, &Silent);
    timeout(Duration::from_millis(10), start).await.unwrap_err();
    assert!(fake.traces().is_empty(), "{:?}", fake.traces());
    assert_eq!(fake.cleaned().len(), 6);
}

#[tokio::test]
async fn a_name_that_is_taken_is_refused_and_the_other_bottle_lives() {
    let fake = FakeBackend::new();
    let first = fake
        .start(fake.plan(&spec()).unwrap(), &Silent)
        .await
        .unwrap();
    let error = fake
        .start(fake.plan(&spec()).unwrap(), &Silent)
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "cannot start bottle `web`");
    assert!(fake.list().await.unwrap()[0].runs());
    first.remove().await.unwrap();
}

#[tokio::test]
async fn what_a_test_lets_happen_is_in_the_record() {
    let what = Happening::Violation {
        what: "a second dial".to_owned(),
    };
    let fake = FakeBackend::new().recording(what.clone());
    let bottle = fake
        .start(fake.plan(&spec()).unwrap(), &Silent)
        .await
        .unwrap();
    let events = bottle.events(1).await.unwrap();
    assert_eq!(events.last().unwrap().what, what);
}

#[tokio::test]
async fn an_unknown_image_is_refused_when_it_is_planned() {
    let mut spec = spec();
    spec.image = "oci:/nowhere".parse().unwrap();
    let error = FakeBackend::new().plan(&spec).unwrap_err();
    assert_eq!(error.to_string(), "cannot read image `oci:/nowhere`");
}
