//! The program itself: what only a process can show.

use assert_cmd::Command;

fn bottle() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bottle"));
    command.env_clear();
    command
}

#[test]
fn the_program_answers_and_exits_with_the_status_of_the_table() {
    let version = bottle().arg("--version").output().unwrap();
    assert_eq!(version.status.code(), Some(0), "{version:?}");
    assert!(version.stdout.starts_with(b"bottle "), "{version:?}");
    let wrong = bottle().args(["start", "--no-such-flag"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    assert!(wrong.stdout.is_empty(), "{wrong:?}");
    let unknown = bottle()
        .args(["--backend", "moon", "start"])
        .output()
        .unwrap();
    assert_eq!(unknown.status.code(), Some(125), "{unknown:?}");
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(
        said.starts_with("error: there is no backend `moon`"),
        "{said}"
    );
}

#[cfg(feature = "krun")]
#[test]
fn without_a_home_there_is_no_place_for_bottles() {
    let words = ["start", "oci:/nowhere", "--", "true"];
    let output = bottle().args(words).output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("hint: set `HOME`"), "{said}");
}
