use oci_spec::image::Descriptor;

use super::document::{Document, malformed};
use crate::Result;

/// A list of manifests, mostly one for each platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// The manifests, and sometimes further indexes, in their order.
    pub manifests: Vec<Descriptor>,
}

impl Index {
    /// Reads an index from the bytes that the descriptor names.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`](crate::Error::Malformed) if it is none, or is a manifest as well.
    pub fn parse(descriptor: &Descriptor, bytes: &[u8]) -> Result<Self> {
        let document = Document::parse("index", descriptor, bytes)?;
        let manifests = document.manifests.ok_or_else(|| malformed("index", descriptor, "it has no manifests"))?;
        Ok(Self { manifests })
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::MediaType;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::descriptor;

    #[test]
    fn null_manifests_are_none_and_missing_ones_are_refused() {
        let index = descriptor(MediaType::ImageIndex);

        let empty = Index::parse(&index, br#"{"schemaVersion":2,"manifests":null}"#).expect("null is empty");
        let missing = Index::parse(&index, br#"{"schemaVersion":2}"#).expect_err("there is no list");
        let confused = Index::parse(&index, br#"{"manifests":[],"layers":[]}"#).expect_err("it is two things");

        assert_eq!(empty.manifests, []);
        assert!(missing.to_string().ends_with("it has no manifests"), "{missing}");
        assert!(confused.to_string().contains("both an index and a manifest"), "{confused}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Index::parse(&descriptor(MediaType::ImageIndex), &bytes);
        }
    }
}
