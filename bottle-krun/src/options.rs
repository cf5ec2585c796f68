//! Where the backend finds and keeps things.

use std::env;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use bottle_image::SourceOptions;
use nix::unistd::Uid;

/// Where the backend finds and keeps things.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KrunOptions {
    /// The program that is re-executed as shim, warden and vmm; absent means the current one.
    ///
    /// It has to call [`reexec`](crate::reexec()) first in its `main`.
    pub helper: Option<PathBuf>,
    /// The kernel library; absent means the first one found in the usual places.
    pub kernel: Option<PathBuf>,
    /// The user's data directory, where the kernel library is looked for first.
    pub data_home: Option<PathBuf>,
    /// What outlives a bottle (its record) and what must survive its shim (its overlay).
    pub state_dir: PathBuf,
    /// Sockets.
    pub runtime_dir: PathBuf,
    /// Disks made of images.
    pub image_store: PathBuf,
    /// How images are found: credentials, registries, proxies.
    pub sources: SourceOptions,
    /// A file with settings for registries that are added to these (docs/images.md); it need not
    /// exist.
    pub registries: Option<PathBuf>,
}

impl KrunOptions {
    /// Takes the directories from `XDG_STATE_HOME`, `XDG_RUNTIME_DIR`, `XDG_CACHE_HOME` and `HOME`,
    /// as `variable` gives them.
    ///
    /// Without `XDG_RUNTIME_DIR` sockets live in `/run/user/UID` if that is there, else below the
    /// state directory. Relative values are ignored, as the XDG base directory specification asks.
    ///
    /// Returns `None` if neither they nor `HOME` say where anything may be kept.
    pub fn from_env(variable: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let absolute = |name: &str| {
            variable(name)
                .map(PathBuf::from)
                .filter(|p| p.is_absolute())
        };
        let home = absolute("HOME");
        let below_home = |rest: &str| home.as_ref().map(|home| home.join(rest));
        let state = absolute("XDG_STATE_HOME").or_else(|| below_home(".local/state"))?;
        let cache = absolute("XDG_CACHE_HOME").or_else(|| below_home(".cache"))?;
        let state_dir = state.join("bottle");
        let config = absolute("XDG_CONFIG_HOME").or_else(|| below_home(".config"));
        let image_store = cache.join("bottle/images");
        let mut sources = SourceOptions::from_env(&variable);
        sources.spool_dir = Some(image_store.clone());
        let of_session = PathBuf::from(format!("/run/user/{}", Uid::effective()));
        let runtime_dir = absolute("XDG_RUNTIME_DIR")
            .or_else(|| of_session.is_dir().then_some(of_session))
            .map_or_else(|| state_dir.join("run"), |dir| dir.join("bottle"));
        Some(Self {
            helper: None,
            kernel: None,
            data_home: absolute("XDG_DATA_HOME").or_else(|| below_home(".local/share")),
            state_dir,
            runtime_dir,
            image_store,
            sources,
            registries: config.map(|dir| dir.join("bottle/registries.toml")),
        })
    }

    /// Returns the program that becomes shim, warden, vmm and probes.
    ///
    /// # Errors
    ///
    /// What the system says of a program that is not there.
    pub(crate) fn helper(&self) -> io::Result<PathBuf> {
        match &self.helper {
            Some(helper) => helper.canonicalize(),
            None => env::current_exe(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_follow_the_xdg_variables_and_fall_back_to_home() {
        let options = KrunOptions::from_env(|name| match name {
            "HOME" => Some("/home/u".into()),
            "XDG_RUNTIME_DIR" => Some("/run/user/7".into()),
            "XDG_CACHE_HOME" => Some("relative".into()),
            _ => None,
        })
        .unwrap();
        assert_eq!(
            options.state_dir,
            PathBuf::from("/home/u/.local/state/bottle")
        );
        assert_eq!(options.runtime_dir, PathBuf::from("/run/user/7/bottle"));
        assert_eq!(
            options.image_store,
            PathBuf::from("/home/u/.cache/bottle/images")
        );
        assert_eq!(KrunOptions::from_env(|_| None), None);
    }
}
