//! What `doctor` says.

use bottle_core::registry::Finding;
use insta::assert_snapshot;

use crate::bench::Bench;

fn finding(layer: &str, ok: bool, found: &str, fix: Option<&str>) -> Finding {
    Finding {
        layer: layer.to_owned(),
        ok,
        found: found.to_owned(),
        fix: fix.map(str::to_owned),
    }
}

fn half_a_host() -> Bench {
    Bench::new().findings([
        finding("kvm", true, "a virtual CPU runs", None),
        finding(
            "kernel",
            false,
            "no `libkrunfw.so.5`",
            Some("cargo xtask setup"),
        ),
    ])
}

#[tokio::test]
async fn a_layer_that_is_missing_comes_with_its_fix() {
    assert_snapshot!(half_a_host().run(&["--backend", "fake", "doctor"]).await, @r"
    status: 1
    ----- stdout
    ok       kvm     a virtual CPU runs
    missing  kernel  no `libkrunfw.so.5`
                     fix: cargo xtask setup
    a bottle cannot start here: 1 layer is missing
    ----- stderr
    ");
}

#[tokio::test]
async fn findings_can_be_had_as_json() {
    assert_snapshot!(half_a_host().run(&["doctor", "--backend", "fake", "--json"]).await, @r#"
    status: 1
    ----- stdout
    {"backend":"fake","can_start":false,"findings":[{"fix":null,"found":"a virtual CPU runs","layer":"kvm","ok":true},{"fix":"cargo xtask setup","found":"no `libkrunfw.so.5`","layer":"kernel","ok":false}]}
    ----- stderr
    "#);
}

#[tokio::test]
async fn a_host_that_has_everything_is_told_so() {
    let bench = Bench::new().findings([finding("kvm", true, "a virtual CPU runs", None)]);
    assert_snapshot!(bench.run(&["--backend", "fake", "doctor"]).await, @r"
    status: 0
    ----- stdout
    ok       kvm  a virtual CPU runs
    a bottle can start here
    ----- stderr
    ");
}

#[tokio::test]
async fn an_unknown_backend_is_answered_with_the_known_ones() {
    assert_snapshot!(Bench::new().run(&["--backend", "kurn", "doctor"]).await, @r"
    status: 1
    ----- stdout
    ----- stderr
    error: there is no backend `kurn` (known: `fake`)
    ");
}
