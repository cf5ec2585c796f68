use super::*;

#[test]
fn a_negative_answer_names_the_call_and_the_errno() {
    let error = check("krun_add_disk3", -libc_enoent()).unwrap_err();
    let KrunError::Call { call, source } = error else {
        panic!("{error:?}");
    };
    assert_eq!((call, source), ("krun_add_disk3", Errno::ENOENT));
    assert_eq!(check("krun_create_ctx", 7).unwrap(), 7);
}

fn libc_enoent() -> i32 {
    Errno::ENOENT as i32
}

#[test]
fn a_relative_or_missing_or_foreign_kernel_is_refused() {
    let relative = KernelLibrary::load("libkrunfw.so.5".as_ref()).unwrap_err();
    assert!(
        matches!(relative, KernelError::Relative { .. }),
        "{relative}"
    );
    let missing = KernelLibrary::load("/nonexistent/libkrunfw.so.5".as_ref()).unwrap_err();
    assert!(missing.to_string().contains("/nonexistent"), "{missing}");
    let text = KernelLibrary::load("/etc/passwd".as_ref()).unwrap_err();
    assert!(matches!(text, KernelError::Load { .. }), "{text}");
}
