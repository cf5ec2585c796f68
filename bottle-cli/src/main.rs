//! The bottle command.

fn main() {}
