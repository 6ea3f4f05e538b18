use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use url::Url;

use crate::{Error, Result};

/// A registry's name, and where it is.
#[derive(Clone, Debug)]
pub(super) struct Host {
    /// As the reference writes it.
    pub(super) name: String,
    /// `https://registry-1.docker.io/v2/`.
    base: Url,
}

impl Host {
    pub(super) fn new(name: &str, plain: &BTreeSet<String>) -> Result<Self> {
        let server = if name == "docker.io" { "registry-1.docker.io" } else { name };
        let scheme = if plain.contains(name) || is_loopback(name) { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{server}/v2/"))
            .map_err(|error| Error::Config { reason: format!("{name:?} is not a host: {error}") })?;
        Ok(Self { name: name.to_owned(), base })
    }

    /// The URL of `kind` (`manifests` or `blobs`) called `object` in a repository.
    pub(super) fn url(&self, repository: &str, kind: &str, object: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("/v2/{repository}/{kind}/{object}"));
        url
    }

    pub(super) fn is_plain(&self) -> bool {
        self.base.scheme() == "http"
    }
}

/// Whether the name can only mean this machine.
fn is_loopback(name: &str) -> bool {
    let bare = match name.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => name.split(':').next().unwrap_or_default(),
    };
    match bare.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => address.is_loopback(),
        Ok(IpAddr::V6(address)) => {
            address.is_loopback()
                || address.to_ipv4_mapped().is_some_and(|address: Ipv4Addr| address.is_loopback())
        }
        Err(_) => bare == "localhost",
    }
}

/// The URL without what may be secret: user, password, query and fragment.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // These fail for URLs that cannot have a user, and so have none.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}

#[cfg(test)]
mod tests {
    use windlass_reference::Reference;

    use super::*;

    #[test]
    fn a_reference_has_one_url() {
        for (text, url) in [
            ("redis", "https://registry-1.docker.io/v2/library/redis/manifests/latest"),
            ("ghcr.io/a/b:1", "https://ghcr.io/v2/a/b/manifests/1"),
            ("localhost:5000/a", "http://localhost:5000/v2/a/manifests/latest"),
            ("127.0.0.2/a", "http://127.0.0.2/v2/a/manifests/latest"),
            ("[::1]:5000/a", "http://[::1]:5000/v2/a/manifests/latest"),
            ("10.0.0.1:5000/a", "https://10.0.0.1:5000/v2/a/manifests/latest"),
            ("localhost.evil.example/a", "https://localhost.evil.example/v2/a/manifests/latest"),
            ("registry.lan/a", "http://registry.lan/v2/a/manifests/latest"),
        ] {
            let reference: Reference = text.parse().expect(text);
            let plain = BTreeSet::from(["registry.lan".to_owned()]);
            let host = Host::new(reference.host(), &plain).expect(text);
            assert_eq!(host.url(reference.repository(), "manifests", reference.object()).as_str(), url);
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let url = Url::parse("https://user:secret@cdn.example/blob?signature=secret#secret").expect("a URL");
        assert_eq!(shown(&url), "https://cdn.example/blob");
    }
}
