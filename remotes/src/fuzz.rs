//! The parsers of hostile bytes, for the fuzz targets in `fuzz/`. Not part of the API.

use crate::{credentials, hosts, registry};

/// A `WWW-Authenticate` header.
pub fn challenge(text: &str) {
    registry::parse_challenge(text);
}

/// A `Content-Range` header.
pub fn content_range(text: &str) {
    if let Some(range) = registry::parse_content_range(text) {
        assert!(range.first <= range.last && range.total.is_none_or(|total| range.last < total), "{range:?}");
    }
}

/// A `Link` header.
pub fn link(text: &str) {
    registry::next_link(text);
}

/// A `hosts.toml`.
pub fn hosts_file(bytes: &[u8]) {
    hosts::exercise(bytes);
}

/// A `config.json` or `auth.json`.
pub fn auth_file(bytes: &[u8]) {
    credentials::exercise(bytes);
}
