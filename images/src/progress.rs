//! What a pull is doing, pushed as typed events that never slow it.
//!
//! [`channel`] gives the two ends. The sending end never blocks, and holds at most a few events for each node:
//! byte counts that the receiver has not read yet are replaced by newer ones; changes of state are never lost.

use oci_spec::image::Descriptor;
use serde::Serialize;

/// What happened to a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
#[non_exhaustive]
pub enum Event {
    /// The name stands for this content.
    Resolved {
        /// The name, as the resolver normalised it.
        name: String,
        /// What it stands for.
        descriptor: Descriptor,
    },
    /// The node was found, and waits for its turn.
    Waiting {
        /// The node.
        descriptor: Descriptor,
    },
    /// Bytes have come. A count, so that a missed event does no harm.
    Downloading {
        /// The node.
        descriptor: Descriptor,
        /// How many of its bytes are there, those of an earlier try included.
        offset: u64,
    },
    /// The node was in the store already.
    Exists {
        /// The node.
        descriptor: Descriptor,
    },
    /// All bytes are there, verified and committed.
    Downloaded {
        /// The node.
        descriptor: Descriptor,
        /// How many bytes came over the network for it in this pull.
        transferred: u64,
    },
    /// The layer is being applied. A count, so that a missed event does no harm.
    Unpacking {
        /// The layer.
        descriptor: Descriptor,
        /// How many bytes of the blob (compressed) have been read.
        offset: u64,
    },
    /// The layer's snapshot is committed, or was there already.
    Unpacked {
        /// The layer.
        descriptor: Descriptor,
        /// Whether the snapshot was there already.
        existed: bool,
    },
}
