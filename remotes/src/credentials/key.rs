//! What a credential is kept under: which of a file's keys are about which registry.

/// Docker Hub, as references write it.
const HUB: &str = "docker.io";
/// Docker Hub, as Docker's files and helpers write it.
const HUB_SERVER: &str = "https://index.docker.io/v1/";

/// A key of `auths` or `credHelpers`, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    host: String,
    /// The repositories that it is about; empty for all of the host.
    namespace: String,
}

impl Key {
    /// Understands a key as Docker and podman do. Whatever it is, it is about some host.
    ///
    /// Docker's keys are hosts or URLs, whose paths mean nothing: `https://index.docker.io/v1/`. Podman's are hosts
    /// that a namespace or a repository may follow: `quay.io/team`.
    pub(super) fn parse(text: &str) -> Self {
        let url = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let (authority, path) = {
            let rest = url.unwrap_or(text);
            rest.split_once('/').unwrap_or((rest, ""))
        };
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let namespace = match path.trim_end_matches('/') {
            // Old versions of Docker wrote the API's path without a scheme, too.
            _ if url.is_some() => "",
            "v1" | "v2" => "",
            namespace => namespace,
        };
        Self { host: canonical(host), namespace: namespace.to_owned() }
    }

    /// Whether it is about all of a host.
    pub(super) fn is_host(&self, host: &str) -> bool {
        self.namespace.is_empty() && self.host == canonical(host)
    }

    /// How closely it describes what is asked for: 0 is the whole host, more is closer. `None` if not at all.
    pub(super) fn closeness(&self, host: &str, repository: Option<&str>) -> Option<usize> {
        if self.host != canonical(host) {
            return None;
        }
        if self.namespace.is_empty() {
            return Some(0);
        }
        let rest = repository?.strip_prefix(&self.namespace)?;
        (rest.is_empty() || rest.starts_with('/')).then_some(self.namespace.len())
    }
}

/// What Docker calls a host when it writes a key, or asks a helper.
pub(super) fn server(host: &str) -> &str {
    if canonical(host) == HUB { HUB_SERVER } else { host }
}

/// One spelling for each host.
fn canonical(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    match host.strip_suffix(":443").unwrap_or(&host) {
        "index.docker.io" | "registry-1.docker.io" => HUB.to_owned(),
        host => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_about_a_host_or_a_part_of_it() {
        for (key, host, repository, closeness) in [
            ("quay.io", "quay.io", Some("team/app"), Some(0)),
            ("quay.io", "quay.io", None, Some(0)),
            ("Quay.IO", "quay.io", None, Some(0)),
            ("quay.io/", "quay.io", None, Some(0)),
            ("https://quay.io", "quay.io", None, Some(0)),
            ("http://quay.io/some/path", "quay.io", None, Some(0)),
            ("https://user@quay.io/", "quay.io", None, Some(0)),
            ("quay.io:443", "quay.io", None, Some(0)),
            ("quay.io", "quay.io:5000", None, None),
            ("quay.io:5000", "quay.io:5000", None, Some(0)),
            ("quay.io:5000", "quay.io", None, None),
            ("[::1]:5000", "[::1]:5000", None, Some(0)),
            ("quay.io/team", "quay.io", Some("team/app"), Some(4)),
            ("quay.io/team/app", "quay.io", Some("team/app"), Some(8)),
            ("quay.io/team/", "quay.io", Some("team/app"), Some(4)),
            ("quay.io/tea", "quay.io", Some("team/app"), None),
            ("quay.io/team/app", "quay.io", Some("team"), None),
            ("quay.io/team", "quay.io", None, None),
            ("quay.io.evil.example", "quay.io", None, None),
            ("https://quay.io@evil.example", "quay.io", None, None),
            ("evil.example/quay.io", "quay.io", None, None),
            ("https://index.docker.io/v1/", "docker.io", Some("library/redis"), Some(0)),
            ("index.docker.io/v1/", "docker.io", None, Some(0)),
            ("index.docker.io", "docker.io", None, Some(0)),
            ("registry-1.docker.io", "docker.io", None, Some(0)),
            ("docker.io", "registry-1.docker.io", None, Some(0)),
            ("docker.io/library", "docker.io", Some("library/redis"), Some(7)),
            ("hub.docker.io", "docker.io", None, None),
            ("", "docker.io", None, None),
        ] {
            assert_eq!(
                Key::parse(key).closeness(host, repository),
                closeness,
                "{key} for {host} {repository:?}"
            );
        }
    }

    #[test]
    fn docker_hub_has_a_name_of_its_own() {
        for (host, name) in [
            ("docker.io", "https://index.docker.io/v1/"),
            ("registry-1.docker.io", "https://index.docker.io/v1/"),
            ("quay.io", "quay.io"),
            ("localhost:5000", "localhost:5000"),
        ] {
            assert_eq!(server(host), name);
        }
    }
}
