//! Layouts made by code, converted, and read back: by a reader of this suite's own, by
//! `fsck.erofs`, and by the kernel where tests may mount.

mod corpus;
mod facts;
mod hostile;
mod kernel;
mod layouts;
mod reader;
mod scan;
mod stacks;
