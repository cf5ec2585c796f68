//! An in-memory backend and the conformance suite that any backend can run.
