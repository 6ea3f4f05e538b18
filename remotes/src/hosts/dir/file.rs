//! What a `hosts.toml` says.

use std::path::Path;

use toml::de::DeTable;

use super::{
    address::{self, Address},
    entry::{Entry, Flaw},
    settings::Settings,
};
use crate::hosts::Endpoint;

/// What a `hosts.toml` says.
#[derive(Debug)]
pub(super) struct HostsFile {
    /// The hosts to try before the server, in the order of the file.
    mirrors: Vec<Host>,
    /// The server. It is left out if only mirrors are to be used.
    server: Option<Server>,
    /// What is not understood, and ignored.
    pub(super) warnings: Vec<Flaw>,
}

#[derive(Debug)]
struct Host {
    address: Address,
    settings: Settings,
}

#[derive(Debug)]
enum Server {
    /// The one that the registry has by default.
    Default(Settings),
    Other(Host),
}

/// Reads the bytes of a `hosts.toml`. Paths in it start from `folder`; nothing is opened there.
pub(super) fn parse(bytes: &[u8], folder: &Path) -> Result<HostsFile, Flaw> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Flaw::at(bytes, error.valid_up_to(), "this is not UTF-8"))?;
    let document = DeTable::parse(text).map_err(|error| Flaw::of_syntax(text, &error))?;

    let (mut hosts, mut server, mut mirrors_only) = (None, None, None);
    let mut settings = Settings::default();
    let mut warnings = Vec::new();
    for entry in Entry::all(text, document.get_ref()) {
        match entry.key().to_ascii_lowercase().as_str() {
            "host" => hosts = Some(entry),
            "server" => server = Some(entry),
            "mirrors_only" => mirrors_only = entry.bool()?.then_some(entry),
            _ if settings.set(entry, folder)? => {}
            _ => warnings.push(unknown(entry)),
        }
    }

    let mut mirrors = Vec::new();
    if let Some(hosts) = hosts {
        for entry in hosts.table()? {
            mirrors.push(mirror(entry, folder, &mut warnings)?);
        }
    }
    let server = match server.map(|entry| entry.str().map(|address| (entry, address))).transpose()? {
        // As for containerd, an empty address is as good as none.
        None | Some((_, "")) => Server::Default(settings),
        Some((entry, address)) => Server::Other(host(entry, address, settings)?),
    };
    if let Some(entry) = mirrors_only
        && mirrors.is_empty()
    {
        return Err(entry.flaw("`mirrors_only` leaves no server: there is no `[host.\"…\"]`"));
    }
    let server = mirrors_only.is_none().then_some(server);
    Ok(HostsFile { mirrors, server, warnings })
}

/// Takes any bytes for a file, and asks it: whatever the bytes are, nothing panics, and a good file names a server.
#[cfg(fuzzing)]
pub(crate) fn exercise(bytes: &[u8]) {
    if let Ok(file) = parse(bytes, Path::new("/certs.d/a.example")) {
        let default = crate::hosts::default_endpoint("a.example", false).expect("it is a host");
        assert!(!file.endpoints("a.example", default).is_empty());
    }
}

impl HostsFile {
    /// The servers for `host`. `default` is its own server if the file names no other.
    pub(super) fn endpoints(self, host: &str, default: Endpoint) -> Vec<Endpoint> {
        let mirrors = self.mirrors.into_iter().map(|mirror| mirror.endpoint(host, &default));
        let mut endpoints: Vec<_> = mirrors.collect();
        match self.server {
            Some(Server::Default(settings)) => endpoints.push(settings.apply(default)),
            Some(Server::Other(server)) => endpoints.push(server.endpoint(host, &default)),
            None => {}
        }
        endpoints
    }
}

impl Host {
    fn endpoint(self, host: &str, default: &Endpoint) -> Endpoint {
        let Address { url, socket } = self.address;
        let mut endpoint = Endpoint::new(url);
        if endpoint.url.origin() == default.url.origin() && socket.is_none() {
            // The registry itself, so what is known of it beyond the file holds.
            endpoint.headers = default.headers.clone();
            endpoint.connection = default.connection.clone();
        }
        // Who is not the registry itself has to be told for whom it stands.
        endpoint.namespace = (endpoint.name() != default.name()).then(|| host.to_owned());
        Settings { unix_socket: socket, ..self.settings }.apply(endpoint)
    }
}

fn mirror(table: Entry<'_>, folder: &Path, warnings: &mut Vec<Flaw>) -> Result<Host, Flaw> {
    let mut settings = Settings::default();
    for entry in table.table()? {
        if entry.key().eq_ignore_ascii_case("mirrors_only") {
            // In TOML, whatever follows a table's header is the table's. To ignore this would let the server be asked.
            return Err(entry.flaw("`mirrors_only` is not about one host: it stands above the first `[…]`"));
        }
        if !settings.set(entry, folder)? {
            warnings.push(unknown(entry));
        }
    }
    host(table, table.key(), settings)
}

fn host(entry: Entry<'_>, address: &str, settings: Settings) -> Result<Host, Flaw> {
    let address = address::parse(address, settings.override_path).map_err(|reason| entry.flaw(reason))?;
    if address.socket.is_some() && settings.proxy.is_some() {
        return Err(entry.flaw("a host behind a socket cannot have a `proxy`"));
    }
    Ok(Host { address, settings })
}

fn unknown(entry: Entry<'_>) -> Flaw {
    entry.flaw(format!("the key {:?} is not known here, and ignored", entry.key()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        hosts::{Capabilities, default_endpoint},
        transport::Connection,
    };

    const PULL: Capabilities = Capabilities { pull: true, ..Capabilities::NONE };

    fn file(text: &str) -> Result<HostsFile, Flaw> {
        parse(text.as_bytes(), Path::new("/certs.d/some"))
    }

    fn endpoints(host: &str, text: &str) -> Vec<Endpoint> {
        let default = default_endpoint(host, false).expect(host);
        file(text).expect(text).endpoints(host, default)
    }

    #[test]
    fn mirrors_come_in_the_order_of_the_file_and_the_server_last() {
        for (host, text, urls) in [
            ("docker.io", "", &["https://registry-1.docker.io/v2/"][..]),
            ("docker.io", "# nothing", &["https://registry-1.docker.io/v2/"]),
            ("docker.io", "server = ''", &["https://registry-1.docker.io/v2/"]),
            ("localhost:5000", "", &["http://localhost:5000/v2/"]),
            ("a.example", "SERVER = 'https://b.example'", &["https://b.example/v2/"]),
            (
                "docker.io",
                "server = 'https://docker.io'\n[host.'https://registry-1.docker.io']",
                &["https://registry-1.docker.io/v2/", "https://registry-1.docker.io/v2/"],
            ),
            (
                "a.example",
                "[host.z]\n[host.b.header]\nx = ''\n[host.a]\n[host.c]\n[host.b]\n",
                &[
                    "https://z/v2/",
                    "https://b/v2/",
                    "https://a/v2/",
                    "https://c/v2/",
                    "https://a.example/v2/",
                ],
            ),
            (
                "a.example",
                "host = { z = {}, b = {} }\nmirrors_only = true",
                &["https://z/v2/", "https://b/v2/"],
            ),
            ("a.example", "server = 'b'\nmirrors_only = true\n[host.z]", &["https://z/v2/"]),
            ("a.example", "mirrors_only = false\n[host.z]", &["https://z/v2/", "https://a.example/v2/"]),
        ] {
            let endpoints = endpoints(host, text);
            let found: Vec<_> = endpoints.iter().map(|endpoint| endpoint.url.as_str()).collect();
            assert_eq!(found, urls, "{host}: {text}");
        }
    }

    #[test]
    fn only_who_stands_for_another_is_told_for_whom() {
        for (host, server, namespace) in [
            ("a.example", "https://a.example", None),
            ("a.example", "https://a.example:443/prefix", None),
            ("a.example:5000", "http://a.example:5000", None),
            ("docker.io", "https://docker.io", None),
            ("docker.io", "https://registry-1.docker.io", None),
            ("docker.io", "https://mirror.example", Some("docker.io")),
            ("a.example", "https://a.example:5000", Some("a.example")),
            ("a.example:5000", "https://a.example", Some("a.example:5000")),
            ("a.example", "https://registry-1.docker.io", Some("a.example")),
            ("a.example", "unix:///run/registry.sock", Some("a.example")),
        ] {
            for text in [format!("server = '{server}'"), format!("[host.'{server}']")] {
                let found = endpoints(host, &text).remove(0).namespace;
                assert_eq!(found.as_deref(), namespace, "{host}: {text}");
            }
        }
    }

    #[test]
    fn a_socket_is_reached_by_http() {
        let endpoint = endpoints("docker.io", "[host.'unix:///run/a.sock']").remove(0);

        assert_eq!(endpoint.url.as_str(), "http://localhost/v2/");
        assert_eq!(endpoint.connection.unix_socket, Some("/run/a.sock".into()));
    }

    #[test]
    fn the_registry_itself_keeps_what_is_known_of_it() {
        let mut default = default_endpoint("a.example", false).expect("a host");
        default.headers.insert("x-a", "1".parse().expect("a value"));
        default.connection = Connection { skip_verify: true, ..Connection::default() }.into();
        for (text, skip_verify, headers) in [
            ("", true, 1),
            ("ca = 'ca.pem'", true, 1),
            ("skip_verify = false\nheader = { X-A = '2', x-b = '3' }", false, 2),
            ("server = 'https://a.example/prefix'", true, 1),
            ("server = 'https://b.example'", false, 0),
            ("[host.'https://b.example']", false, 0),
        ] {
            let endpoint = file(text).expect(text).endpoints("a.example", default.clone()).remove(0);
            assert_eq!(
                (endpoint.connection.skip_verify, endpoint.headers.len()),
                (skip_verify, headers),
                "{text}"
            );
        }
    }

    /// What containerd's documentation shows, all in one file.
    #[test]
    fn a_file_for_containerd_means_the_same_here() {
        let text = r#"
            server = "https://registry-1.docker.io"
            [header]
              x-custom-1 = ["custom header part a", "part b"]
            [host."https://mirror.registry"]
              capabilities = ["pull"]
              ca = "/etc/certs/mirror.pem"
              skip_verify = false
              [host."https://mirror.registry".header]
                x-custom-2 = ["value1", "value2"]
            [host."https://mirror-bak.registry/us"]
              capabilities = ["pull"]
              skip_verify = true
            [host."http://mirror.registry"]
              capabilities = ["pull"]
            [host."https://test-1.registry"]
              capabilities = ["pull", "resolve", "push"]
              ca = ["/etc/certs/test-1-ca.pem", "/etc/certs/special.pem"]
              client = [["/etc/certs/client.cert", "/etc/certs/client.key"]]
            [host."https://test-2.registry"]
              client = "/etc/certs/client.pem"
              dial_timeout = "1s"
            [host."https://non-compliant-mirror.registry/v2/upstream"]
              capabilities = ["pull"]
              override_path = true
        "#;

        let endpoints = endpoints("docker.io", text);

        let found: Vec<_> = endpoints.iter().map(|it| (it.url.as_str(), it.capabilities)).collect();
        assert_eq!(
            found,
            [
                ("https://mirror.registry/v2/", PULL),
                ("https://mirror-bak.registry/us/v2/", PULL),
                ("http://mirror.registry/v2/", PULL),
                ("https://test-1.registry/v2/", Capabilities::ALL),
                ("https://test-2.registry/v2/", Capabilities::ALL),
                ("https://non-compliant-mirror.registry/v2/upstream/", PULL),
                ("https://registry-1.docker.io/v2/", Capabilities::ALL),
            ]
        );
        let headers: Vec<_> = endpoints.iter().map(|it| it.headers.len()).collect();
        assert_eq!(headers, [2, 0, 0, 0, 0, 0, 2]);
        let roots: Vec<_> = endpoints.iter().map(|it| it.connection.roots.len()).collect();
        assert_eq!(roots, [1, 0, 0, 2, 0, 0, 0]);
    }

    #[test]
    fn what_is_not_known_is_ignored_and_said() {
        let text = "server = 'a'\nplugins = {}\n[host.b]\nserver = 'c'\n\n[host.b.tls]\nmin = 1";

        let found: Vec<_> =
            file(text).expect("usable").warnings.into_iter().map(|it| (it.line, it.reason)).collect();

        let ignored = |key| format!("the key {key:?} is not known here, and ignored");
        assert_eq!(
            found,
            [(Some(2), ignored("plugins")), (Some(4), ignored("server")), (Some(6), ignored("tls"))]
        );
    }

    #[test]
    fn what_cannot_be_used_says_where_and_why() {
        for (line, text, why) in [
            (2, "\nserver = ", "value"),
            (2, "server = 'a'\nserver = 'b'", "duplicate key"),
            (1, "server = 1", "a value of `server` is of type integer, but should be a string"),
            (1, "server = 1\nmirrors_only = true\n[host.a]", "should be a string"),
            (1, "server = 'ftp://a.example'", "starts with `https://`"),
            (1, "host = 'a'", "a value of `host` is of type string, but should be a table"),
            (1, "[[host]]", "should be a table"),
            (2, "[host]\na = 'b'", "a value of `a` is of type string, but should be a table"),
            (2, "\n[host.'https://a:b']", "invalid port number"),
            (2, "\nmirrors_only = true", "there is no `[host.\"…\"]`"),
            (1, "mirrors_only = 'yes'", "of type string, but should be true or false"),
            (2, "[host.a]\nmirrors_only = true", "stands above the first `[…]`"),
            (1, "[host.'unix:///a']\nproxy = 'http://b'", "cannot have a `proxy`"),
        ] {
            let flaw = file(text).expect_err(text);
            assert_eq!(flaw.line, Some(line), "{text}: {}", flaw.reason);
            assert!(flaw.reason.contains(why), "{text}: {}", flaw.reason);
        }

        let flaw = parse(b"server = 'a'\n# \xff", Path::new("/")).expect_err("not UTF-8");
        assert_eq!(flaw, Flaw { line: Some(2), reason: "this is not UTF-8".into() });
    }

    #[test]
    fn errors_hold_no_secrets() {
        for text in [
            "header = { authorization = \"Bearer hunter2\\n\" }",
            "header = { authorization = [\"Bearer hunter2\\n\"] }",
            "header = { authorization = { bearer = 'hunter2' } }",
            "header = { 'authorization: Bearer hunter2' = '' }",
            "header = 'authorization: Bearer hunter2'",
            "header = { authorization = 'Bearer hunter2",
            "header = { authorization = hunter2 }",
            "header = { authorization = 1979-05-27hunter2 }",
            "header = { authorization = 'hunter2' 'hunter2' }",
            "header.authorization = \"hunter2\\q\"",
            "proxy = 'http://user:hunter2@'",
            "proxy = 'http://user:hunter2@proxy:port'",
            "proxy = 'http://user:hunter2@proxy/path'",
            "proxy = 'user:hunter2@proxy'",
            "proxy = ['http://user:hunter2@proxy']",
            "proxy = http://user:hunter2@proxy",
            "server = 'https://user:hunter2@server'",
            "[host.'https://user:hunter2@mirror:port']",
        ] {
            let flaw = file(text).expect_err(text);
            assert!(!format!("{flaw:?}").contains("hunter2"), "{text}: {flaw:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, Path::new("/"));
        }

        #[test]
        fn no_text_like_such_a_file_makes_it_panic(
            lines in prop::collection::vec(
                (
                    "(server|host|capabilities|ca|client|skip_verify|header|override_path|dial_timeout|proxy|mirrors_only|x) ?= ?|\\[(host|header)\\.?|",
                    "'(https?://|unix:/{0,3})?[a-z.:/@?#\\[\\]0-9]{0,12}'|\\[*'[a-z]{0,3}'(, *'[0-9.]{0,3}[msh]')?\\]*|\\{[a-z]=''\\}|true|\\PC{0,8}",
                    "\\]?",
                ),
                0..6,
            ),
        ) {
            let lines = lines.into_iter().map(|(key, value, end)| format!("{key}{value}{end}"));
            let text = lines.collect::<Vec<_>>().join("\n");
            match file(&text) {
                Ok(file) => {
                    let default = default_endpoint("a.example", false).expect("a host");
                    let endpoints = file.endpoints("a.example", default);
                    prop_assert!(!endpoints.is_empty());
                    prop_assert!(endpoints.iter().all(|endpoint| endpoint.url.path().ends_with('/')));
                }
                Err(flaw) => {
                    let lines = 1 + text.matches('\n').count();
                    prop_assert!(flaw.line.is_none_or(|line| (1..=lines).contains(&line)), "{flaw:?}");
                }
            }
        }
    }
}
