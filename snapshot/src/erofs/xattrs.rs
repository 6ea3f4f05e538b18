//! Extended attributes, each set of them kept once, as the image has it.

use std::collections::HashMap;

use super::format::{Damage, NAME_MAX, Reader};

/// The prefixes that have a number; the rest of the name follows it. The longer come first.
const PREFIXES: [(u8, &[u8]); 5] = [
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (1, b"user."),
    (4, b"trusted."),
    (6, b"security."),
];
/// How long a set may be, so that its length fits the inode's field.
const SET_MAX: usize = 4 * 0xfffe;
/// How much of that is left to the marks of overlayfs and ours: above all a path.
const MARKS: usize = 8 << 10;

/// A set of attributes in a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct XattrSet(pub(super) u32);

/// All sets of attributes of a tree.
#[derive(Debug)]
pub(super) struct Xattrs {
    /// Sorted entries as they stand in an image, each filled to four bytes. The first set is empty.
    sets: Vec<Box<[u8]>>,
    numbers: HashMap<Box<[u8]>, u32>,
    bytes: u64,
}

impl Default for Xattrs {
    fn default() -> Self {
        Self { sets: vec![Box::default()], numbers: HashMap::new(), bytes: 0 }
    }
}

impl Xattrs {
    /// The set of these attributes, names with their prefixes. The last of two with one name counts.
    pub(super) fn add<'a>(
        &mut self,
        attributes: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<XattrSet, &'static str> {
        self.add_within(SET_MAX - 2 * MARKS, attributes)
    }

    fn add_within<'a>(
        &mut self,
        most: usize,
        attributes: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<XattrSet, &'static str> {
        let mut sorted = std::collections::BTreeMap::new();
        for (name, value) in attributes {
            sorted.insert(split(name)?, value);
        }
        let mut set = Vec::new();
        for ((prefix, name), value) in sorted {
            let length = u16::try_from(value.len())
                .map_err(|_| "an extended attribute is longer than 65,535 bytes")?;
            set.push(u8::try_from(name.len()).expect("it was checked"));
            set.push(prefix);
            set.extend_from_slice(&length.to_le_bytes());
            set.extend_from_slice(name);
            set.extend_from_slice(value);
            set.resize(set.len().next_multiple_of(4), 0);
        }
        if set.len() > most {
            return Err("its extended attributes are longer than 240 KiB together");
        }
        Ok(self.keep(set))
    }

    /// The set of these bytes.
    fn keep(&mut self, set: Vec<u8>) -> XattrSet {
        if set.is_empty() {
            return XattrSet::default();
        }
        let set = set.into_boxed_slice();
        if let Some(number) = self.numbers.get(&set) {
            return XattrSet(*number);
        }
        let number = u32::try_from(self.sets.len()).expect("there are not that many inodes");
        self.bytes += set.len() as u64;
        self.sets.push(set.clone());
        self.numbers.insert(set, number);
        XattrSet(number)
    }

    /// How long all sets are together, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.sets.len()
    }

    /// The entries of a set, as they stand in an image.
    pub(super) fn raw(&self, set: XattrSet) -> &[u8] {
        &self.sets[set.0 as usize]
    }

    /// Each entry of a set as it stands in an image.
    pub(super) fn entries(&self, set: XattrSet) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.raw(set);
        std::iter::from_fn(move || {
            let length = entry_length(rest)?;
            let (entry, after) = rest.split_at(length);
            rest = after;
            Some(entry)
        })
    }

    /// The names, with prefixes, and values of a set.
    pub(super) fn list(&self, set: XattrSet) -> Vec<(Vec<u8>, Vec<u8>)> {
        let listed = self.entries(set).map(|entry| {
            let prefix = PREFIXES.iter().find(|(number, _)| *number == entry[1]).expect("we wrote it").1;
            let (name, value) = entry[4..].split_at(entry[0].into());
            ([prefix, name].concat(), value[..usize::from(u16::from_le_bytes([entry[2], entry[3]]))].to_vec())
        });
        listed.collect()
    }

    /// The value of one attribute.
    pub(super) fn get(&self, set: XattrSet, name: &[u8]) -> Option<Vec<u8>> {
        if set == XattrSet::default() {
            return None;
        }
        self.list(set).into_iter().find(|(other, _)| other == name).map(|(_, value)| value)
    }

    /// A set with one more attribute, or one less.
    pub(super) fn with(&mut self, set: XattrSet, name: &[u8], value: Option<&[u8]>) -> XattrSet {
        let mut list = self.list(set);
        list.retain(|(other, _)| other != name);
        list.extend(value.map(|value| (name.to_vec(), value.to_vec())));
        let pairs = list.iter().map(|(name, value)| (&name[..], &value[..]));
        self.add_within(SET_MAX, pairs).expect("they are known, and there is room for marks")
    }

    /// The set of another tree's set.
    pub(super) fn import(&mut self, other: &Self, set: XattrSet) -> XattrSet {
        self.keep(other.raw(set).to_vec())
    }

    /// The set of entries that were read from an image.
    pub(super) fn read<'a>(
        &mut self,
        entries: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<XattrSet, Damage> {
        let mut all: Vec<&[u8]> = Vec::new();
        for bytes in entries {
            let mut rest = bytes;
            while !rest.is_empty() {
                let length = entry_length(rest).ok_or(Damage("an extended attribute ends outside of it"))?;
                all.push(&rest[..length]);
                rest = &rest[length..];
            }
        }
        if !all.iter().all(|entry| is_known(entry)) {
            return Err(Damage("an extended attribute has a name that is not known"));
        }
        all.sort_unstable_by_key(|entry| (entry[1], &entry[4..4 + usize::from(entry[0])]));
        match all.concat() {
            set if set.len() > SET_MAX - MARKS => Err(Damage("its extended attributes are too long")),
            set => Ok(self.keep(set)),
        }
    }
}

/// How long the first entry of some is, filled to four bytes.
pub(super) fn entry_length(entries: &[u8]) -> Option<usize> {
    let bytes = Reader(entries);
    let (name, value) = (bytes.u8(0).ok()?, bytes.u16(2).ok()?);
    let length = (4 + usize::from(name) + usize::from(value)).next_multiple_of(4);
    (length <= entries.len()).then_some(length)
}

/// Whether file systems know the name of an entry.
fn is_known(entry: &[u8]) -> bool {
    let prefix = PREFIXES.iter().find(|(number, _)| *number == entry[1]);
    prefix.is_some_and(|(_, prefix)| split(&[prefix, &entry[4..4 + usize::from(entry[0])]].concat()).is_ok())
}

/// The number of a name's prefix, and what follows it.
fn split(name: &[u8]) -> Result<(u8, &[u8]), &'static str> {
    let found = PREFIXES.iter().find_map(|(number, prefix)| Some((*number, name.strip_prefix(*prefix)?)));
    match found {
        Some((number @ (2 | 3), rest)) if rest.is_empty() => Ok((number, rest)),
        Some((1 | 4 | 6, b"")) | Some((2 | 3, _)) | None => {
            Err("it has an extended attribute that file systems do not know")
        }
        Some((_, _)) if name.len() > NAME_MAX => {
            Err("the name of an extended attribute is longer than 255 bytes")
        }
        Some((_, rest)) if rest.contains(&0) => Err("the name of an extended attribute has a zero byte"),
        Some(found) => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_listed_as_they_were_added_and_equal_sets_are_kept_once() {
        let mut xattrs = Xattrs::default();
        let some: [(&[u8], &[u8]); 4] = [
            (b"user.note", b""),
            (b"security.capability", b"\x01\x00"),
            (b"system.posix_acl_access", b"acl"),
            (b"trusted.x", b"long value"),
        ];

        let first = xattrs.add(some).expect("all are known");
        let second = xattrs.add(some.into_iter().rev()).expect("all are known");

        assert_eq!(first, second);
        assert_eq!(xattrs.len(), 2);
        let mut listed = xattrs.list(first);
        listed.sort();
        let mut expected: Vec<_> = some.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        expected.sort();
        assert_eq!(listed, expected);
        assert_eq!(xattrs.get(first, b"trusted.x").as_deref(), Some(&b"long value"[..]));
        let without = xattrs.with(first, b"trusted.x", None);
        assert_eq!(xattrs.get(without, b"trusted.x"), None);
        assert_eq!(xattrs.with(without, b"trusted.x", Some(b"long value")), first);
    }

    #[test]
    fn what_no_file_system_takes_is_refused() {
        let long = [&b"user."[..], &[b'x'; 251]].concat();
        for name in
            [&b"system.x"[..], b"user.", b"other.x", b"", b"system.posix_acl_accessx", b"user.a\0b", &long]
        {
            assert!(Xattrs::default().add([(name, &b""[..])]).is_err(), "{}", name.escape_ascii());
        }
        assert!(Xattrs::default().add([(&b"user.x"[..], &vec![0; 65_536][..])]).is_err());
    }
}
