use super::vcpu::{Answer, Hardware, judge};
use super::*;
use std::env;

const REAL: Hardware = Hardware {
    flag: Some(true),
    vendor_module: true,
    paravirtual_module: false,
};
const PARAVIRTUAL: Hardware = Hardware {
    flag: Some(false),
    vendor_module: false,
    paravirtual_module: true,
};

#[test]
fn a_paravirtual_kvm_is_unusable_even_if_its_vcpu_ran() {
    let KvmStatus::Unusable { why } = judge(PARAVIRTUAL, Answer::Ran) else {
        panic!("it counts as usable");
    };
    assert!(why.contains("kvm_pvm"), "{why}");
    assert!(why.contains("neither `vmx` nor `svm`"), "{why}");
}

#[test]
fn real_hardware_works_only_if_a_vcpu_ran() {
    assert_eq!(judge(REAL, Answer::Ran), KvmStatus::Works);
    let failed = judge(REAL, Answer::Failed("run it: EIO".into()));
    assert!(matches!(failed, KvmStatus::Unusable { .. }), "{failed:?}");
    assert_eq!(judge(REAL, Answer::Absent), KvmStatus::Absent);
    assert_eq!(judge(REAL, Answer::NotPermitted), KvmStatus::NotPermitted);
}

#[test]
fn hidden_cpu_flags_leave_the_decision_to_the_vcpu() {
    let masked = Hardware {
        flag: Some(false),
        ..REAL
    };
    assert_eq!(judge(masked, Answer::Ran), KvmStatus::Works);
    let arm = Hardware {
        flag: None,
        vendor_module: false,
        paravirtual_module: false,
    };
    assert_eq!(judge(arm, Answer::Ran), KvmStatus::Works);
}

#[test]
fn every_status_but_works_says_what_to_do() {
    for status in [
        KvmStatus::Absent,
        KvmStatus::NotPermitted,
        KvmStatus::Unusable { why: String::new() },
    ] {
        assert!(status.hint().is_some(), "{status:?}");
    }
    assert_eq!(KvmStatus::Works.hint(), None);
}

#[test]
fn a_helper_that_hangs_is_given_up_at_the_deadline() {
    // `sleep` knows no helper's role, so it ends at once: that is no answer but an error.
    let answer: Result<Option<()>, _> = ask(
        Path::new("/bin/sleep"),
        Role::ProbeKvm,
        Duration::from_secs(2),
    );
    assert!(
        matches!(answer, Err(ProbeError::Helper { .. })),
        "{answer:?}"
    );

    let (read, _write) = io::pipe().unwrap();
    let begin = Instant::now();
    let silent = read_until(read.into(), Duration::from_millis(50)).unwrap();
    assert_eq!(silent, None);
    assert!(begin.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_missing_kernel_says_where_it_was_looked_for() {
    let dir = env::temp_dir();
    let missing = find_kernel(Some(Path::new("/nonexistent/k.so")), Some(&dir)).unwrap_err();
    assert!(
        missing.to_string().contains("`/nonexistent/k.so`"),
        "{missing}"
    );
    assert!(missing.hint().contains("cargo xtask setup"));
}
