use std::fmt;

use oci_spec::image::Digest;
use windlass_content::hash;

/// The name of a stack of layers: what a snapshot with all of them applied is called.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChainId(Digest);

impl ChainId {
    /// The name as a digest. It is no blob's digest unless the stack has one layer.
    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl AsRef<str> for ChainId {
    fn as_ref(&self) -> &str {
        self.0.as_ref()
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_ref())
    }
}

/// The ChainID of each layer on top of those before it. The last one names the whole stack.
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<ChainId> {
    let mut chain: Vec<ChainId> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => ChainId(diff_id.clone()),
            Some(below) => ChainId(hash::sha256(format!("{below} {diff_id}").as_bytes())),
        });
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_layer_is_named_by_all_below_it() {
        let ids: Vec<Digest> = [b"a", b"b", b"c"].map(|bytes| hash::sha256(bytes)).to_vec();

        let chain = chain_ids(&ids);

        let ab = hash::sha256(format!("{} {}", ids[0], ids[1]).as_bytes());
        let abc = hash::sha256(format!("{ab} {}", ids[2]).as_bytes());
        assert_eq!(chain.iter().map(ChainId::digest).collect::<Vec<_>>(), [&ids[0], &ab, &abc]);
        assert_eq!(chain_ids(&[]), []);
    }
}
