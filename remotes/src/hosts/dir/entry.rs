//! Entries of a TOML file, whose errors say what is wrong in which line.
//!
//! No error shows a value: it may be a password. That is why TOML's own errors, which quote the file, stay in here.

use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue, Error},
};

/// What is wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flaw {
    /// Where, counted from 1, if it is in one place.
    pub(super) line: Option<usize>,
    /// What, in words that may be logged.
    pub(super) reason: String,
}

impl Flaw {
    /// A flaw at an offset in bytes.
    pub(super) fn at(file: &[u8], offset: usize, reason: impl Into<String>) -> Self {
        let before = file.iter().take(offset);
        let line = 1 + before.filter(|&&byte| byte == b'\n').count();
        Self { line: Some(line), reason: reason.into() }
    }

    /// What keeps a text from being TOML.
    pub(super) fn of_syntax(text: &str, error: &Error) -> Self {
        match error.span() {
            Some(span) => Self::at(text.as_bytes(), span.start, error.message()),
            None => Self { line: None, reason: error.message().to_owned() },
        }
    }
}

/// A key and its value, or one element of that value.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    text: &'a str,
    key: &'a Spanned<DeString<'a>>,
    value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Entry<'a> {
    /// The entries of a table, in the order in which the file first mentions them.
    pub(super) fn all(text: &'a str, table: &'a DeTable<'a>) -> Vec<Self> {
        let mut entries: Vec<_> = table.iter().map(|(key, value)| Self { text, key, value }).collect();
        entries.sort_by_cached_key(|entry| first_mention(entry.key, entry.value));
        entries
    }

    pub(super) fn key(self) -> &'a str {
        self.key.get_ref()
    }

    pub(super) fn bool(self) -> Result<bool, Flaw> {
        self.value.get_ref().as_bool().ok_or_else(|| self.is_not("true or false"))
    }

    pub(super) fn str(self) -> Result<&'a str, Flaw> {
        self.value.get_ref().as_str().ok_or_else(|| self.is_not("a string"))
    }

    pub(super) fn table(self) -> Result<Vec<Self>, Flaw> {
        let table = self.value.get_ref().as_table().ok_or_else(|| self.is_not("a table"))?;
        Ok(Self::all(self.text, table))
    }

    /// The elements of a list.
    pub(super) fn list(self) -> Result<Vec<Self>, Flaw> {
        let list = self.value.get_ref().as_array().ok_or_else(|| self.is_not("a list"))?;
        Ok(list.iter().map(|value| Self { value, ..self }).collect())
    }

    /// The elements of a list. Anything else stands for a list of just that.
    pub(super) fn one_or_more(self) -> Vec<Self> {
        self.list().unwrap_or_else(|_| vec![self])
    }

    pub(super) fn is_list(self) -> bool {
        self.value.get_ref().is_array()
    }

    /// Says that this entry is wrong.
    pub(super) fn flaw(self, reason: impl Into<String>) -> Flaw {
        // A table begins at its key: its own span may be that of a header further down.
        let span = if self.value.get_ref().is_table() { self.key.span() } else { self.value.span() };
        Flaw::at(self.text.as_bytes(), span.start, reason)
    }

    fn is_not(self, wanted: &str) -> Flaw {
        let is = self.value.get_ref().type_str();
        self.flaw(format!("a value of `{}` is of type {is}, but should be {wanted}", self.key()))
    }
}

/// Where a key is first mentioned. For a table that may be in the header of one of its own: `[host.a.header]` can come
/// before `[host.a]`.
fn first_mention(key: &Spanned<DeString<'_>>, value: &Spanned<DeValue<'_>>) -> usize {
    let below = value.get_ref().as_table().into_iter().flatten();
    below.map(|(key, value)| first_mention(key, value)).fold(key.span().start, usize::min)
}
