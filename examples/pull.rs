//! Pulls an image: `cargo run --release --example pull -- redis [ROOT]`.

use windlass::{PullOptions, Reference, Windlass, images::progress};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().ok_or_else(|| anyhow::anyhow!("usage: pull REF [ROOT]"))?;
    let root = arguments.next().unwrap_or_else(|| "/var/lib/windlass".into());

    // Parse the name as Docker would: `redis` is `docker.io/library/redis:latest`.
    let reference: Reference = name.parse()?;

    // Everything lives below one folder, which other processes may use at the same time.
    let windlass = Windlass::open(root)?;

    // Print what happens, as it happens. A slow terminal would not slow the pull.
    let (progress, mut events) = progress::channel();
    let printer = tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            eprintln!("{event:?}");
        }
    });

    // Fetch, verify, unpack, and record the name last.
    let pulled = windlass.pull_with(&reference, PullOptions::default().progress(progress)).await?;
    printer.await?;

    println!("{} {}", pulled.name, pulled.target.digest());
    if let Some(chain_id) = pulled.chain_id {
        println!("its root file system is the snapshot {chain_id}");
    }
    Ok(())
}
