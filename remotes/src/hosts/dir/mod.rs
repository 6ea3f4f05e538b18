//! Hosts from a folder of files in containerd's format.

mod address;
mod certificates;
mod duration;
mod entry;
mod file;
mod settings;

use std::{
    fs, io,
    io::Read as _,
    path::{Component, Path, PathBuf},
};

use async_trait::async_trait;
use tokio::task::spawn_blocking;

#[cfg(fuzzing)]
pub(crate) use file::exercise;

use super::{Endpoint, Hosts};
use crate::{Error, Result};

/// A larger `hosts.toml` is a mistake.
const MAX_SIZE: u64 = 1 << 20;

/// Hosts from a folder such as containerd's `/etc/containerd/certs.d`, which holds a folder for each registry.
///
/// ```text
/// certs.d/docker.io/hosts.toml                 for docker.io
/// certs.d/registry.example_5000_/hosts.toml    for registry.example:5000; a plain colon will do, too
/// certs.d/other.example/ca.crt                 for other.example, in Docker's layout: *.crt, *.cert and *.key
/// certs.d/_default/hosts.toml                  for registries without a folder
/// ```
///
/// The files are read anew each time, so a change counts from the next call on. A registry without a folder has just its
/// own server.
///
/// # `hosts.toml`
///
/// ```toml
/// server = "https://registry.example"    # the registry's own server if not set
/// mirrors_only = false                   # true: never ask the server. Only windlass knows this key.
///
/// [host."https://mirror.example/prefix"] # tried before the server, in the order of the file
/// capabilities = ["pull", "resolve"]     # everything if not set
/// ca = "ca.pem"                          # or a list; paths start from the file's folder
/// client = [["me.cert", "me.key"]]       # or one file that holds both
/// skip_verify = false
/// override_path = false                  # true: the API is at the path as written, without a `v2` at its end
/// dial_timeout = "3s"
/// proxy = "http://user:password@proxy.example:3128"
/// [host."https://mirror.example/prefix".header]
/// x-team = "blue"                        # or a list
///
/// [host."unix:///run/registry.sock"]     # HTTP over a socket. Only windlass knows this scheme.
/// ```
///
/// A host's keys, written above the first table, are the server's. What this does otherwise than containerd:
///
/// - A file that cannot be used is an error, and never ignored. Keys that are not known are logged and ignored.
/// - A host is reached as its scheme says: there is no attempt at TLS for `http://`, and none at HTTP after TLS failed.
///   Without a scheme that is TLS, and HTTP for this machine.
/// - `capabilities` above the first table count even where `server` is not set.
/// - `docker.io`, as a host, means Docker Hub's server.
#[derive(Clone, Debug)]
pub struct HostsDir {
    roots: Vec<PathBuf>,
}

impl HostsDir {
    /// Hosts from this folder. If it does not exist, it has nothing to say.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { roots: vec![root.into()] }
    }

    /// Looks here for a registry of which the folders before know nothing. A `_default` there is something.
    pub fn or(mut self, root: impl Into<PathBuf>) -> Self {
        self.roots.push(root.into());
        self
    }
}

#[async_trait]
impl Hosts for HostsDir {
    async fn endpoints(&self, host: &str, default: Endpoint) -> Result<Vec<Endpoint>> {
        let (roots, host) = (self.roots.clone(), host.to_owned());
        spawn_blocking(move || endpoints(&roots, &host, default))
            .await
            .expect("disk work neither panics nor is aborted")
    }
}

fn endpoints(roots: &[PathBuf], host: &str, default: Endpoint) -> Result<Vec<Endpoint>> {
    let Some(folder) = find(roots, host)? else {
        return Ok(vec![default]);
    };
    let path = folder.join("hosts.toml");
    let endpoints = match read(&path)? {
        // As for containerd, a file without a single byte does not count.
        None => vec![certificates::read(&folder)?.apply(default)],
        Some(bytes) if bytes.is_empty() => vec![certificates::read(&folder)?.apply(default)],
        Some(bytes) => {
            let file = file::parse(&bytes, &folder).map_err(|flaw| Error::File {
                path: path.clone(),
                line: flaw.line,
                reason: flaw.reason,
            })?;
            for warning in &file.warnings {
                tracing::warn!(file = %path.display(), line = warning.line, "{}", warning.reason);
            }
            file.endpoints(host, default)
        }
    };
    for endpoint in endpoints.iter().filter(|endpoint| has_idle_tls_settings(endpoint)) {
        let url = crate::url::shown(&endpoint.url);
        tracing::warn!(folder = %folder.display(), url, "certificates and skip_verify mean nothing in plain HTTP");
    }
    Ok(endpoints)
}

/// The folder for a host.
fn find(roots: &[PathBuf], host: &str) -> Result<Option<PathBuf>> {
    let mut components = Path::new(host).components();
    let (first, second) = (components.next(), components.next());
    if first != Some(Component::Normal(host.as_ref())) || second.is_some() {
        return Err(Error::Config { reason: format!("{host:?} is not a host") });
    }
    // Colons do not go well with every file system and tool.
    let without_colon = host
        .rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
        .map(|(name, port)| format!("{name}_{port}_"));
    for root in roots {
        for name in without_colon.as_deref().into_iter().chain([host, "_default"]) {
            let folder = root.join(name);
            if exists(&folder)? {
                return Ok(Some(folder));
            }
        }
    }
    Ok(None)
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    if !exists(path)? {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_SIZE + 1).read_to_end(&mut bytes))
        .map_err(|error| file_error(path, &error))?;
    if bytes.len() as u64 > MAX_SIZE {
        let reason = format!("it has more than {MAX_SIZE} bytes");
        return Err(Error::File { path: path.to_owned(), line: None, reason });
    }
    Ok(Some(bytes))
}

/// Whether there is something of that name, and be it a link to nowhere: whoever made that meant something by it.
fn exists(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(file_error(path, &error)),
    }
}

fn file_error(path: &Path, error: &io::Error) -> Error {
    Error::File { path: path.to_owned(), line: None, reason: error.to_string() }
}

fn has_idle_tls_settings(endpoint: &Endpoint) -> bool {
    let connection = &endpoint.connection;
    let has_some = !connection.roots.is_empty() || connection.certificate.is_some() || connection.skip_verify;
    has_some && endpoint.url.scheme() == "http"
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::hosts::default_endpoint;

    fn put(root: &tempfile::TempDir, path: &str, content: &str) -> PathBuf {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(&path, content).expect("a file");
        path
    }

    fn root() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    async fn ask(hosts: &HostsDir, host: &str) -> Result<Vec<Endpoint>> {
        hosts.endpoints(host, default_endpoint(host, false).expect("a host")).await
    }

    /// The first URL for a host.
    async fn url(hosts: &HostsDir, host: &str) -> String {
        ask(hosts, host).await.expect(host).remove(0).url.into()
    }

    #[tokio::test]
    async fn the_closest_folder_counts() {
        let root = root();
        for (folder, server) in [
            ("docker.io", "hub"),
            ("a.example_5000_", "low-line"),
            ("a.example:5000", "colon"),
            ("b.example:5000", "colon"),
            ("[::1]_5000_", "six"),
            ("_default", "any"),
        ] {
            put(&root, &format!("{folder}/hosts.toml"), &format!("server = '{server}'"));
        }
        let hosts = HostsDir::new(root.path());
        for (host, server) in [
            ("docker.io", "hub"),
            ("a.example:5000", "low-line"),
            ("b.example:5000", "colon"),
            ("[::1]:5000", "six"),
            ("a.example", "any"),
        ] {
            assert_eq!(url(&hosts, host).await, format!("https://{server}/v2/"), "{host}");
        }
    }

    #[tokio::test]
    async fn the_first_root_that_knows_something_counts() {
        let (first, second) = (root(), root());
        put(&first, "a.example/hosts.toml", "server = 'first'");
        put(&second, "a.example/hosts.toml", "server = 'second'");
        put(&second, "_default/hosts.toml", "server = 'any'");
        let hosts = HostsDir::new(first.path()).or("/does/not/exist").or(second.path());

        assert_eq!(url(&hosts, "a.example").await, "https://first/v2/");
        assert_eq!(url(&hosts, "b.example").await, "https://any/v2/");
    }

    #[tokio::test]
    async fn without_a_folder_a_registry_is_its_own_server() {
        let hosts = HostsDir::new("/does/not/exist");

        let endpoints = ask(&hosts, "docker.io").await.expect("nothing to fail");

        let [endpoint] = endpoints.as_slice() else { panic!("{endpoints:?}") };
        assert_eq!(endpoint.url.as_str(), "https://registry-1.docker.io/v2/");
    }

    #[tokio::test]
    async fn a_change_counts_from_the_next_call_on() {
        let root = root();
        let hosts = HostsDir::new(root.path());
        assert_eq!(url(&hosts, "a.example").await, "https://a.example/v2/");

        put(&root, "a.example/hosts.toml", "server = 'b.example'");

        assert_eq!(url(&hosts, "a.example").await, "https://b.example/v2/");
    }

    #[tokio::test]
    async fn certificates_count_if_there_is_no_file_or_an_empty_one() {
        let root = root();
        let ca = put(&root, "a.example/ca.crt", "");
        let hosts = HostsDir::new(root.path());
        for content in [None, Some(""), Some("# not empty")] {
            if let Some(content) = content {
                put(&root, "a.example/hosts.toml", content);
            }

            let endpoint = ask(&hosts, "a.example").await.expect("usable").remove(0);

            let roots = if content == Some("# not empty") { vec![] } else { vec![ca.clone()] };
            assert_eq!(endpoint.connection.roots, roots, "{content:?}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_never_ignored() {
        let root = root();
        put(&root, "_default/hosts.toml", "server = 'any.example'");
        put(&root, "syntax.example/hosts.toml", "server = 'a'\nserver");
        put(&root, "large.example/hosts.toml", &"#\n".repeat(1 + (MAX_SIZE as usize) / 2));
        put(&root, "largest.example/hosts.toml", &"#\n".repeat((MAX_SIZE as usize) / 2));
        put(&root, "folder.example/hosts.toml/file", "");
        put(&root, "file.example", "");
        put(&root, "loop.example/file", "");
        symlink("hosts.toml", root.path().join("loop.example/hosts.toml")).expect("a link");
        put(&root, "gone.example/file", "");
        symlink("gone", root.path().join("gone.example/hosts.toml")).expect("a link");
        symlink("gone", root.path().join("nowhere.example")).expect("a link");
        let hosts = HostsDir::new(root.path());
        for (host, wrong, why) in [
            ("syntax.example", "syntax.example/hosts.toml, line 2", "="),
            ("large.example", "large.example/hosts.toml", "it has more than 1048576 bytes"),
            ("folder.example", "folder.example/hosts.toml", "Is a directory"),
            ("file.example", "file.example/hosts.toml", "Not a directory"),
            ("loop.example", "loop.example/hosts.toml", "symbolic link"),
            ("gone.example", "gone.example/hosts.toml", "No such file"),
            ("nowhere.example", "nowhere.example", "No such file"),
        ] {
            let text = ask(&hosts, host).await.expect_err(host).to_string();
            let start = format!("cannot use {}: ", root.path().join(wrong).display());
            assert!(text.starts_with(&start) && text.contains(why), "{host}: {text}");
        }
        assert!(ask(&hosts, "largest.example").await.is_ok());

        let hosts = HostsDir::new(root.path().join("file.example"));
        let err = ask(&hosts, "a.example").await.expect_err("the root is a file");
        assert!(matches!(err, Error::File { .. }), "{err:?}");
    }

    #[tokio::test]
    async fn a_host_does_not_lead_out_of_the_folder() {
        let hosts = HostsDir::new("/does/not/exist");
        let default = default_endpoint("a.example", false).expect("a host");
        for host in ["", ".", "..", "../a", "a/b", "/a", "a/"] {
            let err = hosts.endpoints(host, default.clone()).await.expect_err(host);
            assert!(matches!(err, Error::Config { .. }), "{host}: {err:?}");
        }
    }
}
