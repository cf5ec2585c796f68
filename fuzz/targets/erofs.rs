//! Trees: the writer of disks, and what is behind it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    bottle_image::fuzzing::erofs(bytes);
});
