//! Whether `/dev/kvm` runs a virtual CPU: by running one.
//!
//! A device that opens proves nothing: on some cloud machines it is a paravirtual variant that
//! creates machines and then burns minutes failing to boot an ordinary kernel. Such hosts are told
//! apart by what the CPU and the modules say, and every other one by a vCPU that has to execute
//! three instructions.

#![expect(unsafe_code, reason = "a page of memory is given to a vCPU")]

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};
use serde::{Deserialize, Serialize};

use super::{ProbeError, ask};
use crate::reexec::Role;

/// The one version of KVM's interface there is (Documentation/virt/kvm/api.rst, 4.1).
const KVM_INTERFACE: i32 = 12;
/// How long a vCPU may take for three instructions.
const DEADLINE: Duration = Duration::from_secs(2);

/// What `/dev/kvm` is good for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum KvmStatus {
    /// There is none.
    Absent,
    /// It is there and may not be opened by this user.
    NotPermitted,
    /// It is a paravirtual variant, or otherwise not backed by the processor: it cannot run the
    /// guest kernel although it opens.
    Unusable {
        /// What gave it away.
        why: String,
    },
    /// A virtual CPU ran.
    Works,
}

impl KvmStatus {
    /// Returns what was found, in words.
    pub(crate) fn found(&self) -> &str {
        match self {
            Self::Absent => "there is no `/dev/kvm`",
            Self::NotPermitted => "this user may not open `/dev/kvm`",
            Self::Unusable { why } => why,
            Self::Works => "`/dev/kvm` runs a virtual CPU",
        }
    }

    /// Returns what a person can do about it; `None` if it works.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Absent => Some(
                "turn on virtualization in the firmware (or nested virtualization in the \
                 hypervisor) and load `kvm_intel` or `kvm_amd`",
            ),
            Self::NotPermitted => Some(
                "add your user to the group that owns `/dev/kvm` (`sudo usermod -aG kvm $USER`) \
                 and log in again",
            ),
            Self::Unusable { .. } => Some(
                "use a machine with hardware virtualization (bare metal, or a VM with nested \
                 virtualization); tests can run in an emulated one: `cargo xtask test`",
            ),
            Self::Works => None,
        }
    }
}

/// What the processor and the kernel say about hardware virtualization.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Hardware {
    /// `vmx` or `svm` among the processor's flags; `None` where there are no such flags.
    pub(crate) flag: Option<bool>,
    /// The module `kvm_intel` or `kvm_amd` is there.
    pub(crate) vendor_module: bool,
    /// The module `kvm_pvm` is there.
    pub(crate) paravirtual_module: bool,
}

/// What the probe's process answers.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// There is no device.
    Absent,
    /// It may not be opened.
    NotPermitted,
    /// It opens, and something after that failed.
    Failed(String),
    /// The vCPU came to its end.
    Ran,
}

/// Tries `/dev/kvm` with a process that `helper` (see [`crate::reexec()`]) becomes. Blocks for at
/// most two seconds.
///
/// # Errors
///
/// [`ProbeError::Helper`] if the helper does not run the probe. A vCPU that does not come to its
/// end in time is no error but [`KvmStatus::Unusable`].
pub(crate) fn kvm_usable(helper: &Path) -> Result<KvmStatus, ProbeError> {
    let answer = match ask(helper, Role::ProbeKvm, DEADLINE) {
        Ok(answer) => answer,
        Err(ProbeError::Silent { seconds }) => Answer::Failed(format!(
            "a virtual CPU did not execute three instructions within {seconds} s"
        )),
        Err(other) => return Err(other),
    };
    Ok(judge(hardware(), answer))
}

/// Looks at `/dev/kvm` without running anything: what a start can afford to ask each time.
///
/// [`KvmStatus::Works`] means here that nothing speaks against it.
pub(crate) fn kvm_glance() -> KvmStatus {
    let answer = match Kvm::new() {
        Ok(kvm) if kvm.get_api_version() == KVM_INTERFACE => Answer::Ran,
        Ok(_) => Answer::Failed("`/dev/kvm` is not a KVM device".to_owned()),
        Err(errno) => unopened(errno),
    };
    judge(hardware(), answer)
}

/// Decides from the facts. What the hardware cannot do, no probe proves: a paravirtual variant
/// may interpret three instructions and still not boot a kernel.
pub(crate) fn judge(hardware: Hardware, answer: Answer) -> KvmStatus {
    match answer {
        Answer::Absent => KvmStatus::Absent,
        Answer::NotPermitted => KvmStatus::NotPermitted,
        Answer::Failed(why) => KvmStatus::Unusable { why },
        Answer::Ran => match hardware {
            Hardware {
                flag: Some(false),
                vendor_module: false,
                paravirtual_module,
            } => KvmStatus::Unusable {
                why: format!(
                    "`/dev/kvm` opens, but the processor has neither `vmx` nor `svm` and neither \
                     `kvm_intel` nor `kvm_amd` is loaded{}",
                    if paravirtual_module {
                        "; it belongs to `kvm_pvm`, a paravirtual variant that cannot boot an \
                         ordinary kernel"
                    } else {
                        ""
                    }
                ),
            },
            Hardware { .. } => KvmStatus::Works,
        },
    }
}

fn hardware() -> Hardware {
    let module = |name: &str| Path::new("/sys/module").join(name).exists();
    let flag = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let flags = text.lines().find(|line| line.starts_with("flags"))?;
        Some(
            flags
                .split_ascii_whitespace()
                .any(|f| f == "vmx" || f == "svm"),
        )
    });
    Hardware {
        flag,
        vendor_module: module("kvm_intel") || module("kvm_amd"),
        paravirtual_module: module("kvm_pvm"),
    }
}

/// The probe: its answer goes to standard output.
pub(crate) fn run_probe() -> u8 {
    let answer = match Kvm::new() {
        Ok(kvm) => match run_vcpu(&kvm) {
            Ok(()) => Answer::Ran,
            Err(why) => Answer::Failed(why),
        },
        Err(errno) => unopened(errno),
    };
    match serde_json::to_writer(io::stdout(), &answer) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

fn unopened(errno: kvm_ioctls::Error) -> Answer {
    let kind = io::Error::from(errno).kind();
    if kind == ErrorKind::NotFound {
        Answer::Absent
    } else if kind == ErrorKind::PermissionDenied {
        Answer::NotPermitted
    } else {
        Answer::Failed(format!("cannot open `/dev/kvm`: {errno}"))
    }
}

/// A page of guest memory, aligned as KVM asks.
#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// Where the page is in the guest.
const PAGE_AT: u64 = 0x1000;
/// What the program leaves in `ax`.
const PROOF: u16 = 0x5A17;

#[cfg(target_arch = "x86_64")]
fn run_vcpu(kvm: &Kvm) -> Result<(), String> {
    let failed = |what: &'static str| move |errno: kvm_ioctls::Error| format!("{what}: {errno}");
    if kvm.get_api_version() != KVM_INTERFACE {
        return Err(format!("KVM interface {}", kvm.get_api_version()));
    }
    // mov ax, PROOF; out 0x10, al; hlt. Never freed: the vCPU's life ends with the process.
    let page = Box::leak(Box::new(Page([0xF4; 4096])));
    let [low, high] = PROOF.to_le_bytes();
    let program = [0xB8, low, high, 0xE6, 0x10, 0xF4];
    for (to, byte) in page.0.iter_mut().zip(program) {
        *to = byte;
    }

    let vm = kvm.create_vm().map_err(failed("create a machine"))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: KVM_MEM_READONLY,
        guest_phys_addr: PAGE_AT,
        memory_size: size_of::<Page>() as u64,
        userspace_addr: (&raw const page.0).addr() as u64,
    };
    // SAFETY: KVM_SET_USER_MEMORY_REGION needs memory that outlives the machine and that nobody
    // relies on while the guest may write: the page is leaked, read-only, and not touched again.
    unsafe { vm.set_user_memory_region(region) }.map_err(failed("give it memory"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(failed("create a vCPU"))?;
    let mut special = vcpu.get_sregs().map_err(failed("read its registers"))?;
    special.cs.base = 0;
    special.cs.selector = 0;
    vcpu.set_sregs(&special)
        .map_err(failed("set its segments"))?;
    let mut registers = vcpu.get_regs().map_err(failed("read its registers"))?;
    registers.rip = PAGE_AT;
    registers.rflags = 2;
    vcpu.set_regs(&registers)
        .map_err(failed("set its registers"))?;

    let exit = vcpu.run().map_err(failed("run it"))?;
    if !matches!(exit, VcpuExit::IoOut(0x10, [byte]) if *byte == low) {
        return Err(format!(
            "the vCPU stopped with {exit:?} instead of its output"
        ));
    }
    let exit = vcpu.run().map_err(failed("run it"))?;
    if !matches!(exit, VcpuExit::Hlt) {
        return Err(format!("the vCPU stopped with {exit:?} instead of halting"));
    }
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn run_vcpu(kvm: &Kvm) -> Result<(), String> {
    // Elsewhere there is no paravirtual variant to tell apart: a vCPU that can be made counts.
    let vm = kvm.create_vm().map_err(|errno| errno.to_string())?;
    vm.create_vcpu(0)
        .map(drop)
        .map_err(|errno| errno.to_string())
}
