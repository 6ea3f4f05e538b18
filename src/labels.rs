//! The labels that windlass notes on images in the list, and on the snapshots of containers.

/// From which registry it came, as a reference: what is missing of it is fetched from there.
pub const SOURCE: &str = "windlass.source";

/// That its layers are not kept as blobs, since they are unpacked: see [`Retain::Unpacked`](crate::Retain::Unpacked).
pub const UNPACKED: &str = "windlass.unpacked";

/// On a container's snapshot: the name of the image that it was made of.
pub const IMAGE: &str = "windlass.image";

/// On a container's snapshot: the descriptor of the manifest that it was made of, as JSON.
pub const MANIFEST: &str = "windlass.manifest";
