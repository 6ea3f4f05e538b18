//! Turns an image into one file that a virtual machine takes as its root disk: `cargo run --example block -- busybox:latest root.img`
//!
//! It is an EROFS, read-only and complete. Firecracker takes it as a drive with `"is_read_only": true`, QEMU as
//! `-drive file=root.img,format=raw,if=virtio,readonly=on -append 'root=/dev/vda rootfstype=erofs ro'`. Here it is mounted.

use std::{fs::File, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use windlass::{
    Reference, Windlass,
    snapshot::{Durability, Erofs, erofs::Options},
};

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: block <reference> <file>";
    let name: Reference = arguments.next().context(usage)?.parse()?;
    let disk = PathBuf::from(arguments.next().context(usage)?);

    // Pull the image, each layer into a file of its own.
    let root = tempfile::tempdir()?;
    let snapshots = root.path().join("erofs");
    let erofs = || Erofs::open(&snapshots, Durability::Fast);
    let windlass = Windlass::builder().snapshotter(erofs()?).open(root.path())?;
    let pulled = windlass.pull(&name).await?;
    let chain_id = pulled.chain_id.context("the image has no layers")?;

    // Put what is seen of all layers into one.
    let file = File::options().create_new(true).read(true).write(true).open(&disk)?;
    let image = erofs()?.export_block(chain_id.as_ref(), file, &Options::default())?;
    println!("{}: {} files in {} bytes", disk.display(), image.inodes(), image.length());

    // Let the kernel check what it reads, if it is told this hash.
    let verity = image.append_verity(b"", [0; 16])?;
    let hash: String = verity.root.iter().map(|byte| format!("{byte:02x}")).collect();
    println!("dm-verity: hash {hash}, tree at {}", verity.offset);

    // Look into it, by a loop device.
    let target = tempfile::tempdir()?;
    let mounted = Command::new("mount")
        .args(["-t", "erofs", "-o", "ro,loop"])
        .arg(&disk)
        .arg(target.path())
        .status()?;
    ensure!(mounted.success(), "it cannot be mounted: run as root");
    for entry in target.path().read_dir()? {
        println!("/{}", entry?.file_name().display());
    }
    ensure!(Command::new("umount").arg(target.path()).status()?.success(), "it stays mounted");
    Ok(())
}
