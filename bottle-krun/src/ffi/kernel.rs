//! The guest kernel's library: loaded by absolute path before libkrun asks for it by name.

use std::ffi::{CStr, CString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use nix::libc;
use thiserror::Error;

/// The name under which libkrun looks for the library.
pub(crate) const KERNEL_NAME: &str = "libkrunfw.so.5";
const SONAME: &CStr = c"libkrunfw.so.5";

/// The one function that libkrun takes from it.
const SYMBOL: &CStr = c"krunfw_get_kernel";

/// Proof that the guest kernel's library is loaded, under the name by which libkrun finds it.
///
/// It stays loaded for the life of the process.
#[derive(Debug)]
pub(crate) struct KernelLibrary(());

impl KernelLibrary {
    /// Loads it from an absolute path.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if it is not there, not a library, or not this one.
    ///
    /// # Security
    ///
    /// The library's constructors run in this process: the path must be as trusted as the program.
    pub(crate) fn load(path: &Path) -> Result<Self, KernelError> {
        if !path.is_absolute() {
            return Err(KernelError::Relative { path: path.into() });
        }
        let c_path = CString::new(path.as_os_str().as_bytes()).map_err(|_| KernelError::Load {
            path: path.into(),
            why: "its path holds a NUL byte".into(),
        })?;
        let loaded = open(&c_path, libc::RTLD_NOW).ok_or_else(|| KernelError::Load {
            path: path.into(),
            why: last_error(),
        })?;
        // libkrun opens it by name: that finds this copy only if the name stands in it.
        let named = open(SONAME, libc::RTLD_NOW | libc::RTLD_NOLOAD);
        // SAFETY: dlsym reads a handle that dlopen returned and that is never closed, and a static
        // NUL-terminated string.
        let symbol = unsafe { libc::dlsym(loaded.as_ptr(), SYMBOL.as_ptr()) };
        if named != Some(loaded) || symbol.is_null() {
            return Err(KernelError::Foreign { path: path.into() });
        }
        Ok(Self(()))
    }
}

fn open(name: &CStr, flags: libc::c_int) -> Option<NonNull<c_void>> {
    // SAFETY: dlopen reads a NUL-terminated string that outlives the call and runs constructors;
    // the caller of `load` vouches for the file.
    NonNull::new(unsafe { libc::dlopen(name.as_ptr(), flags) })
}

fn last_error() -> String {
    // SAFETY: dlerror returns NULL or a string of this thread that lives until its next dl* call.
    let message = unsafe { libc::dlerror() };
    if message.is_null() {
        return "unknown reason".into();
    }
    // SAFETY: not NULL, so NUL-terminated and alive until this thread's next dl* call, which
    // comes after the copy.
    let message = unsafe { CStr::from_ptr(message) };
    message.to_string_lossy().into_owned()
}

/// Why the guest kernel's library is not usable.
#[derive(Debug, Error)]
pub(crate) enum KernelError {
    /// It is a library, but not the guest kernel's.
    #[error("`{}` is not {KERNEL_NAME} (by its SONAME and its symbols)", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The dynamic loader did not take it.
    #[error("cannot load the guest kernel `{}`: {why}", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// What the loader says.
        why: String,
    },
    /// Only absolute paths are taken: others are searched for.
    #[error("the path of the guest kernel, `{}`, is not absolute", path.display())]
    Relative {
        /// The path.
        path: PathBuf,
    },
}
