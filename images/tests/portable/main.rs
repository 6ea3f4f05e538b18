//! What is promised of images that leave a store and enter another one: by our own archives, and by those of skopeo and
//! podman.

mod fixtures;
mod foreign;
mod hostile;
mod round_trip;
mod tools;
