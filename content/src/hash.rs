//! Digests of bytes: SHA-256, SHA-384 and SHA-512.
