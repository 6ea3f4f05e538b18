//! What a token is good for: `repository:library/redis:pull` (distribution spec, token scopes).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// Actions by resource. Equal scopes are equal texts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Scopes(BTreeMap<String, BTreeSet<String>>);

impl Scopes {
    /// To read from a repository.
    pub(crate) fn pull(repository: &str) -> Self {
        Self::of(&format!("repository:{repository}"), &["pull"])
    }

    /// To write to a repository, and to see what is there.
    pub(crate) fn push(repository: &str) -> Self {
        Self::of(&format!("repository:{repository}"), &["pull", "push"])
    }

    /// To list the repositories of a registry.
    pub(crate) fn catalog() -> Self {
        Self::of("registry:catalog", &["*"])
    }

    /// Reads a list as challenges hold it, with spaces between. What is no scope is left out.
    pub(crate) fn parse(text: &str) -> Self {
        let scopes = text.split(' ').filter_map(|scope| scope.rsplit_once(':'));
        scopes.fold(Self::default(), |all, (resource, actions)| {
            all.and(Self::of(resource, &actions.split(',').collect::<Vec<_>>()))
        })
    }

    /// Both.
    pub(crate) fn and(mut self, other: Self) -> Self {
        for (resource, actions) in other.0 {
            self.0.entry(resource).or_default().extend(actions);
        }
        self
    }

    /// Each resource with its actions, as one scope.
    pub(crate) fn iter(&self) -> impl Iterator<Item = String> {
        let text =
            |actions: &BTreeSet<String>| actions.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        self.0.iter().map(move |(resource, actions)| format!("{resource}:{}", text(actions)))
    }

    /// The repository, if it is about just one.
    pub(crate) fn repository(&self) -> Option<&str> {
        let mut names = self.0.keys().filter_map(|resource| resource.strip_prefix("repository:"));
        names.next().filter(|_| names.next().is_none())
    }

    fn of(resource: &str, actions: &[&str]) -> Self {
        let actions = actions.iter().filter(|action| !action.is_empty()).map(|&action| action.to_owned());
        Self(BTreeMap::from([(resource.to_owned(), actions.collect())]))
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iter().collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_joined_by_resource() {
        let mount = Scopes::push("a").and(Scopes::pull("b"));
        for (text, joined) in [
            ("repository:a:pull", "repository:a:pull,push repository:b:pull"),
            (
                "repository:c:delete repository:b:push,pull",
                "repository:a:pull,push repository:b:pull,push repository:c:delete",
            ),
            (
                "repository:localhost:5000/d:pull",
                "repository:a:pull,push repository:b:pull repository:localhost:5000/d:pull",
            ),
            ("nonsense", "repository:a:pull,push repository:b:pull"),
            ("", "repository:a:pull,push repository:b:pull"),
        ] {
            assert_eq!(mount.clone().and(Scopes::parse(text)).to_string(), joined, "{text}");
        }
        assert_eq!((mount.repository(), Scopes::pull("a").repository()), (None, Some("a")));
    }
}
