//! What Docker's `config.json` and podman's `auth.json` say about who to be.

use std::cmp::Reverse;

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use super::{
    Credential, Secret,
    json::{Malformed, Node, Object},
    key::{self, Key},
};

/// Base64 as those tools read it: padded or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// A file's contents, as far as they are about credentials. Without a `Debug` form: it would show them.
pub(super) struct AuthFile<'a> {
    bytes: &'a [u8],
    /// What is malformed in here hurts nobody who does not ask for it.
    auths: Vec<(Key, Node<'a>)>,
    helpers: Vec<HostHelper>,
    /// `credsStore`: the helper for all hosts that have none of their own.
    store: Option<String>,
}

/// An entry of `credHelpers`.
struct HostHelper {
    key: Key,
    /// The key as it is written.
    server: String,
    /// Empty if this host's credentials are in the file, in spite of `credsStore`.
    name: String,
}

/// Where the credential for a host is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Here.
    Known(Credential),
    /// A helper knows, if anybody does.
    Helper(HelperName),
    /// The file has nothing to say.
    Nowhere,
}

/// Which helper to ask, and for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HelperName {
    /// What follows `docker-credential-`. As the file has it: it may be anything.
    pub(super) name: String,
    /// What the helper calls the host.
    pub(super) server: String,
}

impl<'a> AuthFile<'a> {
    /// Understands a file.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let file = Object::parse(bytes)?;
        let object = |name: &str| match file.field(name) {
            None => Ok(Object::default()),
            Some(node) => {
                node.object().ok_or_else(|| node.malformed(bytes, format!("`{name}` is not an object")))
            }
        };
        let auths = object("auths")?.0.into_iter().map(|(key, node)| (Key::parse(&key), node));
        let helpers = object("credHelpers")?.0.into_iter().map(|(server, node)| {
            let malformed = || node.malformed(bytes, "a value of `credHelpers` is not a text");
            Ok(HostHelper {
                key: Key::parse(&server),
                server,
                name: nullable_text(&node).ok_or_else(malformed)?,
            })
        });
        let store = match file.field("credsStore") {
            None => None,
            Some(node) => {
                let name = node.text().ok_or_else(|| node.malformed(bytes, "`credsStore` is not a text"))?;
                Some(name).filter(|name| !name.is_empty())
            }
        };
        Ok(Self { bytes, auths: auths.collect(), helpers: helpers.collect::<Result<_, _>>()?, store })
    }

    /// Where the credential for a repository of a host is, or for the host itself.
    ///
    /// A host's own helper comes first, then what the file has for a part of the host that the repository is in, then
    /// the helper for all hosts, then what the file has for the host.
    pub(super) fn source(&self, host: &str, repository: Option<&str>) -> Result<Source, Malformed> {
        if let Some(helper) = self.host_helper(host)
            && !helper.name.is_empty()
        {
            return Ok(Source::Helper(HelperName {
                name: helper.name.clone(),
                server: helper.server.clone(),
            }));
        }
        let helper = self.helper(host);
        let mut found: Vec<(usize, &Node<'_>)> = self
            .auths
            .iter()
            .rev()
            .filter_map(|(key, node)| Some((key.closeness(host, repository)?, node)))
            .filter(|(closeness, _)| *closeness > 0 || helper.is_none())
            .collect();
        found.sort_by_key(|(closeness, _)| Reverse(*closeness));
        for (_, node) in found {
            if let Some(credential) = credential(node).map_err(|why| node.malformed(self.bytes, why))? {
                return Ok(Source::Known(credential));
            }
        }
        Ok(helper.map_or(Source::Nowhere, Source::Helper))
    }

    /// The helper that keeps the host's credentials. `None` if the file does.
    pub(super) fn helper(&self, host: &str) -> Option<HelperName> {
        let (name, server) = match (self.host_helper(host), &self.store) {
            (Some(helper), _) => (&helper.name, helper.server.as_str()),
            (None, Some(store)) => (store, key::server(host)),
            (None, None) => return None,
        };
        (!name.is_empty()).then(|| HelperName { name: name.clone(), server: server.to_owned() })
    }

    fn host_helper(&self, host: &str) -> Option<&HostHelper> {
        self.helpers.iter().rev().find(|helper| helper.key.is_host(host))
    }
}

/// What an entry of `auths` says; `None` if only that a helper knows. The error is what is wrong with it, and quotes none of it.
fn credential(node: &Node<'_>) -> Result<Option<Credential>, String> {
    let entry = node.object().ok_or("an entry of `auths` is not an object")?;
    let text = |name: &str| match entry.field(name) {
        None => Ok(None),
        Some(node) => match node.text() {
            Some(text) => Ok(Some(text).filter(|text| !text.is_empty())),
            None => Err(format!("`{name}` of an entry of `auths` is not a text")),
        },
    };
    if let Some(token) = text("registrytoken")? {
        return Ok(Some(Credential::AccessToken(Secret::new(token))));
    }
    if let Some(token) = text("identitytoken")? {
        return Ok(Some(Credential::IdentityToken(Secret::new(token))));
    }
    if let Some(auth) = text("auth")? {
        return decode(&auth).map(Some);
    }
    let (user, password) = (text("username")?, text("password")?);
    Ok((user.is_some() || password.is_some()).then(|| Credential::Password {
        user: user.unwrap_or_default(),
        password: Secret::new(password.unwrap_or_default()),
    }))
}

/// Reads the base64 of `user:password`.
fn decode(auth: &str) -> Result<Credential, String> {
    let broken = auth.replace(['\r', '\n'], "");
    let bytes = BASE64.decode(broken).map_err(|_| "`auth` of an entry of `auths` is not base64")?;
    let text =
        String::from_utf8(bytes).map_err(|_| "`auth` of an entry of `auths` is not base64 of UTF-8")?;
    match text.split_once(':') {
        Some((user, password)) if !user.is_empty() => Ok(Credential::Password {
            user: user.to_owned(),
            password: Secret::new(password.trim_end_matches('\0')),
        }),
        _ => Err("`auth` of an entry of `auths` is not base64 of `user:password`".into()),
    }
}

/// A text; `null` is an empty one.
fn nullable_text(node: &Node<'_>) -> Option<String> {
    match node {
        Node::Old(raw) if raw.get() == "null" => Some(String::new()),
        node => node.text(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn password(user: &str, password: &str) -> Source {
        Source::Known(Credential::Password { user: user.into(), password: Secret::new(password) })
    }

    fn helper(name: &str, server: &str) -> Source {
        Source::Helper(HelperName { name: name.into(), server: server.into() })
    }

    fn source(file: &str, host: &str, repository: Option<&str>) -> Result<Source, Malformed> {
        AuthFile::parse(file.as_bytes())?.source(host, repository)
    }

    #[test]
    fn an_entry_says_who_to_be() {
        for (entry, want) in [
            (r#"{"auth": "bWU6cHc="}"#, password("me", "pw")),
            (r#"{"auth": "bWU6cHc"}"#, password("me", "pw")),
            (r#"{"auth": "bWU6\ncHc=\n"}"#, password("me", "pw")),
            (r#"{"auth": "bWU6cHcAAA=="}"#, password("me", "pw")),
            (r#"{"auth": "bWU6cDp3"}"#, password("me", "p:w")),
            (r#"{"auth": "bWU6"}"#, password("me", "")),
            (r#"{"auth": "bWU6cHc=", "email": "me@r.example", "x": {"y": [1]}}"#, password("me", "pw")),
            (r#"{"username": "me", "password": "pw"}"#, password("me", "pw")),
            (r#"{"auth": "", "username": "me", "password": "pw"}"#, password("me", "pw")),
            (r#"{"auth": "bWU6cHc=", "username": "you"}"#, password("me", "pw")),
            (
                r#"{"auth": "bWU6", "identitytoken": "t"}"#,
                Source::Known(Credential::IdentityToken(Secret::new("t"))),
            ),
            (r#"{"registrytoken": "t"}"#, Source::Known(Credential::AccessToken(Secret::new("t")))),
            (r#"{"auth": null, "identitytoken": null}"#, Source::Nowhere),
            ("{}", Source::Nowhere),
            ("null", Source::Nowhere),
        ] {
            let file = format!(r#"{{"auths": {{"r.example": {entry}}}}}"#);
            assert_eq!(source(&file, "r.example", None), Ok(want), "{entry}");
        }
    }

    #[test]
    fn the_closest_entry_is_the_answer() {
        let file = r#"{"auths": {
            "quay.io": {"username": "host"},
            "quay.io/team/app": {"username": "app"},
            "quay.io/team": {"username": "team"},
            "quay.io/empty": {},
            "https://index.docker.io/v1/": {"username": "hub"},
            "twice.example": {"username": "first"},
            "https://twice.example/v2/": {"username": "second"}
        }}"#;
        for (host, repository, user) in [
            ("quay.io", Some("team/app"), "app"),
            ("quay.io", Some("team/app/part"), "app"),
            ("quay.io", Some("team/other"), "team"),
            ("quay.io", Some("teams/app"), "host"),
            ("quay.io", Some("empty/app"), "host"),
            ("quay.io", None, "host"),
            ("docker.io", Some("library/redis"), "hub"),
            ("twice.example", None, "second"),
        ] {
            assert_eq!(source(file, host, repository), Ok(password(user, "")), "{host} {repository:?}");
        }
        assert_eq!(source(file, "other.example", None), Ok(Source::Nowhere));
    }

    #[test]
    fn helpers_come_before_what_the_file_knows_of_a_host() {
        let file = r#"{
            "credsStore": "all",
            "credHelpers": {"own.example": "own", "docker.io": "hub", "plain.example": "", "null.example": null},
            "auths": {
                "own.example": {"username": "unused"},
                "own.example/team": {"username": "unused"},
                "other.example": {},
                "stale.example": {"username": "unused"},
                "stale.example/team": {"username": "team"},
                "plain.example": {"username": "me"}
            }
        }"#;
        for (host, repository, want) in [
            ("own.example", Some("team/app"), helper("own", "own.example")),
            ("docker.io", None, helper("hub", "docker.io")),
            ("other.example", None, helper("all", "other.example")),
            ("unlisted.example", None, helper("all", "unlisted.example")),
            ("stale.example", None, helper("all", "stale.example")),
            ("stale.example", Some("team/app"), password("team", "")),
            ("plain.example", None, password("me", "")),
            ("null.example", None, Source::Nowhere),
        ] {
            assert_eq!(source(file, host, repository), Ok(want), "{host} {repository:?}");
        }
        let hub = source(r#"{"credsStore": "all"}"#, "docker.io", Some("library/redis"));
        assert_eq!(hub, Ok(helper("all", "https://index.docker.io/v1/")));
    }

    #[test]
    fn a_file_may_say_nothing() {
        for file in ["", " \n", "null", "{}", r#"{"auths": null, "credsStore": null, "credHelpers": null}"#] {
            assert_eq!(source(file, "r.example", None), Ok(Source::Nowhere), "{file:?}");
        }
    }

    #[test]
    fn names_of_fields_are_read_in_any_case_and_the_last_one_counts() {
        let file = r#"{"auths": {}, "Auths": {"r.example": {"Username": "me"}}, "CREDSSTORE": ""}"#;
        assert_eq!(source(file, "r.example", None), Ok(password("me", "")));
    }

    #[test]
    fn what_does_not_parse_says_where_and_why_but_no_secret() {
        for (file, line, reason) in [
            ("hunter2", 1, "it is not JSON at column 1"),
            ("{\n\"auths\": {\"hunter2\" \"hunter2\"}}", 2, "it is not JSON at column 21"),
            ("{\"auths\": {\"hunter2\": \"hunter2", 1, "it ends before the JSON is complete"),
            ("[\"hunter2\"]", 1, "it is not a JSON object"),
            ("\"hunter2\"", 1, "it is not a JSON object"),
            ("{\n\"auths\":\n \"hunter2\"}", 3, "`auths` is not an object"),
            ("{\n\"credsStore\": {\"hunter2\": 2}}", 2, "`credsStore` is not a text"),
            ("{\"credHelpers\": {\n\"hunter2\": 2}}", 2, "a value of `credHelpers` is not a text"),
            ("{\"auths\": {\n\"r.example\": \"hunter2\"}}", 2, "an entry of `auths` is not an object"),
            (
                "{\"auths\": {\n\"r.example\": {\"auth\": [\"hunter2\"]}}}",
                2,
                "`auth` of an entry of `auths` is not a text",
            ),
            (
                "{\"auths\": {\n\"r.example\": {\"auth\": \"hunter2!\"}}}",
                2,
                "`auth` of an entry of `auths` is not base64",
            ),
            (
                "{\"auths\": {\n\"r.example\": {\"auth\": \"aHVudGVyMg==\"}}}",
                2,
                "`auth` of an entry of `auths` is not base64 of `user:password`",
            ),
            (
                "{\"auths\": {\n\"r.example\": {\"auth\": \"//9odW50ZXIy\"}}}",
                2,
                "`auth` of an entry of `auths` is not base64 of UTF-8",
            ),
        ] {
            let why = source(file, "r.example", None).expect_err(file);
            assert_eq!(why, Malformed { line: Some(line), reason: reason.into() }, "{file}");
        }
    }

    #[test]
    fn a_malformed_entry_is_in_the_way_of_its_own_host_only() {
        let file = r#"{"auths": {"bad.example": {"auth": "!"}, "good.example": {"auth": "bWU6cHc="}}}"#;
        assert_eq!(source(file, "good.example", None), Ok(password("me", "pw")));
        assert!(source(file, "bad.example", None).is_err());
    }

    #[test]
    fn debug_output_shows_no_secret() {
        for entry in [
            r#"{"password": "hunter2"}"#,
            r#"{"identitytoken": "hunter2"}"#,
            r#"{"registrytoken": "hunter2"}"#,
            r#"{"auth": "bWU6aHVudGVyMg=="}"#,
        ] {
            let found = source(&format!(r#"{{"auths": {{"r.example": {entry}}}}}"#), "r.example", None);
            let shown = format!("{:?}", found.expect("it is well-formed"));
            assert!(shown.contains("Secret") && !shown.contains("hunter2"), "{shown}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_file_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            super::super::exercise(&bytes);
        }

        #[test]
        fn anything_like_a_file_is_a_file_or_an_error(
            text in r#"\{"(auths|credHelpers|credsStore)": ?(\{"[a-z./:]{0,9}": ?(\{"(auth|password)": ?("[A-Za-z0-9=]{0,8}"|null|3)\}|"[a-z/]{0,4}"|null|\[)?\}|"[a-z]{0,3}"|null)\}?"#,
        ) {
            super::super::exercise(text.as_bytes());
        }
    }
}
