//! What this host has of what a bottle needs, layer by layer.

use std::error::Error;
use std::{fs, process};

use bottle_core::registry::Finding;

use crate::error::chain_of;
use crate::host::{
    KvmStatus, NamespaceStatus, ProbeError, find_kernel, kvm_usable, namespaces_usable,
};
use crate::options::KrunOptions;
use crate::state::private_dir;

/// Examines this host. Blocks for some seconds at most.
///
/// Nothing is concluded that can be tried: a virtual CPU is run, namespaces are entered.
pub fn doctor(options: &KrunOptions) -> Vec<Finding> {
    vec![
        kvm(options),
        kernel(options),
        namespaces(options),
        state(options),
        overlay(options),
    ]
}

fn finding(layer: &str, result: Result<String, (String, Option<String>)>) -> Finding {
    let layer = layer.to_owned();
    match result {
        Ok(found) => Finding {
            layer,
            ok: true,
            found,
            fix: None,
        },
        Err((found, fix)) => Finding {
            layer,
            ok: false,
            found,
            fix,
        },
    }
}

fn no_helper(error: &ProbeError) -> (String, Option<String>) {
    (
        causes(error),
        Some("name the installed `bottle` as the backend's helper".to_owned()),
    )
}

fn causes(error: &(dyn Error + 'static)) -> String {
    chain_of(error).join(": ")
}

fn kvm(options: &KrunOptions) -> Finding {
    let status = options
        .helper()
        .map_err(|source| ProbeError::Helper { source })
        .and_then(|helper| kvm_usable(&helper));
    finding(
        "kvm",
        match status {
            Ok(KvmStatus::Works) => Ok(KvmStatus::Works.found().to_owned()),
            Ok(status) => Err((status.found().to_owned(), status.hint().map(str::to_owned))),
            Err(error) => Err(no_helper(&error)),
        },
    )
}

fn kernel(options: &KrunOptions) -> Finding {
    let found = find_kernel(options.kernel.as_deref(), options.data_home.as_deref());
    finding(
        "kernel",
        match found {
            Ok(path) => Ok(path.display().to_string()),
            Err(error) => Err((error.to_string(), Some(error.hint().to_owned()))),
        },
    )
}

fn namespaces(options: &KrunOptions) -> Finding {
    let status = options
        .helper()
        .map_err(|source| ProbeError::Helper { source })
        .and_then(|helper| namespaces_usable(&helper));
    finding(
        "jail",
        match status {
            Ok(NamespaceStatus::Works) => Ok("all namespaces can be entered".to_owned()),
            Ok(NamespaceStatus::Refused { why, hint }) => Err((why, hint)),
            Err(error) => Err(no_helper(&error)),
        },
    )
}

/// Makes an overlay as a start does, and removes it.
fn overlay(options: &KrunOptions) -> Finding {
    let path = options
        .state_dir
        .join(format!("doctor-{}.ext4", process::id()));
    let made = bottle_image::make_overlay(&path, 64 << 20);
    // Whatever went wrong says more than a file that is not there.
    let _ = fs::remove_file(&path);
    finding(
        "overlay",
        match made {
            Ok(()) => Ok("`mkfs.ext4` makes one".to_owned()),
            Err(error) => Err((causes(&error), None)),
        },
    )
}

fn state(options: &KrunOptions) -> Finding {
    let made = [&options.state_dir, &options.runtime_dir]
        .into_iter()
        .try_for_each(|dir| private_dir(dir));
    finding(
        "state",
        match made {
            Ok(()) => Ok(options.state_dir.display().to_string()),
            Err(error) => Err((
                causes(&error),
                Some(
                    "set `XDG_STATE_HOME` and `XDG_RUNTIME_DIR` to directories of yours".to_owned(),
                ),
            )),
        },
    )
}
