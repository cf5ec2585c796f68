//! The first system-call filter of the vmm: it refuses what no machine of ours needs.
//!
//! The full form is an allow-list. This one is a list of refusals, in three programs that all
//! apply (the kernel takes the strictest answer): families of sockets and dangerous calls answer
//! EPERM; `clone3`, whose flags a filter cannot read, answers ENOSYS so that libc falls back to
//! `clone`, whose flags it can; numbers of the x32 interface, which would go around both lists,
//! answer EPERM. A call of another architecture kills the process.

use std::collections::BTreeMap;
use std::env;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads, sock_filter,
};

use super::{Failure, OrFailure, Step};

/// Calls that are refused whatever their arguments.
///
/// Network: a machine connects to one Unix socket and serves nothing. Processes: it starts none
/// and looks into none. Names: its mounts and namespaces are final. Kernel: no further interface
/// of the kernel is opened than the ones it has.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_chroot,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_setns,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_settimeofday,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_userfaultfd,
];

#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[libc::c_long] = &[libc::SYS_ioperm, libc::SYS_iopl, libc::SYS_modify_ldt];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[libc::c_long] = &[];

/// Flags of `clone` that make namespaces.
const NAMESPACE_FLAGS: [libc::c_int; 7] = [
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
];

/// The bit that marks numbers of the x32 interface.
const X32_BIT: u32 = 0x4000_0000;

/// Puts every thread of this process, and all that it will start, under the filter, for good.
///
/// # Errors
///
/// [`Failure`] if the kernel has no seccomp filters.
pub(crate) fn apply() -> Result<(), Failure> {
    for program in programs()? {
        apply_filter_all_threads(&program).map_err(|error| {
            Failure::of(Step::Seccomp, "install the system-call filter", &error)
                .hint("the kernel needs CONFIG_SECCOMP_FILTER")
        })?;
    }
    Ok(())
}

fn programs() -> Result<[BpfProgram; 3], Failure> {
    let arch = TargetArch::try_from(env::consts::ARCH)
        .or_failure(Step::Seccomp, "find this architecture's system calls")?;
    let compile = |rules, answer: libc::c_int| {
        let filter = SeccompFilter::new(
            rules,
            SeccompAction::Allow,
            SeccompAction::Errno(answer.unsigned_abs()),
            arch,
        )?;
        BpfProgram::try_from(filter)
    };
    let refusals = rules()
        .and_then(|rules| compile(rules, libc::EPERM))
        .or_failure(Step::Seccomp, "build the list of refusals")?;
    let clone3 = compile(
        BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
        libc::ENOSYS,
    )
    .or_failure(Step::Seccomp, "build the rule for `clone3`")?;
    Ok([x32(), clone3, refusals])
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rules() -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = REFUSED
        .iter()
        .chain(REFUSED_HERE)
        .map(|number| (*number, Vec::new()))
        .collect();
    let not_unix = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Ne,
        u64::from(libc::AF_UNIX.unsigned_abs()),
    )?;
    for number in [libc::SYS_socket, libc::SYS_socketpair] {
        rules.insert(number, vec![SeccompRule::new(vec![not_unix.clone()])?]);
    }
    let namespaces = NAMESPACE_FLAGS
        .iter()
        .map(|flag| {
            let flag = u64::from(flag.unsigned_abs());
            let set = SeccompCondition::new(
                0,
                SeccompCmpArgLen::Qword,
                SeccompCmpOp::MaskedEq(flag),
                flag,
            )?;
            SeccompRule::new(vec![set])
        })
        .collect::<Result<Vec<_>, _>>()?;
    rules.insert(libc::SYS_clone, namespaces);
    Ok(rules)
}

/// Refuses every number of the x32 interface: same architecture to a filter, other numbers.
fn x32() -> BpfProgram {
    const LOAD_NUMBER: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS, offset 0 of seccomp_data
    const JUMP_IF_SET: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    let instruction = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let eperm = libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
    vec![
        instruction(LOAD_NUMBER, 0, 0, 0),
        instruction(JUMP_IF_SET, 0, 1, X32_BIT),
        instruction(RETURN, 0, 0, eperm),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calls_that_the_design_names_are_refused() {
        for number in [
            libc::SYS_listen,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_mount,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
        ] {
            assert!(REFUSED.contains(&number), "{number}");
        }
    }

    #[test]
    fn the_three_programs_compile() {
        let lengths = programs().unwrap().map(|program| program.len());
        assert!(lengths.iter().all(|length| *length >= 4), "{lengths:?}");
    }
}
