//! Docker's way to say how to connect to a registry: certificates in a folder of its name.

use std::{fs, io, path::Path, path::PathBuf};

use super::{file_error, settings::Settings};
use crate::{Error, Result, transport::ClientCertificate};

/// Reads a folder: `*.crt` are roots to trust, `*.cert` and `*.key` are what the client shows.
pub(super) fn read(folder: &Path) -> Result<Settings> {
    let files = list(folder).map_err(|error| file_error(folder, &error))?;
    let with = |extension: &str| -> Vec<PathBuf> {
        files.iter().filter(|file| file.extension().is_some_and(|it| it == extension)).cloned().collect()
    };
    let unusable =
        |path: &Path, reason: String| Err(Error::File { path: path.to_owned(), line: None, reason });

    let certificates = with("cert");
    for certificate in &certificates {
        let key = certificate.with_extension("key");
        if !files.contains(&key) {
            return unusable(certificate, format!("its key {} is missing", key.display()));
        }
    }
    for key in with("key") {
        let certificate = key.with_extension("cert");
        if !certificates.contains(&certificate) {
            return unusable(&key, format!("its certificate {} is missing", certificate.display()));
        }
    }
    if let [first, second, ..] = certificates.as_slice() {
        return unusable(
            second,
            format!("only one certificate can be shown, and {} is one", first.display()),
        );
    }
    let certificate = certificates
        .into_iter()
        .next()
        .map(|certificate| ClientCertificate { key: Some(certificate.with_extension("key")), certificate });
    Ok(Settings { roots: with("crt"), certificate, ..Settings::default() })
}

/// The files of a folder, by name: what is used first must not depend on the file system.
fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files =
        fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
    files.retain(|file| !file.is_dir());
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for file in files {
            fs::write(folder.path().join(file), "").expect("a file");
        }
        folder
    }

    #[test]
    fn certificates_are_known_by_their_endings() {
        let folder = folder(&["b.crt", "a.crt", "me.cert", "me.key", "README"]);
        fs::create_dir(folder.path().join("old.crt")).expect("a folder");

        let settings = read(folder.path()).expect("whole");

        assert_eq!(settings.roots, [folder.path().join("a.crt"), folder.path().join("b.crt")]);
        let certificate = folder.path().join("me.cert");
        let key = Some(folder.path().join("me.key"));
        assert_eq!(settings.certificate, Some(ClientCertificate { certificate, key }));
    }

    #[test]
    fn half_a_pair_and_two_pairs_are_errors() {
        for (files, path, why) in [
            (&["me.cert"][..], "me.cert", "me.key is missing"),
            (&["me.cert", "you.key"], "me.cert", "me.key is missing"),
            (&["ca.crt", "me.key"], "me.key", "me.cert is missing"),
            (&["a.cert", "a.key", "b.cert", "b.key"], "b.cert", "only one certificate can be shown"),
        ] {
            let folder = folder(files);
            let text = read(folder.path()).expect_err("broken").to_string();
            let start = format!("cannot use {}: ", folder.path().join(path).display());
            assert!(text.starts_with(&start) && text.contains(why), "{files:?}: {text}");
        }
    }
}
