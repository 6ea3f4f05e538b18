//! A puller put together by hand: `cargo run --example custom_puller -- REF [OS/ARCH]`.
//!
//! It stacks the same handlers that the facade uses, adds one of its own, and unpacks nothing: what a program
//! needs that only wants the bytes, such as a mirror or a scanner.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use oci_spec::image::Descriptor;
use windlass::{
    Reference,
    content::{LocalStore, Options},
    images::{BoxError, ChildrenHandler, HandlerExt, Next, Platform, dispatch, media_type},
    remotes::{FetchHandler, Registry, Resolver},
};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let reference: Reference = arguments.next().ok_or("usage: custom_puller REF [OS/ARCH]")?.parse()?;
    let platform = match arguments.next() {
        Some(platform) => platform.parse()?,
        None => Platform::host(),
    };
    rustls::crypto::ring::default_provider().install_default().expect("nobody else installs one");

    // Where the bytes come from, and where they go.
    let registry = Registry::builder().build()?;
    let folder = tempfile::tempdir()?;
    let store = Arc::new(LocalStore::open(folder.path(), Options::default())?);

    // Which content does the name stand for?
    let image = registry.resolve(&reference).await?;

    // A handler of our own: refuse layers above a gigabyte before a byte of them is fetched.
    let no_giants = |node: Descriptor| async move {
        match media_type::is_layer(node.media_type()) && node.size() > 1 << 30 {
            true => Err(format!("layer {} has {} bytes, too many for us", node.digest(), node.size()).into()),
            false => Ok(Next::Visit(vec![])),
        }
    };

    // Another: count what was visited.
    let total = Arc::new(AtomicU64::new(0));
    let sum = total.clone();
    let count = move |node: Descriptor| {
        sum.fetch_add(node.size(), Ordering::Relaxed);
        async move {
            eprintln!("{} {} {}", node.digest(), node.size(), node.media_type());
            Ok(Next::Visit(vec![]))
        }
    };

    // Check, fetch, count, then look inside for more: the manifest of one platform, its config and layers.
    let pull = no_giants
        .then(FetchHandler::new(image.fetcher, store.clone()))
        .then(count)
        .then(ChildrenHandler::new(store).platform(platform));
    dispatch(pull, image.descriptor, NonZeroUsize::new(4).expect("four is not zero")).await?;

    println!("{}: {} bytes", image.name, total.load(Ordering::Relaxed));
    Ok(())
}
