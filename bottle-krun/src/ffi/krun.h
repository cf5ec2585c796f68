/*
 * The part of libkrun's C interface that bottle uses, written down from its documentation and from
 * the functions of the crate `libkrun` (library name `krun`). `cargo xtask bindings` turns it into
 * `sys.rs`; `sys_check.rs` makes the compiler compare every declaration with the linked function,
 * so that an upgrade that changes one does not compile.
 *
 * What is absent is absent on purpose: krun_set_root and anything with a DAX window, krun_set_exec,
 * krun_set_env, krun_set_port_map, krun_set_rlimits, every kind of virtio-net.
 *
 * Recipe of `cargo xtask bindings` (crate `bindgen` 0.72 or newer, needs libclang):
 *
 *   bindgen::Builder::default()
 *       .header("bottle-krun/src/ffi/krun.h")
 *       .allowlist_function("krun_.*")
 *       .allowlist_var("KRUN_.*")
 *       .use_core()
 *       .generate_comments(false)
 *       .layout_tests(false)
 *       .rust_edition(bindgen::RustEdition::Edition2024)
 *       .rust_target(bindgen::RustTarget::stable(89, 0))
 *       .raw_line(<the comment that sys.rs begins with, from its first line to its first empty one>)
 *
 * and then rustfmt with the workspace's rustfmt.toml.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KRUN_LOG_TARGET_STDERR 2
#define KRUN_LOG_LEVEL_INFO 3
#define KRUN_LOG_STYLE_NEVER 2
#define KRUN_LOG_OPTION_NO_ENV 1
#define KRUN_DISK_FORMAT_RAW 0
#define KRUN_DISK_FORMAT_VMDK 2
#define KRUN_SYNC_NONE 0
#define KRUN_SYNC_FULL 2
#define KRUN_FS_SEMANTICS_DEFAULT 0

int32_t krun_init_log(int target_fd, uint32_t level, uint32_t style, uint32_t options);
int32_t krun_create_ctx(void);
int32_t krun_free_ctx(uint32_t ctx_id);
int32_t krun_set_vm_config(uint32_t ctx_id, uint8_t num_vcpus, uint32_t ram_mib);
int32_t krun_disable_implicit_init(uint32_t ctx_id);
int32_t krun_add_virtiofs4(uint32_t ctx_id, const char *c_tag, const char *c_path,
                           uint64_t shm_size, bool read_only, uint32_t semantics);
int32_t krun_fs_add_overlay_dir(uint32_t ctx_id, const char *c_fs_tag, const char *c_path,
                                uint32_t mode);
int32_t krun_fs_add_overlay_file(uint32_t ctx_id, const char *c_fs_tag, const char *c_path,
                                 const uint8_t *data, size_t data_len, uint32_t mode,
                                 bool one_shot);
int32_t krun_add_disk3(uint32_t ctx_id, const char *c_block_id, const char *c_disk_path,
                       uint32_t disk_format, bool read_only, bool direct_io, uint32_t sync_mode);
int32_t krun_disable_implicit_vsock(uint32_t ctx_id);
int32_t krun_add_vsock(uint32_t ctx_id, uint32_t tsi_features);
int32_t krun_add_vsock_port2(uint32_t ctx_id, uint32_t port, const char *c_filepath, bool listen);
int32_t krun_set_console_output(uint32_t ctx_id, const char *c_filepath);
int32_t krun_start_enter(uint32_t ctx_id);
