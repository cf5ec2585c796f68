//! The krun backend: shim, warden, jail, vmm and the wiring.
