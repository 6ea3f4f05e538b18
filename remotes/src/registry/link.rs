//! The `Link` header: where the next page is (RFC 8288, distribution spec "Listing Tags").

/// The target of the first link whose relation is `next`. `None` if there is none that can be read.
pub(crate) fn next(header: &str) -> Option<&str> {
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (target, after) = rest.strip_prefix('<')?.split_once('>')?;
        let (parameters, others) = split_once_unquoted(after, ',');
        if is_next(parameters) {
            return Some(target);
        }
        rest = others;
    }
}

/// What comes before the next such character that is not quoted, and what comes after it.
fn split_once_unquoted(text: &str, separator: char) -> (&str, &str) {
    let (mut quoted, mut escaped) = (false, false);
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if character == separator && !quoted => {
                return (&text[..at], &text[at + separator.len_utf8()..]);
            }
            _ => {}
        }
    }
    (text, "")
}

fn is_next(mut parameters: &str) -> bool {
    while !parameters.is_empty() {
        let (parameter, others) = split_once_unquoted(parameters, ';');
        let (name, value) = parameter.split_once('=').unwrap_or_default();
        if name.trim().eq_ignore_ascii_case("rel") {
            let mut relations = value.trim().trim_matches('"').split_ascii_whitespace();
            // A second one would be ignored (RFC 8288, 3.3).
            return relations.any(|relation| relation.eq_ignore_ascii_case("next"));
        }
        parameters = others;
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_next_page_is_found_among_other_links() {
        for (header, target) in [
            (r#"</v2/a/tags/list?last=b&n=2>; rel="next""#, Some("/v2/a/tags/list?last=b&n=2")),
            ("<x>;rel=next", Some("x")),
            (r#"<first>; title="a, <b>; rel=next"; rel=prev, <second> ; REL="start Next""#, Some("second")),
            (r#"<a>; rel="prev""#, None),
            (r#"<a>; rel=prev; rel=next"#, None),
            (r#"<a>; title="\"; rel=next"; rel="next""#, Some("a")),
            ("<a", None),
            ("a; rel=next", None),
            ("", None),
        ] {
            assert_eq!(next(header), target, "{header}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(header in "(<[a-z]{0,3}>;? ?(rel=)?\"?[a-z, ;\\\\]{0,9}\"?,?){0,4}|\\PC{0,60}") {
            next(&header);
        }
    }
}
