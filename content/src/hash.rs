//! Digests of bytes: SHA-256, SHA-384 and SHA-512.

use std::{fmt, fmt::Write, str::FromStr};

use oci_spec::image::{Digest, DigestAlgorithm};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use crate::{Error, Result};

/// Hashes bytes as they come, with the algorithm of the digest that is expected.
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Hasher {
    /// A hasher whose result can be compared with `expected`.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedDigest`] if the algorithm is none of the three.
    pub fn new(expected: &Digest) -> Result<Self> {
        Ok(Self(match expected.algorithm() {
            DigestAlgorithm::Sha256 => State::Sha256(Sha256::new()),
            DigestAlgorithm::Sha384 => State::Sha384(Sha384::new()),
            DigestAlgorithm::Sha512 => State::Sha512(Sha512::new()),
            _ => return Err(Error::UnsupportedDigest { digest: expected.clone() }),
        }))
    }

    /// A hasher for SHA-256.
    pub fn sha256() -> Self {
        Self(State::Sha256(Sha256::new()))
    }

    /// Takes in more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(hash) => hash.update(bytes),
            State::Sha384(hash) => hash.update(bytes),
            State::Sha512(hash) => hash.update(bytes),
        }
    }

    /// The digest of all bytes that were taken in.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(hash) => digest("sha256", &hash.finalize()),
            State::Sha384(hash) => digest("sha384", &hash.finalize()),
            State::Sha512(hash) => digest("sha512", &hash.finalize()),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher").finish_non_exhaustive()
    }
}

/// The SHA-256 digest of some bytes.
pub fn sha256(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::sha256();
    hasher.update(bytes);
    hasher.finish()
}

fn digest(algorithm: &str, hash: &[u8]) -> Digest {
    let mut text = format!("{algorithm}:");
    for byte in hash {
        write!(text, "{byte:02x}").expect("a string takes all that is written");
    }
    Digest::from_str(&text).expect("the text is a digest by construction")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_bytes_have_known_digests() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256(b"").as_ref(), empty);
        // The test vectors of FIPS 180-2 for "abc".
        for text in [
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "sha384:cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed\
             8086072ba1e7cc2358baeca134c825a7",
            "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
             2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        ] {
            let expected: Digest = text.parse().expect("it is a digest");
            let mut hasher = Hasher::new(&expected).expect("the algorithm is supported");
            hasher.update(b"a");
            hasher.update(b"bc");
            assert_eq!(hasher.finish(), expected);
        }
    }

    #[test]
    fn an_unknown_algorithm_is_refused() {
        let digest: Digest =
            "md5:d41d8cd98f00b204e9800998ecf8427e".parse().expect("it has the form of a digest");
        assert!(matches!(Hasher::new(&digest), Err(Error::UnsupportedDigest { .. })));
    }
}
