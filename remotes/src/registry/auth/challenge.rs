//! The `WWW-Authenticate` header: which ways to say who one is a server takes.

/// One challenge: a scheme and its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// In lower case: `bearer`.
    pub(super) scheme: String,
    /// Names in lower case, values without their quotes.
    parameters: Vec<(String, String)>,
}

impl Challenge {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Reads a header that may hold several challenges. What cannot be understood ends the list.
pub(crate) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let Some((word, after)) = token(rest) else {
            return challenges;
        };
        let value_at = after.trim_start_matches([' ', '\t']);
        // A name with `=` is a parameter of the challenge before it; any other word begins a challenge.
        match (value_at.strip_prefix('='), challenges.last_mut()) {
            (Some(value_at), Some(challenge)) => {
                let Some((value, after)) = value(value_at.trim_start_matches([' ', '\t'])) else {
                    return challenges;
                };
                challenge.parameters.push((word.to_ascii_lowercase(), value));
                rest = after;
            }
            (Some(_), None) => return challenges,
            (None, _) => {
                challenges.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
                rest = after;
            }
        }
    }
}

fn token(text: &str) -> Option<(&str, &str)> {
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)))
        .unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// A quoted string, or the bytes up to the next comma or space: some registries do not quote what they should.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_challenge_of_docker_hub_is_read() {
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/redis:pull""#;
        let challenges = parse(header);
        assert_eq!(challenges.len(), 1);
        assert_eq!(challenges[0].scheme, "bearer");
        assert_eq!(challenges[0].get("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(challenges[0].get("scope"), Some("repository:library/redis:pull"));
    }

    #[test]
    fn several_challenges_and_escapes_are_told_apart() {
        let challenges = parse(r#"Negotiate, basic Realm="a, \"b\"" , BEARER realm = x,scope="pull,push""#);
        let schemes: Vec<_> = challenges.iter().map(|challenge| challenge.scheme.as_str()).collect();
        assert_eq!(schemes, ["negotiate", "basic", "bearer"]);
        assert_eq!(challenges[1].get("realm"), Some(r#"a, "b""#));
        assert_eq!((challenges[2].get("realm"), challenges[2].get("scope")), (Some("x"), Some("pull,push")));
    }

    proptest! {
        #[test]
        fn nothing_panics(header in "\\PC{0,80}") {
            parse(&header);
        }

        #[test]
        fn a_quoted_value_comes_back(value in "[ -~]{0,40}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let challenges = parse(&format!("Bearer realm=\"{quoted}\", error=none"));
            prop_assert_eq!(challenges[0].get("realm"), Some(value.as_str()));
            prop_assert_eq!(challenges[0].get("error"), Some("none"));
        }
    }
}
