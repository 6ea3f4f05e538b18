//! What a `hosts.toml` says about one host, beyond where it is.

use std::{path::Path, path::PathBuf, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::{
    duration,
    entry::{Entry, Flaw},
};
use crate::{
    hosts::{Capabilities, Endpoint},
    transport::{ClientCertificate, ProxyUrl},
};

/// More headers are a mistake, and no server would take them.
const MAX_HEADERS: usize = 100;

/// The settings of a host. What is not said is `None`, empty or false.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    pub(super) capabilities: Option<Capabilities>,
    pub(super) roots: Vec<PathBuf>,
    pub(super) certificate: Option<ClientCertificate>,
    pub(super) skip_verify: Option<bool>,
    pub(super) headers: HeaderMap,
    pub(super) override_path: bool,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) proxy: Option<ProxyUrl>,
    pub(super) unix_socket: Option<PathBuf>,
}

impl Settings {
    /// Takes an entry in; false if its key is none of a host's. Paths in it start from `folder`.
    pub(super) fn set(&mut self, entry: Entry<'_>, folder: &Path) -> Result<bool, Flaw> {
        match entry.key().to_ascii_lowercase().as_str() {
            "ca" => self.roots = paths(entry, folder)?,
            "capabilities" => self.capabilities = capabilities(entry)?,
            "client" => self.certificate = certificate(entry, folder)?,
            "dial_timeout" => self.connect_timeout = timeout(entry)?,
            "header" => self.headers = headers(entry)?,
            "override_path" => self.override_path = entry.bool()?,
            "proxy" => self.proxy = Some(proxy(entry)?),
            "skip_verify" => self.skip_verify = Some(entry.bool()?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The endpoint with these settings. It keeps those of its own that are not said here.
    pub(super) fn apply(self, endpoint: Endpoint) -> Endpoint {
        let mut connection = (*endpoint.connection).clone();
        connection.roots.extend(self.roots);
        connection.certificate = self.certificate.or(connection.certificate);
        connection.skip_verify = self.skip_verify.unwrap_or(connection.skip_verify);
        connection.connect_timeout = self.connect_timeout.or(connection.connect_timeout);
        connection.proxy = self.proxy.or(connection.proxy);
        connection.unix_socket = self.unix_socket.or(connection.unix_socket);
        let mut headers = endpoint.headers;
        headers.extend(self.headers);
        Endpoint {
            capabilities: self.capabilities.unwrap_or(endpoint.capabilities),
            headers,
            connection: Arc::new(connection),
            ..endpoint
        }
    }
}

/// An empty list says as much as none, as for containerd.
fn capabilities(entry: Entry<'_>) -> Result<Option<Capabilities>, Flaw> {
    let list = entry.list()?;
    let mut capabilities = Capabilities::NONE;
    for element in &list {
        match element.str()?.to_ascii_lowercase().as_str() {
            "pull" => capabilities.pull = true,
            "push" => capabilities.push = true,
            "resolve" => capabilities.resolve = true,
            // Newer than the others, and of no use here: nobody asks a host for referrers.
            "referrers" => {}
            other => {
                let reason =
                    format!("{other:?} is no capability: there are pull, resolve, push and referrers");
                return Err(element.flaw(reason));
            }
        }
    }
    Ok((!list.is_empty()).then_some(capabilities))
}

fn paths(entry: Entry<'_>, folder: &Path) -> Result<Vec<PathBuf>, Flaw> {
    entry.one_or_more().into_iter().map(|element| path(element, folder)).collect()
}

fn path(entry: Entry<'_>, folder: &Path) -> Result<PathBuf, Flaw> {
    match entry.str()? {
        "" => Err(entry.flaw(format!("a path of `{}` is empty", entry.key()))),
        path => Ok(folder.join(path)),
    }
}

fn certificate(entry: Entry<'_>, folder: &Path) -> Result<Option<ClientCertificate>, Flaw> {
    match entry.one_or_more().as_slice() {
        [] => Ok(None),
        [pair] if pair.is_list() => match pair.list()?.as_slice() {
            [certificate, key] => {
                let certificate = path(*certificate, folder)?;
                let key = if key.str()?.is_empty() { None } else { Some(path(*key, folder)?) };
                Ok(Some(ClientCertificate { certificate, key }))
            }
            _ => Err(pair.flaw("a pair of `client` is a certificate and its key")),
        },
        [file] => Ok(Some(ClientCertificate { certificate: path(*file, folder)?, key: None })),
        _ => Err(entry.flaw(
            "`client` has several certificates, and only one can be shown; \
             a certificate and its key are written as [[\"file.cert\", \"file.key\"]]",
        )),
    }
}

/// For Go, a limit of zero is none.
fn timeout(entry: Entry<'_>) -> Result<Option<Duration>, Flaw> {
    let text = entry.str()?;
    if text.is_empty() {
        return Ok(None);
    }
    let timeout = duration::parse(text)
        .ok_or_else(|| entry.flaw(format!("{text:?} is not a duration such as `3s`, `500ms` or `1m30s`")))?;
    Ok((!timeout.is_zero()).then_some(timeout))
}

fn headers(entry: Entry<'_>) -> Result<HeaderMap, Flaw> {
    let mut headers = HeaderMap::new();
    for header in entry.table()? {
        // A broken name is not shown: it may be a whole `Name: value`.
        let name = HeaderName::from_bytes(header.key().as_bytes())
            .map_err(|_| header.flaw("a key of `header` is not the name of a header"))?;
        for element in header.one_or_more() {
            let mut value = HeaderValue::from_bytes(element.str()?.as_bytes())
                .map_err(|_| element.flaw(format!("the value of the header `{name}` cannot be sent")))?;
            value.set_sensitive(true);
            if headers.len() == MAX_HEADERS {
                return Err(element.flaw(format!("`header` has more than {MAX_HEADERS} headers")));
            }
            headers.append(name.clone(), value);
        }
    }
    Ok(headers)
}

fn proxy(entry: Entry<'_>) -> Result<ProxyUrl, Flaw> {
    let url = Url::parse(entry.str()?)
        .map_err(|error| entry.flaw(format!("`proxy` is not a URL such as `http://proxy:3128`: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(entry.flaw("the URL of `proxy` does not start with `http://` or `https://`"));
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(entry.flaw("the URL of `proxy` does not end after its host and port"));
    }
    Ok(ProxyUrl(url))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hosts::{default_endpoint, dir::file},
        transport::Connection,
    };

    const PULL: Capabilities = Capabilities { pull: true, ..Capabilities::NONE };
    const PULL_AND_RESOLVE: Capabilities = Capabilities { push: false, ..Capabilities::ALL };

    /// A mirror with these keys.
    fn mirror(keys: &str) -> Endpoint {
        server(&format!("[host.'https://mirror.example']\n{keys}"))
    }

    /// The first server of a file.
    fn server(text: &str) -> Endpoint {
        let default = default_endpoint("docker.io", false).expect("a host");
        let file = file::parse(text.as_bytes(), Path::new("/certs.d/some")).expect(text);
        file.endpoints("docker.io", default).remove(0)
    }

    #[test]
    fn capabilities_are_what_is_listed_or_all() {
        for (keys, capabilities) in [
            ("", Capabilities::ALL),
            ("capabilities = []", Capabilities::ALL),
            ("capabilities = ['pull']", PULL),
            ("capabilities = ['Pull', 'RESOLVE', 'pull']", PULL_AND_RESOLVE),
            ("capabilities = ['pull', 'resolve', 'push', 'referrers']", Capabilities::ALL),
            ("capabilities = ['referrers']", Capabilities::NONE),
        ] {
            assert_eq!(mirror(keys).capabilities, capabilities, "{keys}");
            assert_eq!(server(keys).capabilities, capabilities, "server: {keys}");
        }
    }

    #[test]
    fn files_are_relative_to_the_folder() {
        let pair = |certificate: &str, key: Option<&str>| {
            Some(ClientCertificate { certificate: certificate.into(), key: key.map(PathBuf::from) })
        };
        for (keys, roots, certificate) in [
            ("ca = 'ca.pem'", &["/certs.d/some/ca.pem"][..], None),
            ("ca = ['/a.pem', 'b/c.pem']", &["/a.pem", "/certs.d/some/b/c.pem"], None),
            ("ca = []\nclient = []", &[], None),
            ("client = '/me.pem'", &[], pair("/me.pem", None)),
            ("client = ['me.pem']", &[], pair("/certs.d/some/me.pem", None)),
            ("client = [['me.cert', '/me.key']]", &[], pair("/certs.d/some/me.cert", Some("/me.key"))),
            ("client = [['/me.pem', '']]", &[], pair("/me.pem", None)),
        ] {
            let connection = mirror(keys).connection;
            let roots: Vec<_> = roots.iter().map(PathBuf::from).collect();
            assert_eq!((&connection.roots, &connection.certificate), (&roots, &certificate), "{keys}");
        }
    }

    #[test]
    fn a_host_says_how_to_connect() {
        let endpoint =
            mirror("skip_verify = true\ndial_timeout = '3s'\nproxy = 'http://u:hunter2@proxy:3128'");
        let connection = &endpoint.connection;
        assert!(connection.skip_verify);
        assert_eq!(connection.connect_timeout, Some(Duration::from_secs(3)));
        let proxy = connection.proxy.as_ref().map(|proxy| proxy.0.as_str());
        assert_eq!(proxy, Some("http://u:hunter2@proxy:3128/"));
        assert!(!format!("{endpoint:?}").contains("hunter2"), "{endpoint:?}");

        let connection = mirror("dial_timeout = '0s'").connection;
        assert_eq!(*connection, Connection::default(), "no limit of the file's");
    }

    #[test]
    fn headers_are_sent_and_not_shown() {
        let endpoint = mirror("header = { X-A = 'hunter2', x-b = ['1', 'hunter2'], x-c = 'ü', x-d = [] }");

        let header =
            |name| endpoint.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
        assert_eq!(header("x-a"), [b"hunter2"]);
        assert_eq!(header("x-b"), [&b"1"[..], b"hunter2"]);
        assert_eq!(header("x-c"), ["ü".as_bytes()]);
        assert_eq!(endpoint.headers.len(), 4);
        assert!(!format!("{endpoint:?}").contains("hunter2"), "{endpoint:?}");
    }

    #[test]
    fn what_cannot_be_used_says_where_and_why() {
        for (line, text, why) in [
            (1, "capabilities = 'pull'", "of type string, but should be a list"),
            (3, "capabilities = [\n'pull',\n'pul']", "\"pul\" is no capability"),
            (1, "capabilities = [1]", "of type integer, but should be a string"),
            (1, "ca = 1", "should be a string"),
            (1, "ca = ['a', ['b']]", "should be a string"),
            (1, "ca = ''", "a path of `ca` is empty"),
            (1, "client = ['a', 'b']", "only one can be shown"),
            (1, "client = [['a', 'b'], ['c', 'd']]", "only one can be shown"),
            (1, "client = [['a']]", "a pair of `client`"),
            (1, "client = [['a', 'b', 'c']]", "a pair of `client`"),
            (1, "client = [['', 'b']]", "a path of `client` is empty"),
            (1, "client = {}", "should be a string"),
            (1, "skip_verify = 'true'", "should be true or false"),
            (1, "override_path = 1", "should be true or false"),
            (1, "dial_timeout = 3", "should be a string"),
            (1, "dial_timeout = '3'", "\"3\" is not a duration"),
            (1, "dial_timeout = '-3s'", "is not a duration"),
            (1, "header = 'a: b'", "should be a table"),
            (2, "[header]\nx-a = 1", "a value of `x-a` is of type integer"),
            (2, "[header]\n'x a' = ''", "not the name of a header"),
            (1, "proxy = ''", "`proxy` is not a URL"),
            (1, "proxy = 'proxy.example:3128'", "`http://`"),
            (1, "proxy = 'socks5://proxy.example'", "`http://`"),
            (1, "proxy = 'http://proxy.example/path'", "after its host and port"),
        ] {
            let flaw = file::parse(text.as_bytes(), Path::new("/")).expect_err(text);
            assert_eq!(flaw.line, Some(line), "{text}: {}", flaw.reason);
            assert!(flaw.reason.contains(why), "{text}: {}", flaw.reason);
        }
    }
}
