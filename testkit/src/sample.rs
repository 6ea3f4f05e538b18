//! What the tests of the registry share.

use crate::{Image, ImageBuilder, Layer, Registry};

/// An image with one layer of more than 5000 bytes.
pub(crate) fn image() -> Image {
    ImageBuilder::new().layer(Layer::new().file("file", 0o644, &[7; 5000]).plain()).build()
}

/// A registry that has the image as `library/app:latest`.
pub(crate) async fn registry() -> (Registry, Image) {
    let image = image();
    let registry = Registry::start().await;
    registry.push(&image, "library/app", "latest");
    (registry, image)
}

/// Where its layer is.
pub(crate) fn layer_path(image: &Image) -> String {
    format!("/v2/library/app/blobs/{}", image.layers()[0].digest())
}
