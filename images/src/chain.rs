use std::fmt;

use oci_spec::image::Digest;
use windlass_content::hash;

/// The name of a stack of layers: what their trees are together (image-spec, config.md, "Layer ChainID").
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChainId(Digest);

impl AsRef<str> for ChainId {
    fn as_ref(&self) -> &str {
        self.0.as_ref()
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The ChainID after each layer, for DiffIDs that are given lowest first.
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<ChainId> {
    let mut chain: Option<Digest> = None;
    let step = |diff_id: &Digest| {
        let next = match &chain {
            None => diff_id.clone(),
            Some(below) => hash::sha256(format!("{below} {diff_id}").as_bytes()),
        };
        chain = Some(next.clone());
        ChainId(next)
    };
    diff_ids.iter().map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_chain_id_is_the_diff_id_and_each_further_one_hashes_two() {
        let (a, b) = (hash::sha256(b"a"), hash::sha256(b"b"));
        let chain = chain_ids(&[a.clone(), b.clone()]);
        assert_eq!(chain[0].as_ref(), a.as_ref());
        // printf '%s %s' "sha256:$(printf a | sha256sum | cut -c-64)" "sha256:$(printf b | …)" | sha256sum
        assert_eq!(
            chain[1].as_ref(),
            "sha256:51c0c8ace48498d6f5fee6b0592cc06f2da0f3cbe09c5a34a97dce85c3889676"
        );
        assert!(chain_ids(&[]).is_empty());
    }
}
