//! Manifests, indexes and configs as they are read: lenient where the field is, strict where it is dangerous.
//!
//! `null` lists are empty lists and unknown fields are passed over. A document that could be read as two
//! different things is refused.

mod config;
mod document;
mod index;
mod manifest;

pub use config::{Config, ContainerConfig};
pub use index::Index;
pub use manifest::Manifest;
