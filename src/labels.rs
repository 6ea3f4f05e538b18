//! The labels that a pull notes on an image in the list.

/// From which registry it came, as a reference: what is missing of it is fetched from there.
pub const SOURCE: &str = "windlass.source";

/// That its layers are not kept as blobs, since they are unpacked: see [`Retain::Unpacked`](crate::Retain::Unpacked).
pub const UNPACKED: &str = "windlass.unpacked";
