//! Where a host of a `hosts.toml` is.

use std::path::PathBuf;

use url::Url;

use crate::hosts::defaults::{DOCKER, DOCKER_SERVER, is_loopback};

/// Where a host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// The base of its API, with a slash at the end.
    pub(super) url: Url,
    /// The Unix socket to reach it by, in plain HTTP. TCP if not set.
    pub(super) socket: Option<PathBuf>,
}

/// Reads `https://mirror.example/prefix`, `mirror.example:5000`, `unix:///run/registry.sock`.
///
/// The API is below `v2/`, which need not be written. `override_path` says that it is at the path as written.
///
/// # Errors
///
/// What is wrong with the address, without the address: it may hold a password.
pub(super) fn parse(text: &str, override_path: bool) -> Result<Address, String> {
    let (mut url, socket) = match text.strip_prefix("unix:") {
        Some(rest) => {
            let url = Url::parse("http://localhost").expect("a URL");
            (url, Some(socket(rest)?))
        }
        None => (web(text)?, None),
    };
    let path = match override_path {
        true => format!("{}/", url.path().trim_end_matches('/')),
        false => api_path(url.path()),
    };
    url.set_path(&path);
    Ok(Address { url, socket })
}

fn web(text: &str) -> Result<Url, String> {
    let with_scheme = match text.contains("://") {
        true => text.to_owned(),
        false => {
            let name = text.split('/').next().unwrap_or_default();
            if name.is_empty() || name.ends_with(':') {
                return Err(
                    "this is not the address of a host: it has no name, or no port after the colon".into()
                );
            }
            let scheme = if is_loopback(name) { "http" } else { "https" };
            format!("{scheme}://{text}")
        }
    };
    let mut url =
        Url::parse(&with_scheme).map_err(|error| format!("this is not the address of a host: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("the address of a host starts with `https://`, `http://` or `unix:///`".into());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the address of a host holds no user and no password: these are credentials".into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("the address of a host ends with its path: `?` and `#` have no meaning in it".into());
    }
    // Docker Hub's name is not that of a registry: who writes it means the server that stands for it.
    if url.host_str() == Some(DOCKER) && url.port().is_none() {
        url.set_host(Some(DOCKER_SERVER)).expect("a host's name");
    }
    Ok(url)
}

fn socket(rest: &str) -> Result<PathBuf, String> {
    match rest.strip_prefix("//") {
        Some(path) if path.starts_with('/') && !path.ends_with('/') && !path.contains(['?', '#', '\0']) => {
            Ok(path.into())
        }
        _ => Err("a socket is written as `unix:///`, and then its path from the root on".into()),
    }
}

/// The path with `v2` at its end, and slashes only where they part names.
fn api_path(path: &str) -> String {
    let mut names: Vec<_> = path.split('/').filter(|name| !name.is_empty()).collect();
    if names.last() != Some(&"v2") {
        names.push("v2");
    }
    format!("/{}/", names.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_of_a_host_is_below_v2() {
        for (text, url) in [
            ("https://mirror.example", "https://mirror.example/v2/"),
            ("https://mirror.example/", "https://mirror.example/v2/"),
            ("https://mirror.example/v2", "https://mirror.example/v2/"),
            ("https://mirror.example/v2/", "https://mirror.example/v2/"),
            ("https://mirror.example/prefix", "https://mirror.example/prefix/v2/"),
            ("https://mirror.example//prefix//", "https://mirror.example/prefix/v2/"),
            ("https://mirror.example/prefix/v2", "https://mirror.example/prefix/v2/"),
            ("https://mirror.example/v2/upstream", "https://mirror.example/v2/upstream/v2/"),
            ("https://mirror.example/notv2", "https://mirror.example/notv2/v2/"),
            ("https://mirror.example/a/../b", "https://mirror.example/b/v2/"),
            ("HTTPS://Mirror.Example:443", "https://mirror.example/v2/"),
            ("http://192.168.31.250:5000", "http://192.168.31.250:5000/v2/"),
            ("https://[fd00::1]:5000", "https://[fd00::1]:5000/v2/"),
            // Without a scheme.
            ("mirror.example", "https://mirror.example/v2/"),
            ("mirror.example:5000/prefix", "https://mirror.example:5000/prefix/v2/"),
            ("httpd.example", "https://httpd.example/v2/"),
            ("localhost:5000", "http://localhost:5000/v2/"),
            ("127.0.0.1", "http://127.0.0.1/v2/"),
            ("[::1]:5000/prefix", "http://[::1]:5000/prefix/v2/"),
            ("https://localhost:5000", "https://localhost:5000/v2/"),
            // Docker Hub.
            ("https://docker.io", "https://registry-1.docker.io/v2/"),
            ("docker.io", "https://registry-1.docker.io/v2/"),
            ("https://registry-1.docker.io", "https://registry-1.docker.io/v2/"),
        ] {
            let address = parse(text, false).expect(text);
            assert_eq!((address.url.as_str(), address.socket), (url, None), "{text}");
        }
    }

    #[test]
    fn an_overriding_path_is_the_api() {
        for (text, url) in [
            ("https://mirror.example", "https://mirror.example/"),
            ("https://mirror.example/v2/upstream", "https://mirror.example/v2/upstream/"),
            ("https://mirror.example/a//b/", "https://mirror.example/a//b/"),
            ("unix:///run/registry.sock", "http://localhost/"),
        ] {
            assert_eq!(parse(text, true).expect(text).url.as_str(), url, "{text}");
        }
    }

    #[test]
    fn a_socket_is_a_host() {
        let address = parse("unix:///run/registry.sock", false).expect("a socket");

        assert_eq!(address.url.as_str(), "http://localhost/v2/");
        assert_eq!(address.socket, Some("/run/registry.sock".into()));
    }

    #[test]
    fn what_is_no_address_says_why() {
        for (text, why) in [
            ("", "it has no name"),
            ("/prefix", "it has no name"),
            ("http:/mirror.example", "no port after the colon"),
            ("https://", "empty host"),
            ("https://mirror.example:port", "invalid port number"),
            ("mirror example", "invalid international domain name"),
            ("ftp://mirror.example", "starts with `https://`"),
            ("https://user:hunter2@mirror.example", "no user and no password"),
            ("user@mirror.example", "no user and no password"),
            ("https://mirror.example?ns=docker.io", "`?` and `#` have no meaning"),
            ("https://mirror.example#top", "`?` and `#` have no meaning"),
            ("unix:/run/registry.sock", "`unix:///`"),
            ("unix://run/registry.sock", "`unix:///`"),
            ("unix://@registry", "`unix:///`"),
            ("unix:///run/", "`unix:///`"),
            ("unix:///run/registry.sock?x", "`unix:///`"),
        ] {
            let reason = parse(text, false).expect_err(text);
            assert!(reason.contains(why), "{text}: {reason}");
            assert!(!reason.contains("hunter2"), "{reason}");
        }
    }
}
