//! Whether this machine can run microVMs itself.
//!
//! That `/dev/kvm` opens proves nothing: some hosts offer a paravirtual variant that creates a VM
//! and then cannot run an ordinary guest kernel. So three cheap signs must agree before the real
//! probe (one vCPU; see `choose` in `task_smoke`) is asked.

use std::fs::{self, OpenOptions};
use std::path::Path;

/// What a machine's files say about hardware virtualization.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Signs {
    /// A vCPU may run; only a probe can tell.
    Hopeful,
    /// No vCPU can run, for this reason.
    Hopeless(String),
}

/// Reads the signs below `root`, which is `/` outside of tests.
pub(crate) fn signs(root: &Path) -> Signs {
    let device = root.join("dev/kvm");
    if let Err(error) = OpenOptions::new().read(true).write(true).open(&device) {
        return Signs::Hopeless(format!("/dev/kvm does not open ({error})"));
    }
    if cfg!(target_arch = "x86_64") {
        let cpu = fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
        if !has_flag(&cpu, &["svm", "vmx"]) {
            return Signs::Hopeless("/dev/kvm opens, but the CPU shows neither svm nor vmx".into());
        }
        let modules = root.join("sys/module");
        if !["kvm_amd", "kvm_intel"]
            .iter()
            .any(|name| modules.join(name).exists())
        {
            return Signs::Hopeless(
                "/dev/kvm opens, but neither kvm_amd nor kvm_intel is loaded".into(),
            );
        }
    }
    Signs::Hopeful
}

fn has_flag(cpuinfo: &str, wanted: &[&str]) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.split_whitespace().any(|flag| wanted.contains(&flag)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(device: bool, flags: &str, module: Option<&str>) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for directory in ["dev", "proc", "sys/module"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        if device {
            fs::write(root.path().join("dev/kvm"), "").unwrap();
        }
        let cpuinfo = format!("model name\t: x\nflags\t\t: {flags}\nbugs\t\t: svm\n");
        fs::write(root.path().join("proc/cpuinfo"), cpuinfo).unwrap();
        if let Some(module) = module {
            fs::create_dir(root.path().join("sys/module").join(module)).unwrap();
        }
        root
    }

    #[track_caller]
    fn hopeless(machine: &tempfile::TempDir, reason: &str) {
        match signs(machine.path()) {
            Signs::Hopeless(why) => assert!(why.contains(reason), "{why}"),
            Signs::Hopeful => panic!("taken for usable; expected `{reason}`"),
        }
    }

    #[test]
    fn a_machine_without_the_device_is_hopeless() {
        hopeless(&machine(false, "fpu svm", Some("kvm_amd")), "does not open");
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_device_that_opens_on_a_cpu_without_the_feature_is_hopeless() {
        hopeless(
            &machine(true, "fpu sse", Some("kvm_amd")),
            "neither svm nor vmx",
        );
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_device_that_opens_with_a_paravirtual_module_is_hopeless() {
        hopeless(
            &machine(true, "fpu svm", Some("kvm_pvm")),
            "neither kvm_amd nor kvm_intel",
        );
    }

    #[test]
    fn a_machine_with_every_sign_is_worth_a_probe() {
        for module in ["kvm_amd", "kvm_intel"] {
            assert_eq!(
                signs(machine(true, "fpu vmx", Some(module)).path()),
                Signs::Hopeful
            );
        }
    }
}
