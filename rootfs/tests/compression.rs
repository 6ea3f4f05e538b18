//! Blobs in every compression, whatever their media types say, and none with anything after its end.

use std::{
    io::{self, Read, Write},
    process::{Command, Stdio},
};

use oci_spec::image::MediaType;
use windlass_rootfs::{
    apply::Limits,
    compression::{Compression, decompress},
};
use windlass_testkit::{Layer, require};

fn plain(blob: &[u8], media_type: &str, limits: &Limits) -> io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    decompress(io::Cursor::new(blob.to_vec()), &MediaType::from(media_type), limits)?
        .read_to_end(&mut plain)?;
    Ok(plain)
}

/// What a program makes of these bytes.
fn through(program: &str, package: &str, arguments: &[&str], bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new(require(program, package))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut input = child.stdin.take().expect("it is piped");
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&bytes));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("it does not panic").expect("it is read");
    assert!(output.status.success(), "{program}");
    output.stdout
}

fn tar() -> Vec<u8> {
    Layer::new().file("file", 0o644, &b"content ".repeat(5000)).tar().to_vec()
}

/// The tar in every compression.
fn blobs() -> Vec<(Compression, &'static str, Vec<u8>)> {
    let tar = tar();
    vec![
        (Compression::None, "application/vnd.oci.image.layer.v1.tar", tar.clone()),
        (
            Compression::Gzip,
            "application/vnd.oci.image.layer.v1.tar+gzip",
            through("gzip", "gzip", &["-c"], &tar),
        ),
        (
            Compression::Zstd,
            "application/vnd.oci.image.layer.v1.tar+zstd",
            through("zstd", "zstd", &["-c"], &tar),
        ),
        (Compression::Xz, "application/vnd.example.layer.tar.xz", through("xz", "xz-utils", &["-c"], &tar)),
        (
            Compression::Bzip2,
            "application/vnd.example.layer.tar.bzip2",
            through("bzip2", "bzip2", &["-c"], &tar),
        ),
    ]
}

#[test]
fn the_bytes_are_right_where_the_media_type_is_wrong() {
    for (compression, own, blob) in blobs() {
        assert_eq!(Compression::named(&MediaType::from(own)), Some(compression), "{own}");
        for (_, media_type, _) in blobs() {
            let found = plain(&blob, media_type, &Limits::default());
            assert_eq!(found.ok(), Some(tar()), "{compression:?} as {media_type}");
        }
        let docker = plain(&blob, "application/vnd.docker.image.rootfs.diff.tar.gzip", &Limits::default());
        assert_eq!(docker.ok(), Some(tar()), "{compression:?}");
        assert_eq!(
            plain(&blob, "application/octet-stream", &Limits::default()).ok(),
            Some(tar()),
            "{compression:?}"
        );
    }
}

#[test]
fn a_file_name_that_looks_like_a_compression_is_a_file_name() {
    for name in [&b"\x1f\x8bfile"[..], b"BZh91AY", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ"] {
        use std::os::unix::ffi::OsStrExt;
        let tar = Layer::new().file(std::ffi::OsStr::from_bytes(name), 0o644, b"x").tar();
        assert_eq!(
            plain(&tar, "application/vnd.oci.image.layer.v1.tar", &Limits::default()).ok(),
            Some(tar.to_vec())
        );
    }
}

#[test]
fn members_and_frames_follow_each_other_and_nothing_else_follows_them() {
    for (compression, media_type, blob) in blobs().into_iter().skip(1) {
        let twice = plain(&[&blob[..], &blob].concat(), media_type, &Limits::default());
        assert_eq!(twice.ok(), Some([tar(), tar()].concat()), "{compression:?}");
        for garbage in [&b"garbage"[..], &[0; 7], &[1], &b"x".repeat(100_000)] {
            let result = plain(&[&blob[..], garbage].concat(), media_type, &Limits::default());
            assert!(result.is_err(), "{compression:?} with {} bytes of garbage", garbage.len());
        }
        for cut in [blob.len() - 1, blob.len() / 2, 20] {
            let result = plain(&blob[..cut], media_type, &Limits::default());
            assert!(result.is_err(), "{compression:?}, cut to {cut} of {} bytes", blob.len());
        }
    }
}

#[test]
fn bytes_that_are_neither_tar_nor_compressed_are_refused() {
    for media_type in
        ["application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.oci.image.layer.v1.tar+zstd"]
    {
        let err = plain(&[b'x'; 2000], media_type, &Limits::default()).expect_err("it is neither");
        assert!(err.to_string().contains(media_type), "{err}");
    }
    assert!(
        plain(&[], "application/vnd.oci.image.layer.v1.tar", &Limits::default()).is_ok(),
        "nothing is a tar"
    );
}

#[test]
fn estargz_and_zstd_chunked_are_plain_layers() {
    let gzip = |bytes: &[u8]| through("gzip", "gzip", &["-c"], bytes);
    let tar = tar();
    // Each file is a member; an empty one with an extra field is the footer.
    let footer = [
        &[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 26, 0, b'S', b'G', 22, 0][..],
        &[b'0'; 16],
        b"STARGZ",
        &[1, 0, 0, 255, 255],
        &[0; 8],
    ]
    .concat();
    let estargz = [gzip(&tar[..1024]), gzip(&tar[1024..]), footer].concat();
    assert_eq!(
        plain(&estargz, "application/vnd.oci.image.layer.v1.tar+gzip", &Limits::default()).ok(),
        Some(tar.clone())
    );

    // The manifest is in skippable frames, which may also come first.
    let zstd = |bytes: &[u8]| through("zstd", "zstd", &["-c"], bytes);
    let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 5, 0, 0, 0][..], b"12345"].concat();
    let chunked =
        [skipped.clone(), zstd(&tar[..1024]), skipped.clone(), zstd(&tar[1024..]), skipped].concat();
    assert_eq!(
        plain(&chunked, "application/vnd.oci.image.layer.v1.tar+zstd", &Limits::default()).ok(),
        Some(tar)
    );
}

#[test]
fn windows_are_limited() {
    let mut limits = Limits::default();
    let zeros = vec![0; 3 << 20];
    let blobs = [
        through("zstd", "zstd", &["-c", "--long=27", "--no-check", "-"], &zeros),
        through("xz", "xz-utils", &["-c", "--lzma2=dict=64MiB"], &zeros),
    ];
    for blob in &blobs {
        assert_eq!(
            plain(blob, "application/octet-stream", &limits).ok().map(|it| it.len()),
            Some(zeros.len())
        );
    }
    limits.window = 1 << 20;
    for blob in &blobs {
        let err = plain(blob, "application/octet-stream", &limits).expect_err("it is larger");
        assert!(err.to_string().contains("1048576 bytes of a decompressor's window"), "{err}");
    }
}
