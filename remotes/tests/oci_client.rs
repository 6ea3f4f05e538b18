//! Both clients see the same images.
#![cfg(feature = "oci-client")]

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::TryStreamExt;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_spec::image::{Descriptor, Digest, MediaType};
use windlass_reference::Reference;
use windlass_remotes::{Error, OciClient, Registry, Resolved, Resolver};
use windlass_testkit::{Fault, Image, ImageBuilder, Index, Layer, Registry as Server};

fn oci_client() -> OciClient {
    // An error says that another test was faster.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() };
    OciClient::new(oci_client::Client::try_from(config).expect("the settings are good"))
}

fn clients() -> [Box<dyn Resolver>; 2] {
    let other = oci_client();
    [Box::new(Registry::new().expect("the settings are good")), Box::new(other)]
}

fn app(platform: &str) -> Image {
    let layer = Layer::new().file("file", 0o644, &[7; 300_000]);
    ImageBuilder::new().platform(platform).layer(layer.clone().plain()).layer(layer).build()
}

/// All nodes of an image from a byte on, by digest.
async fn nodes(resolved: &Resolved, image: &Image, from: u64) -> BTreeMap<String, Vec<u8>> {
    let mut nodes = BTreeMap::new();
    for (digest, (media_type, bytes)) in &image.blobs {
        let media_type = MediaType::from(&**media_type);
        let node = Descriptor::new(
            media_type,
            bytes.len() as u64,
            digest.parse::<Digest>().expect("it is a digest"),
        );
        let body = resolved.fetcher.fetch(&node, from).await.expect(digest);
        let chunks: Vec<Bytes> = body.try_collect().await.expect(digest);
        nodes.insert(digest.clone(), chunks.concat());
    }
    nodes
}

#[tokio::test]
async fn all_nodes_are_the_same_through_both_clients() {
    for image in [app("linux/amd64"), Index::of(&[app("linux/amd64"), app("linux/arm64")])] {
        let server = Server::start().await;
        server.push(&image, "library/app", "latest");
        for object in [":latest".to_owned(), format!("@{}", image.root.digest())] {
            let reference: Reference =
                format!("{}/library/app{object}", server.host()).parse().expect("it is a reference");
            for client in clients() {
                let resolved = client.resolve(&reference).await.expect("it is there");

                assert_eq!(resolved.descriptor, image.root, "{client:?}");
                assert_eq!(resolved.name, reference.to_string());
                for from in [0, 10] {
                    let nodes = nodes(&resolved, &image, from).await;
                    for (digest, (_, bytes)) in &image.blobs {
                        assert_eq!(nodes[digest], bytes[from as usize..], "{digest} from {from}, {client:?}");
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn a_registry_that_knows_no_ranges_is_read_from_the_start() {
    let image = app("linux/amd64");
    let server = Server::start().await;
    server.push(&image, "library/app", "latest");
    server.fault(Fault::ignore_range("/blobs/"));
    let reference: Reference = format!("{}/library/app", server.host()).parse().expect("it is a reference");

    let resolved = oci_client().resolve(&reference).await.expect("it is there");

    for (digest, rest) in nodes(&resolved, &image, 100).await {
        assert_eq!(rest, image.blobs[&digest].1[100..], "{digest}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let image = app("linux/amd64");
    let server = Server::start().await;
    server.push(&image, "library/app", "latest");
    let reference = |name: &str| -> Reference {
        format!("{}/library/{name}", server.host()).parse().expect("it is a reference")
    };
    let client = oci_client();

    let no_tag = client.resolve(&reference("app:missing")).await.expect_err("there is no such tag");
    let resolved = client.resolve(&reference("app")).await.expect("it is there");
    let node = Descriptor::new(MediaType::ImageLayer, 1, windlass_content::hash::sha256(b"x"));
    let no_blob = resolved.fetcher.fetch(&node, 0).await.map(drop).expect_err("there is no such blob");

    for error in [no_tag, no_blob] {
        assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    }
}
