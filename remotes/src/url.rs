//! URLs as they may be shown.

use url::Url;

/// The URL without what may be secret: user, password, query and fragment.
pub(crate) fn shown(url: &Url) -> String {
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
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let url = Url::parse("https://user:secret@cdn.example/blob?signature=secret#secret").expect("a URL");
        assert_eq!(shown(&url), "https://cdn.example/blob");
    }
}
