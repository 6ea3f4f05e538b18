//! What is marked, in little space: there may be millions.

use oci_spec::image::Digest;

/// A blob, a snapshot or an ingest, as bytes that tell all of them apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(Vec<u8>);

const SHA256: u8 = 0;
const TEXT: u8 = 1;

impl Key {
    pub(super) fn blob(digest: &Digest) -> Self {
        Self::new(b'b', digest.as_ref())
    }

    /// A snapshot of any driver, by its ChainID.
    pub(super) fn chain(id: &str) -> Self {
        Self::new(b'c', id)
    }

    pub(super) fn snapshot(driver: &str, name: &str) -> Self {
        // The length keeps drivers and names apart, whatever they consist of.
        Self::new(b's', &format!("{}:{driver}{name}", driver.len()))
    }

    pub(super) fn ingest(key: &str) -> Self {
        Self::new(b'i', key)
    }

    /// As [`as_bytes`](Self::as_bytes) gave it.
    pub(super) fn of_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The digest of a [blob](Self::blob).
    pub(super) fn digest(&self) -> Digest {
        let text = match &self.0[..] {
            [_, SHA256, bytes @ ..] => {
                bytes.iter().fold("sha256:".to_owned(), |hex, byte| format!("{hex}{byte:02x}"))
            }
            [_, _, text @ ..] => String::from_utf8_lossy(text).into_owned(),
            [_] | [] => String::new(),
        };
        text.parse().expect("it is the key of a digest")
    }

    fn new(kind: u8, text: &str) -> Self {
        let bytes = match sha256(text) {
            Some(bytes) => [&[kind, SHA256], &bytes[..]].concat(),
            None => [&[kind, TEXT], text.as_bytes()].concat(),
        };
        Self(bytes)
    }
}

/// The bytes of a SHA-256 digest in its usual form.
fn sha256(text: &str) -> Option<[u8; 32]> {
    let hex = text.strip_prefix("sha256:").filter(|it| it.len() == 64)?;
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use windlass_content::hash;

    use super::*;

    #[test]
    fn a_digest_of_any_algorithm_comes_back_from_its_key() {
        let sha512 = format!("sha512:{}", "0123456789abcdef".repeat(8));
        for digest in [hash::sha256(b"a"), sha512.parse().expect("it is a digest")] {
            let key = Key::blob(&digest);
            assert_eq!(Key::of_bytes(key.as_bytes().to_vec()).digest(), digest);
        }
        assert_eq!(Key::blob(&hash::sha256(b"a")).as_bytes().len(), 34);
    }

    #[test]
    fn what_differs_has_different_keys() {
        let digest = hash::sha256(b"a");
        let upper = digest.as_ref().to_uppercase().replace("SHA256", "sha256");
        let mut keys = vec![
            Key::blob(&digest),
            Key::chain(digest.as_ref()),
            Key::chain(&upper),
            Key::chain("a"),
            Key::ingest("a"),
            Key::snapshot("a", "bc"),
            Key::snapshot("ab", "c"),
            Key::snapshot("", "1:abc"),
        ];
        keys.sort();
        let all = keys.len();
        keys.dedup();
        assert_eq!(keys.len(), all);
    }
}
