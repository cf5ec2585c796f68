//! Tests in real microVMs.
