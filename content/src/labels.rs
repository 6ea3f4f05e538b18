use std::collections::BTreeMap;

use crate::{Error, Result};

/// Short texts that somebody wrote on a blob, by key. The store keeps them, and gives them no meaning.
///
/// A key has at least one byte, and together with its value at most 4,096.
pub type Labels = BTreeMap<String, String>;

/// How long a key and its value may be together, in bytes.
const LIMIT: usize = 4096;

/// How much of a key is repeated in an error, in characters.
const SHOWN: usize = 64;

/// Whether they are within their bounds.
pub(crate) fn check(labels: &Labels) -> Result<()> {
    let fail = |key: &str, reason| Err(Error::Label { key: key.chars().take(SHOWN).collect(), reason });
    for (key, value) in labels {
        if key.is_empty() {
            return fail(key, "has no key");
        }
        if key.len() + value.len() > LIMIT {
            return fail(key, "has more than 4096 bytes");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_bounds() {
        let long = "x".repeat(LIMIT);
        for (key, value, why) in [
            ("key", "", None),
            ("key", &long[3..], None),
            ("", "value", Some(r#"label "" has no key"#)),
            ("key", &long[2..], Some(r#"label "key" has more than 4096 bytes"#)),
        ] {
            let checked = check(&Labels::from([(key.to_owned(), value.to_owned())]));
            assert_eq!(checked.err().map(|err| err.to_string()).as_deref(), why, "{key:?}");
        }
        let err = check(&Labels::from([(long, "x".to_owned())])).expect_err("the key is too long");
        assert!(err.to_string().len() < 2 * SHOWN, "{err}");
    }
}
