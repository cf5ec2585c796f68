//! Archives of layers: the reader.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    bottle_image::fuzzing::tar(bytes);
});
