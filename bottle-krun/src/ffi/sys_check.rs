//! Proves at compile time that each declaration of [`super::sys`] has the type of the function it
//! is linked with: the two elements of an array must have one function-pointer type.

use super::sys;

const _: () = {
    let _ = [sys::krun_init_log, krun::krun_init_log];
    let _ = [sys::krun_create_ctx, krun::krun_create_ctx];
    let _ = [sys::krun_free_ctx, krun::krun_free_ctx];
    let _ = [sys::krun_set_vm_config, krun::krun_set_vm_config];
    let _ = [
        sys::krun_disable_implicit_init,
        krun::krun_disable_implicit_init,
    ];
    let _ = [sys::krun_add_virtiofs4, krun::krun_add_virtiofs4];
    let _ = [sys::krun_fs_add_overlay_dir, krun::krun_fs_add_overlay_dir];
    let _ = [
        sys::krun_fs_add_overlay_file,
        krun::krun_fs_add_overlay_file,
    ];
    let _ = [sys::krun_add_disk3, krun::krun_add_disk3];
    let _ = [
        sys::krun_disable_implicit_vsock,
        krun::krun_disable_implicit_vsock,
    ];
    let _ = [sys::krun_add_vsock, krun::krun_add_vsock];
    let _ = [sys::krun_add_vsock_port2, krun::krun_add_vsock_port2];
    let _ = [sys::krun_set_console_output, krun::krun_set_console_output];
    let _ = [sys::krun_start_enter, krun::krun_start_enter];
};
