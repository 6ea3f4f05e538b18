//! The `Content-Range` header: which part of the content an answer holds.

/// `bytes first-last/total`. The total is unknown if it is `*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ContentRange {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) total: Option<u64>,
}

/// Reads the header. `None` if it is not a range of bytes.
pub(crate) fn parse(header: &str) -> Option<ContentRange> {
    let (range, total) = header.trim().strip_prefix("bytes ")?.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    let total = match total {
        "*" => None,
        total => Some(number(total)?),
    };
    (first <= last && total.is_none_or(|total| last < total)).then_some(ContentRange { first, last, total })
}

/// Digits only: `u64::from_str` takes a plus sign too.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_that_contradict_themselves_are_refused() {
        assert_eq!(parse("bytes 5-9/10"), Some(ContentRange { first: 5, last: 9, total: Some(10) }));
        assert_eq!(parse("bytes 0-0/*"), Some(ContentRange { first: 0, last: 0, total: None }));
        for bad in
            ["", "bytes */10", "bytes 9-5/10", "bytes 5-10/10", "bytes +1-2/3", "items 1-2/3", "bytes 1-2"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(header in "(bytes )?\\PC{0,40}|bytes [0-9]{0,25}-[0-9]{0,25}/[0-9*]{0,25}") {
            parse(&header);
        }
    }
}
