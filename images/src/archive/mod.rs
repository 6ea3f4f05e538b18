//! What is known of archives of images, for [`import`](crate::import) and for the crate `windlass-remotes`, which reads
//! them where they lie. Not part of the API.
//!
//! ```text
//! bytes ──▶ Entries ──▶ Table (names ──▶ places)
//!                         ├── oci-layout, index.json ──▶ layout::Root ──▶ Named
//!                         └── manifest.json ──▶ docker::Saved ──▶ Named
//! ```

pub mod docker;
mod entries;
mod header;
pub mod layout;
mod names;
mod table;

pub use entries::{Entries, Entry, Kind, Source, Stream};
pub use names::{Named, choose_names, recorded_names};
pub use table::{MAX_HOPS, Table, TooManyHops, normalise};

/// The most that a JSON document of an archive may have, in bytes: what registries take, too.
pub const MAX_JSON: u64 = 4 << 20;
