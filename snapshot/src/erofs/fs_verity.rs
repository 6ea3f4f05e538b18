//! fs-verity: the kernel keeps a file as it is, and checks whatever is read of it (`linux/fsverity.h`).

#![expect(unsafe_code, reason = "rustix knows no ioctls of fs-verity")]

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

use rustix::{
    io::{Errno, Result},
    ioctl::{Opcode, Setter, Updater, ioctl, opcode},
};

use super::driver::unsupported;
use crate::{folders, root::Root, tree};

const ENABLE: Opcode = opcode::write::<Enable>(b'f', 133);
const MEASURE: Opcode = opcode::read_write::<[u16; 2]>(b'f', 134);
/// FS_VERITY_HASH_ALG_SHA256
const SHA256: u32 = 1;
/// How much is hashed at once, in bytes.
const BLOCK: u32 = 4096;

/// `struct fsverity_enable_arg`
#[repr(C)]
struct Enable {
    version: u32,
    algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt: u64,
    signature_size: u32,
    reserved: u32,
    signature: u64,
    unused: [u64; 11],
}

/// `struct fsverity_digest`, with room for a digest.
#[repr(C)]
struct Digest {
    algorithm: u16,
    size: u16,
    digest: [u8; 32],
}

const _: () = assert!(size_of::<Enable>() == 128 && size_of::<Digest>() == 36);

/// Seals a file, which nobody has open to write, with SHA-256 and no salt. One that is sealed stays so.
pub(super) fn seal(path: &Path) -> crate::Result<()> {
    let failed = |source| folders::io("seal with fs-verity", path, source);
    match enable(&File::open(path).map_err(failed)?) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// The digest of a file that was sealed; `None` if it was not.
pub(super) fn digest(path: &Path) -> crate::Result<Option<[u8; 32]>> {
    let failed = |source| folders::io("measure with fs-verity", path, source);
    match measure(&File::open(path).map_err(failed)?) {
        Ok(digest) => Ok(Some(digest)),
        // Nor can it be where there is no such thing.
        Err(Errno::NODATA | Errno::NOTTY | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// Tries whether files in the root can be sealed.
pub(super) fn probe(root: &Root) -> crate::Result<()> {
    let attempt = |folder: &Path| {
        let path = folder.join("file");
        let written = File::create(&path).and_then(|mut file| file.write_all(b"some"));
        written.map_err(|source| folders::io("write", &path, source))?;
        let file = File::open(&path).map_err(|source| folders::io("open", &path, source))?;
        enable(&file).map_err(|errno| {
            let (error, shown) = (io::Error::from(errno), root.path().display());
            let reason = format!(
                "{shown} has no fs-verity ({error}): it takes a kernel with CONFIG_FS_VERITY, and ext4 or f2fs with the feature \
                 `verity` (for ext4: `tune2fs -O verity DEVICE`) or btrfs; without these, leave `fs_verity` off"
            );
            unsupported("seal layers", reason)
        })
    };
    root.attempt(attempt, tree::remove)
}

fn enable(file: &File) -> Result<()> {
    let arguments = Enable {
        version: 1,
        algorithm: SHA256,
        block_size: BLOCK,
        salt_size: 0,
        salt: 0,
        signature_size: 0,
        reserved: 0,
        signature: 0,
        unused: [0; 11],
    };
    // SAFETY: this is FS_IOC_ENABLE_VERITY, which reads the struct that it is given; it has neither a salt nor a signature.
    unsafe { ioctl(file, Setter::<ENABLE, _>::new(arguments)) }
}

fn measure(file: &File) -> Result<[u8; 32]> {
    let mut digest = Digest { algorithm: 0, size: 32, digest: [0; 32] };
    // SAFETY: this is FS_IOC_MEASURE_VERITY, which writes a digest of at most the size that the struct says it has room for.
    unsafe { ioctl(file, Updater::<MEASURE, _>::new(&mut digest)) }?;
    match (u32::from(digest.algorithm), digest.size) {
        (SHA256, 32) => Ok(digest.digest),
        // Somebody else has sealed it in another way.
        _ => Err(Errno::NOTSUP),
    }
}
