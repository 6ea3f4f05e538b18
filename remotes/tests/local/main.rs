//! What images in local files promise, with files made here and with files that skopeo makes.

mod docker;
mod fixtures;
mod hostile;
mod oci;
mod skopeo;
