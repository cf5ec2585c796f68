//! PID 1 of the microVM.

fn main() {}
