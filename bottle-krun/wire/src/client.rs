//! What a client and the shim say to each other over a Unix socket; both are ours and trusted.
//! (To be written with the shim. "Sessions" versions it for clients of other releases.)
