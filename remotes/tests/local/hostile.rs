//! Files that somebody made to do harm, or that are damaged.

use std::{fs, os::unix::fs::symlink, path::Path};

use bytes::Bytes;
use futures::TryStreamExt;
use proptest::prelude::*;
use serde_json::{Value, json};
use windlass_remotes::{
    Error, Result,
    local::{DockerArchive, OciArchive, OciLayout},
};
use windlass_testkit::Layer;

use crate::fixtures::{Both, Files, app, blob_name, layout, other, tar, write};

/// The layout of an image, with one file replaced, or taken away.
fn changed(name: &str, bytes: Option<&[u8]>) -> Files {
    let mut files = layout(&[(&app(), json!(null))]);
    files.retain(|(it, _)| it != name);
    files.extend(bytes.map(|bytes| (name.to_owned(), Bytes::copy_from_slice(bytes))));
    files
}

fn index(manifests: &Value) -> Vec<u8> {
    json!({ "schemaVersion": 2, "manifests": manifests }).to_string().into_bytes()
}

#[tokio::test]
async fn a_layout_that_cannot_be_used_says_why() {
    let root = blob_name(app().root.digest().as_ref());
    let digest = |digest: &str| {
        index(
            &json!([{ "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1, "digest": digest }]),
        )
    };
    let wrong = vec![b'x'; app().root.size() as usize];
    for (name, bytes, why) in [
        ("oci-layout", None, "oci-layout: it is missing"),
        (
            "oci-layout",
            Some(&br#"{"imageLayoutVersion":"2.0.0"}"#[..]),
            "version \"2.0.0\"; 1.0.0 is supported",
        ),
        ("oci-layout", Some(b"{"), "oci-layout, line 1: EOF while parsing"),
        ("index.json", None, "index.json: it is missing"),
        ("index.json", Some(b"[1"), "index.json: EOF while parsing"),
        ("index.json", Some(&vec![b' '; 5 << 20]), "has more than 4194304 bytes"),
        ("index.json", Some(&index(&json!([]))), "an image not found in"),
        ("index.json", Some(&digest("sha256:../../../../etc/passwd")), "index.json: "),
        ("index.json", Some(&digest("../../../../etc/passwd")), "index.json: "),
        ("index.json", Some(&digest(&format!("sha256:{}", "0".repeat(64)))), "not found in"),
        (&root, None, "not found in"),
        (&root, Some(b"short"), "it has 5 bytes, but sha256:"),
        (&root, Some(&wrong), "gave content of digest sha256:"),
    ] {
        let files = changed(name, bytes);
        let temporary = tempfile::tempdir().expect("there is room");
        let (folder, archive) = (temporary.path().join("layout"), temporary.path().join("layout.tar"));
        write(&files, &folder);
        fs::write(&archive, tar(&files)).expect("there is room");
        for error in [in_folder(&folder).await, in_archive(&archive).await] {
            let error = error.expect_err(why);
            assert!(error.to_string().contains(why), "{why}: {error}");
        }
    }
}

#[tokio::test]
async fn an_index_that_pretends_to_list_itself_is_not_believed() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let list = |size: usize| {
        index(&json!([{
            "mediaType": "application/vnd.oci.image.index.v1+json", "size": size, "digest": digest,
        }]))
    };
    let itself = list(list(100).len());
    let mut files = changed("index.json", Some(&itself));
    files.push((blob_name(&digest), itself.clone().into()));
    for resolved in Both::of(&files).resolve_tag(None).await {
        let error = resolved.expect_err("it would have to have its own digest in it");
        assert!(matches!(error, Error::DigestMismatch { .. }), "{error:?}");
    }
}

async fn in_folder(path: &Path) -> Result<()> {
    OciLayout::open(path)?.resolve_tag(None).await.map(drop)
}

async fn in_archive(path: &Path) -> Result<()> {
    OciArchive::open(path)?.resolve_tag(None).await.map(drop)
}

#[tokio::test]
async fn a_layer_of_the_wrong_size_is_refused_and_a_missing_one_is_not_found() {
    let layer = app().layers()[0].clone();
    let name = blob_name(layer.digest().as_ref());
    let whole = app().blob(layer.digest());
    let longer = [&whole[..], b"x"].concat();
    for (bytes, why) in [
        (Some(&whole[..1000]), "it has 1000 bytes"),
        (Some(&longer), "bytes, but sha256:"),
        (None, "not found in"),
    ] {
        let both = Both::of(&changed(&name, bytes));
        for resolved in both.resolve_tag(None).await {
            let fetcher = resolved.expect("the manifest is whole").fetcher;

            let error = fetcher.fetch(&layer, 0).await.map(drop).expect_err(why);

            assert!(error.to_string().contains(why), "{why}: {error}");
            assert!(error.to_string().contains(layer.digest().as_ref()), "{error}");
            assert_eq!(matches!(error, Error::NotFound { .. }), bytes.is_none());
        }
    }
}

#[tokio::test]
async fn a_file_that_is_shortened_meanwhile_fails_the_stream() {
    let both = Both::of(&layout(&[(&app(), json!(null))]));
    let layer = app().layers()[0].clone();
    let files = ["layout.tar".into(), format!("layout/{}", blob_name(layer.digest().as_ref()))];
    for (resolved, file) in both.resolve_tag(None).await.into_iter().zip(files.iter().rev()) {
        let body = resolved.expect("it is whole").fetcher.fetch(&layer, 0).await.expect("it is whole");
        let file =
            fs::File::options().write(true).open(both.temporary.path().join(file)).expect("it is there");
        file.set_len(10_000).expect("it can be shortened");

        let error = body.try_collect::<Vec<_>>().await.expect_err("bytes are missing");

        assert!(error.to_string().ends_with("was shortened while it was read"), "{error}");
    }
}

#[tokio::test]
async fn a_blob_is_a_regular_file_in_the_folder_or_nothing() {
    let layer = app().layers()[0].clone();
    let name = blob_name(layer.digest().as_ref());
    let both = Both::of(&changed(&name, None));
    let fetcher = both.folder.resolve_tag(None).await.expect("the manifest is whole").fetcher;
    let (blob, outside) =
        (both.temporary.path().join("layout").join(&name), both.temporary.path().join("secret"));
    fs::write(&outside, app().blob(layer.digest())).expect("there is room");
    let inside = blob.with_file_name("inside");
    fs::copy(&outside, &inside).expect("there is room");
    for (target, why) in [
        (Path::new("inside"), None),
        (&*outside, Some("leads out of the image's folder")),
        (Path::new("../../../secret"), Some("leads out of the image's folder")),
        (&*blob, Some("leads out of the image's folder")),
        (Path::new(blob.file_name().expect("it has one")), Some("lead nowhere")),
        (Path::new("."), Some("it is not a regular file")),
        (Path::new("/proc/self/fd/0"), Some("leads out of the image's folder")),
    ] {
        symlink(target, &blob).expect("the name is free");

        let error = fetcher.fetch(&layer, 0).await.map(drop).err();

        fs::remove_file(&blob).expect("it was just made");
        let error = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(
            error.contains(why.unwrap_or_default()) && error.is_empty() == why.is_none(),
            "{target:?}: {error}"
        );
    }
    let fifo = rustix::fs::Mode::from_raw_mode(0o644);
    rustix::fs::mknodat(rustix::fs::CWD, &blob, rustix::fs::FileType::Fifo, fifo, 0)
        .expect("the name is free");
    let error = fetcher.fetch(&layer, 0).await.map(drop).expect_err("a pipe would make us wait");
    assert!(error.to_string().ends_with("it is not a regular file"), "{error}");
}

#[tokio::test]
async fn a_saved_image_that_cannot_be_used_says_why() {
    let config = other().blob(other().config().digest());
    let saved = |layers: &Value| {
        let manifest =
            json!([{ "Config": "config.json", "RepoTags": ["a:1"], "Layers": layers }]).to_string();
        Layer::new().file("config.json", 0o644, &config).file("manifest.json", 0o644, manifest.as_bytes())
    };
    for (archive, why) in [
        (Layer::new().file("repositories", 0o644, b"{}"), "manifest.json: it is missing"),
        (Layer::new().file("manifest.json", 0o644, b"{}"), "manifest.json, line 1: invalid type"),
        (Layer::new().file("manifest.json", 0o644, &[b' '; 5 << 20]), "has more than 4194304 bytes"),
        (
            Layer::new().file("manifest.json", 0o644, br#"[{"Config":"../config.json","Layers":[]}]"#),
            "config.json: it is missing",
        ),
        (saved(&json!([])), "config.json: it has 1 DiffIDs, and manifest.json has 0 layers"),
        (saved(&json!(["a/layer.tar"])), "a/layer.tar: manifest.json names it, but it is missing"),
        (saved(&json!(["/etc/passwd"])), "manifest.json names it, but it is missing"),
        (saved(&json!(["a"])).symlink("a", "b").hardlink("b", "a"), "more than 8 links lead from it"),
        (saved(&json!(["a"])).symlink("a", "../../etc/passwd"), "names it, but it is missing"),
    ] {
        let folder = tempfile::tempdir().expect("there is room");
        let path = folder.path().join("saved.tar");
        fs::write(&path, archive.tar()).expect("there is room");

        let error = async { DockerArchive::open(&path)?.resolve_tag(None).await }.await.expect_err(why);

        assert!(error.to_string().contains(why), "{why}: {error}");
    }
}

#[test]
fn a_compressed_archive_is_to_be_decompressed_first() {
    let folder = tempfile::tempdir().expect("there is room");
    let path = folder.path().join("app.tar.gz");
    fs::write(&path, Layer::new().file("oci-layout", 0o644, b"{}").blob()).expect("there is room");

    let errors = [OciArchive::open(&path).map(drop), DockerArchive::open(&path).map(drop)];

    for error in errors {
        let error = error.expect_err("it is compressed");
        let end = "app.tar.gz: it is compressed with gzip; decompress it first, for example with `gzip -d`";
        assert!(error.to_string().ends_with(end), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_documents_make_it_panic(
        first in proptest::collection::vec(any::<u8>(), 0..100),
        second in r#"\[?\{?"?(manifests|Config|imageLayoutVersion)?"?:?\[?"?[a-z0-9.:]{0,8}"?\]?\}?\]?"#,
    ) {
        let folder = tempfile::tempdir().expect("there is room");
        let path = folder.path().join("a.tar");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("there is room");
        for document in [&first[..], second.as_bytes()] {
            let tar = Layer::new()
                .file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)
                .file("index.json", 0o644, document)
                .file("manifest.json", 0o644, document);
            fs::write(&path, tar.tar()).expect("there is room");
            let _ = runtime.block_on(in_archive(&path));
            let _ = runtime.block_on(async { DockerArchive::open(&path)?.resolve_tag(None).await });
            fs::write(&path, document).expect("there is room");
            prop_assert!(document.is_empty() || OciArchive::open(&path).is_err());
        }
    }
}
