// Declarations of libkrun's functions, generated from `krun.h` by `cargo xtask bindings`: do not
// edit. Checked against the linked functions by `sys_check.rs`.

pub const KRUN_LOG_TARGET_STDERR: u32 = 2;
pub const KRUN_LOG_LEVEL_INFO: u32 = 3;
pub const KRUN_LOG_STYLE_NEVER: u32 = 2;
pub const KRUN_LOG_OPTION_NO_ENV: u32 = 1;
pub const KRUN_DISK_FORMAT_RAW: u32 = 0;
pub const KRUN_DISK_FORMAT_VMDK: u32 = 2;
pub const KRUN_SYNC_NONE: u32 = 0;
pub const KRUN_SYNC_FULL: u32 = 2;
pub const KRUN_FS_SEMANTICS_DEFAULT: u32 = 0;
unsafe extern "C" {
    pub fn krun_init_log(
        target_fd: ::core::ffi::c_int,
        level: u32,
        style: u32,
        options: u32,
    ) -> i32;
}
unsafe extern "C" {
    pub fn krun_create_ctx() -> i32;
}
unsafe extern "C" {
    pub fn krun_free_ctx(ctx_id: u32) -> i32;
}
unsafe extern "C" {
    pub fn krun_set_vm_config(ctx_id: u32, num_vcpus: u8, ram_mib: u32) -> i32;
}
unsafe extern "C" {
    pub fn krun_disable_implicit_init(ctx_id: u32) -> i32;
}
unsafe extern "C" {
    pub fn krun_add_virtiofs4(
        ctx_id: u32,
        c_tag: *const ::core::ffi::c_char,
        c_path: *const ::core::ffi::c_char,
        shm_size: u64,
        read_only: bool,
        semantics: u32,
    ) -> i32;
}
unsafe extern "C" {
    pub fn krun_fs_add_overlay_dir(
        ctx_id: u32,
        c_fs_tag: *const ::core::ffi::c_char,
        c_path: *const ::core::ffi::c_char,
        mode: u32,
    ) -> i32;
}
unsafe extern "C" {
    pub fn krun_fs_add_overlay_file(
        ctx_id: u32,
        c_fs_tag: *const ::core::ffi::c_char,
        c_path: *const ::core::ffi::c_char,
        data: *const u8,
        data_len: usize,
        mode: u32,
        one_shot: bool,
    ) -> i32;
}
unsafe extern "C" {
    pub fn krun_add_disk3(
        ctx_id: u32,
        c_block_id: *const ::core::ffi::c_char,
        c_disk_path: *const ::core::ffi::c_char,
        disk_format: u32,
        read_only: bool,
        direct_io: bool,
        sync_mode: u32,
    ) -> i32;
}
unsafe extern "C" {
    pub fn krun_disable_implicit_vsock(ctx_id: u32) -> i32;
}
unsafe extern "C" {
    pub fn krun_add_vsock(ctx_id: u32, tsi_features: u32) -> i32;
}
unsafe extern "C" {
    pub fn krun_add_vsock_port2(
        ctx_id: u32,
        port: u32,
        c_filepath: *const ::core::ffi::c_char,
        listen: bool,
    ) -> i32;
}
unsafe extern "C" {
    pub fn krun_set_console_output(ctx_id: u32, c_filepath: *const ::core::ffi::c_char) -> i32;
}
unsafe extern "C" {
    pub fn krun_start_enter(ctx_id: u32) -> i32;
}
