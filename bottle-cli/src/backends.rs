//! The backends that this program is built with.

use bottle_core::registry::Registry;

/// Becomes a helper process of a backend if this process was started as one; returns otherwise.
pub fn reexec() {
    #[cfg(feature = "krun")]
    bottle_krun::reexec();
}

/// Returns all backends of this build.
pub fn registry() -> Registry {
    let registry = Registry::new();
    #[cfg(feature = "krun")]
    let registry = registry
        .with("krun", krun::backend)
        .with_doctor("krun", krun::doctor);
    registry
}

#[cfg(feature = "krun")]
mod krun {
    use std::env::var_os;
    use std::sync::Arc;

    use bottle_core::backend::{Backend, BackendError, Blame, Hint};
    use bottle_core::registry::Finding;
    use bottle_krun::{KrunBackend, KrunOptions};

    pub(super) fn backend() -> Result<Arc<dyn Backend>, BackendError> {
        Ok(Arc::new(KrunBackend::new(options()?)))
    }

    pub(super) fn doctor() -> Vec<Finding> {
        let Ok(options) = options() else {
            return vec![Finding {
                layer: "state".to_owned(),
                ok: false,
                found: "`HOME` is not set".to_owned(),
                fix: Some("set `HOME`, or `XDG_STATE_HOME` and `XDG_CACHE_HOME`".to_owned()),
            }];
        };
        let findings = bottle_krun::doctor(&options).into_iter();
        findings
            .map(|it| Finding {
                layer: it.layer.to_owned(),
                ok: it.ok,
                found: it.found,
                fix: it.fix,
            })
            .collect()
    }

    fn options() -> Result<KrunOptions, BackendError> {
        KrunOptions::from_env(|name| var_os(name)).ok_or_else(|| BackendError::Failed {
            op: "find a place for bottles".to_owned(),
            blame: Blame::Environment,
            hint: Some(Hint(
                "set `HOME`, or `XDG_STATE_HOME` and `XDG_CACHE_HOME`".to_owned(),
            )),
            source: "the environment names no directory".into(),
        })
    }
}
