//! Where a registry is if nobody says otherwise.

use std::net::IpAddr;

use url::Url;

use super::Endpoint;
use crate::{Error, Result};

/// The name of Docker Hub in references.
pub(super) const DOCKER: &str = "docker.io";
/// Where Docker Hub's registry really is.
pub(super) const DOCKER_SERVER: &str = "registry-1.docker.io";

/// The server of a registry's own name, in plain HTTP if it is this machine or `plain` says so.
pub(crate) fn default_endpoint(host: &str, plain: bool) -> Result<Endpoint> {
    let server = if host == DOCKER { DOCKER_SERVER } else { host };
    let scheme = if plain || is_loopback(host) { "http" } else { "https" };
    let url = Url::parse(&format!("{scheme}://{server}/v2/"))
        .map_err(|error| Error::Config { reason: format!("{host:?} is not a host: {error}") })?;
    Ok(Endpoint::new(url))
}

/// Whether the name can only mean this machine.
pub(crate) fn is_loopback(name: &str) -> bool {
    let bare = match name.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => name.split(':').next().unwrap_or_default(),
    };
    match bare.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => bare == "localhost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_one_server() {
        for (host, plain, url, name) in [
            ("docker.io", false, "https://registry-1.docker.io/v2/", "docker.io"),
            ("ghcr.io", false, "https://ghcr.io/v2/", "ghcr.io"),
            ("localhost:5000", false, "http://localhost:5000/v2/", "localhost:5000"),
            ("127.0.0.2", false, "http://127.0.0.2/v2/", "127.0.0.2"),
            ("[::1]:5000", false, "http://[::1]:5000/v2/", "[::1]:5000"),
            ("10.0.0.1:5000", false, "https://10.0.0.1:5000/v2/", "10.0.0.1:5000"),
            ("localhost.evil.example", false, "https://localhost.evil.example/v2/", "localhost.evil.example"),
            ("registry.lan", true, "http://registry.lan/v2/", "registry.lan"),
        ] {
            let endpoint = default_endpoint(host, plain).expect(host);
            assert_eq!((endpoint.url.as_str(), endpoint.name().as_str()), (url, name));
        }
    }
}
