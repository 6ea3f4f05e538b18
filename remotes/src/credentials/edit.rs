//! Changing one entry of a file, and nothing else of it.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};

use super::{
    Credential,
    json::{Malformed, Node, Object},
    key::{self, Key},
};

/// What is to be written for a host.
#[derive(Debug)]
pub(super) enum Entry<'a> {
    /// The credential itself.
    Known(&'a Credential),
    /// That a helper knows it.
    InHelper,
}

/// Writes the entry of a host in place of all that the file has for the whole of it. Answers with the new file.
pub(super) fn set(file: &[u8], host: &str, entry: &Entry<'_>) -> Result<Vec<u8>, Malformed> {
    let mut parsed = Object::parse(file)?;
    let mut auths = auths(file, &parsed)?;
    let is_host = |key: &str| Key::parse(key).is_host(host);
    let new = Node::New(entry.fields());
    match auths.0.iter().rposition(|(key, _)| is_host(key)) {
        // Its key is how the tool that wrote it calls the host, and finds it again.
        Some(last) => {
            auths.0[last].1 = new;
            let mut at = 0..;
            auths.0.retain(|(key, _)| at.next() == Some(last) || !is_host(key));
        }
        None => auths.0.push((key::server(host).to_owned(), new)),
    }
    put_auths(&mut parsed, auths);
    Ok(write(&parsed))
}

/// Removes all that the file has for the whole of a host. Answers with the new file; `None` if there is nothing to do.
pub(super) fn remove(file: &[u8], host: &str) -> Result<Option<Vec<u8>>, Malformed> {
    let mut parsed = Object::parse(file)?;
    let mut auths = auths(file, &parsed)?;
    let before = auths.0.len();
    auths.0.retain(|(key, _)| !Key::parse(key).is_host(host));
    if auths.0.len() == before {
        return Ok(None);
    }
    put_auths(&mut parsed, auths);
    Ok(Some(write(&parsed)))
}

impl Entry<'_> {
    fn fields(&self) -> Object<'static> {
        let (name, value) = match self {
            Self::InHelper => return Object::default(),
            Self::Known(Credential::Password { user, password }) => {
                ("auth", BASE64_STANDARD.encode(format!("{user}:{}", password.reveal())))
            }
            Self::Known(Credential::IdentityToken(token)) => ("identitytoken", token.reveal().to_owned()),
            Self::Known(Credential::AccessToken(token)) => ("registrytoken", token.reveal().to_owned()),
        };
        Object(vec![(name.to_owned(), Node::Text(value))])
    }
}

fn auths<'a>(file: &[u8], parsed: &Object<'a>) -> Result<Object<'a>, Malformed> {
    match parsed.field("auths") {
        None => Ok(Object::default()),
        Some(node) => node.object().ok_or_else(|| node.malformed(file, "`auths` is not an object")),
    }
}

fn put_auths<'a>(file: &mut Object<'a>, auths: Object<'a>) {
    match file.0.iter_mut().rfind(|(key, _)| key.eq_ignore_ascii_case("auths")) {
        Some((_, node)) => *node = Node::New(auths),
        None => file.0.push(("auths".to_owned(), Node::New(auths))),
    }
}

/// Indented with tabs, as Docker and podman do.
fn write(file: &Object<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(b"\t"));
    file.serialize(&mut serializer).expect("texts and what was JSON before can be written to memory");
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{
            Secret,
            auth_file::{AuthFile, Source},
        },
        *,
    };

    fn login(user: &str, password: &str) -> Credential {
        Credential::Password { user: user.into(), password: Secret::new(password) }
    }

    fn with(file: &str, host: &str, entry: &Entry<'_>) -> String {
        String::from_utf8(set(file.as_bytes(), host, entry).expect(file)).expect("it was UTF-8")
    }

    #[test]
    fn a_new_file_is_as_docker_would_write_it() {
        let file = with("", "docker.io", &Entry::Known(&login("me", "pw")));

        assert_eq!(
            file,
            "{\n\t\"auths\": {\n\t\t\"https://index.docker.io/v1/\": {\n\t\t\t\"auth\": \"bWU6cHc=\"\n\t\t}\n\t}\n}\n"
        );
    }

    #[test]
    fn all_else_stays_as_it_was() {
        let file = "{\n\t\"zeta\": {\"b\": 1,  \"a\": 1e400},\n\t\"auths\": {\n\t\t\"b.example\": {\"x\": [1,2]},\n\t\t\
                    \"a.example\": {}\n\t},\n\t\"alpha\": null\n}\n";

        let stored = with(file, "c.example", &Entry::InHelper);
        let removed = remove(stored.as_bytes(), "c.example").expect("it parses").expect("it was there");

        assert_eq!(
            stored,
            file.replace("\"a.example\": {}", "\"a.example\": {},\n\t\t\"c.example\": {}"),
            "nothing but the entry is added"
        );
        assert_eq!(String::from_utf8_lossy(&removed), file);
    }

    #[test]
    fn a_host_has_one_entry_afterwards() {
        let file = r#"{"auths": {"docker.io/library": {"username": "team"}, "index.docker.io": {"username": "old"},
            "docker.io": {"username": "older"}, "quay.io": {}}}"#;

        let file = with(file, "docker.io", &Entry::Known(&login("me", "pw")));

        let keys: serde_json::Value = serde_json::from_str(&file).expect("it is JSON");
        let keys: Vec<_> = keys["auths"].as_object().expect("an object").keys().cloned().collect();
        assert_eq!(keys, ["docker.io", "docker.io/library", "quay.io"]);
    }

    #[test]
    fn what_is_removed_is_the_host_and_not_a_part_of_it() {
        let file =
            br#"{"auths": {"quay.io": {"username": "me"}, "https://quay.io/v2/": {}, "quay.io/team": {}}}"#;

        let removed = remove(file, "quay.io").expect("it parses").expect("it was there");

        assert_eq!(
            String::from_utf8_lossy(&removed),
            "{\n\t\"auths\": {\n\t\t\"quay.io/team\": {}\n\t}\n}\n"
        );
        assert_eq!(remove(&removed, "quay.io"), Ok(None));
        assert_eq!(remove(b"", "quay.io"), Ok(None));
    }

    #[test]
    fn a_malformed_file_is_not_overwritten() {
        for file in ["{", "[]", r#"{"auths": []}"#] {
            assert!(set(file.as_bytes(), "r.example", &Entry::InHelper).is_err(), "{file}");
            assert!(remove(file.as_bytes(), "r.example").is_err(), "{file}");
        }
    }

    proptest! {
        #[test]
        fn what_is_stored_is_found(user in "[^:]+", password in ".*", token in ".+", host in "[a-z]{1,9}(:[0-9]{2,4})?") {
            prop_assume!(!password.ends_with('\0'));
            for credential in [
                login(&user, &password),
                Credential::IdentityToken(Secret::new(&token)),
                Credential::AccessToken(Secret::new(&token)),
            ] {
                let file = set(b"", &host, &Entry::Known(&credential)).expect("an empty file parses");
                let file = AuthFile::parse(&file).expect("what was written parses");
                prop_assert_eq!(file.source(&host, None), Ok(Source::Known(credential)));
            }
        }
    }
}
