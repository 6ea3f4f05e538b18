//! What PAX headers say, and how numbers are written in tar headers.

use std::{collections::BTreeMap, io, sync::Arc};

use rustix::fs::Timespec;

/// What the records of an entry say: its own, and those of the global headers before it.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    globals: Arc<Values>,
    locals: Values,
}

/// Records by key. `None` takes back what a global header said.
#[derive(Clone, Debug, Default)]
pub(super) struct Values {
    plain: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// Those that say an attribute: there may be any number of them.
    attributes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    bytes: u64,
}

impl Records {
    /// The records of a member, from the text of its headers.
    pub(super) fn new(globals: Arc<Values>, text: &[u8]) -> io::Result<Self> {
        let mut locals = Values::default();
        locals.read(text)?;
        Ok(Self { globals, locals })
    }

    /// What a record says that is no attribute.
    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        let value = self.locals.plain.get(key.as_bytes()).or_else(|| self.globals.plain.get(key.as_bytes()));
        value?.as_deref()
    }

    /// All records that say an attribute, by key.
    pub(super) fn attributes(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let locals = &self.locals.attributes;
        let globals = self.globals.attributes.iter().filter(|(key, _)| !locals.contains_key(*key));
        locals.iter().chain(globals).filter_map(|(key, value)| Some((&key[..], value.as_deref()?)))
    }
}

impl Values {
    /// How many bytes are kept.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds the records of a PAX header, each `length key=value\n`; a value may hold any byte, so only the length says
    /// where it ends.
    pub(super) fn read(&mut self, mut text: &[u8]) -> io::Result<()> {
        while !text.is_empty() {
            let record = read_record(text);
            let (key, value, rest) = record.ok_or_else(|| malformed("a PAX record is malformed"))?;
            text = rest;
            match key {
                // The oldest sparse format repeats these; they are a map like that of the next.
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    self.bytes += value.len() as u64 + 1;
                    let map =
                        self.plain.entry(b"GNU.sparse.map".to_vec()).or_default().get_or_insert_default();
                    if !map.is_empty() {
                        map.push(b',');
                    }
                    map.extend_from_slice(value);
                }
                // An empty value takes back what was said before. An attribute may be empty.
                _ => {
                    let taken_back = value.is_empty() && !key.starts_with(b"SCHILY.xattr.");
                    self.insert(key, (!taken_back).then(|| value.to_vec()));
                }
            }
        }
        Ok(())
    }

    fn insert(&mut self, key: &[u8], value: Option<Vec<u8>>) {
        let says_attribute = [&b"SCHILY.xattr."[..], b"SCHILY.acl.", b"LIBARCHIVE.xattr."]
            .iter()
            .any(|prefix| key.starts_with(prefix));
        let values = if says_attribute { &mut self.attributes } else { &mut self.plain };
        let length = |value: &Option<Vec<u8>>| value.as_ref().map_or(0, Vec::len) as u64;
        self.bytes += length(&value);
        match values.insert(key.to_vec(), value) {
            Some(old) => self.bytes -= length(&old),
            None => self.bytes += key.len() as u64,
        }
    }
}

/// The key and value of the first record, and what follows it.
fn read_record(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = text.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&text[..space])?).ok()?;
    let (record, rest) = text.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    // A key without a name says nothing.
    (equals > 0).then(|| (&record[..equals], &record[equals + 1..], rest))
}

/// Reads a number of a header: octal digits, or base-256 with the highest bit set. No digits are zero.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    match field {
        [first, rest @ ..] if first & 0x80 != 0 => {
            // Two's complement; the bit below the mark is the sign.
            let high = i128::from(first & 0x3f) - i128::from(first & 0x40);
            let value = rest
                .iter()
                .try_fold(high, |value, byte| value.checked_mul(256).map(|value| value + i128::from(*byte)));
            i64::try_from(value?).ok()
        }
        _ => {
            let start = field.iter().position(|byte| *byte != b' ').unwrap_or(field.len());
            let digits = field[start..].split(|byte| matches!(byte, 0 | b' ')).next().unwrap_or_default();
            digits.iter().try_fold(0_i64, |value, digit| match digit {
                b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
                _ => None,
            })
        }
    }
}

/// As [`number`], for what is never negative.
pub(super) fn natural(field: &[u8]) -> Option<u64> {
    number(field).and_then(|value| u64::try_from(value).ok())
}

/// Reads a decimal number as PAX writes it.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    match text {
        [] => None,
        _ => text.iter().try_fold(0_u64, |value, digit| match digit {
            b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
            _ => None,
        }),
    }
}

/// Reads a PAX time: seconds with an optional fraction, possibly negative. What is finer than a nanosecond is cut off.
pub(super) fn time(text: &[u8]) -> Option<Timespec> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    let mut parts = digits.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |place| fraction.get(place).map_or(0, |digit| i64::from(digit - b'0'));
    let nanoseconds = (0..9).fold(0, |value, place| value * 10 + digit(place));
    // -1.25 is two seconds before the epoch and 0.75 seconds after that.
    let (tv_sec, tv_nsec) = match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => ((-seconds).checked_sub(1)?, 1_000_000_000 - nanoseconds),
    };
    Some(Timespec { tv_sec, tv_nsec })
}

pub(super) fn malformed(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary_and_may_be_negative() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"    644 ", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"0000008\0", None),
            (b"\x80\0\0\0\x80\0\0\0", Some(1 << 31)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\0\0\0\0\0\0\x01\0", Some(256)),
            (b"\x80\0\0\x01\0\0\0\0\0\0\0\0", None),
        ] {
            assert_eq!(number(field), value, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn times_have_fractions_and_signs() {
        for (text, seconds, nanoseconds) in [
            ("1", 1, 0),
            ("981173106.123456789", 981_173_106, 123_456_789),
            ("1.1234567899", 1, 123_456_789),
            ("-86400", -86400, 0),
            ("-1.25", -2, 750_000_000),
            ("-0.5", -1, 500_000_000),
            ("7.", 7, 0),
        ] {
            let time = time(text.as_bytes()).expect(text);
            assert_eq!((time.tv_sec, time.tv_nsec), (seconds, nanoseconds), "{text}");
        }
        for text in ["", "x", "-", "--1", "+1", "1.x", "99999999999999999999"] {
            assert!(time(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn a_value_may_hold_what_ends_a_record() {
        let text = b"26 SCHILY.xattr.user.x=\n=\n12 path=a b\n";

        let records = Records::new(Arc::default(), text).expect("it is well-formed");

        let attributes: Vec<_> = records.attributes().collect();
        assert_eq!(attributes, [(&b"SCHILY.xattr.user.x"[..], &b"\n="[..])]);
        assert_eq!(records.get("path"), Some(&b"a b"[..]));
    }

    #[test]
    fn an_entry_may_take_back_what_a_global_header_says() {
        let mut globals = Values::default();
        globals.read(b"9 uid=70\n9 gid=71\n").expect("it is well-formed");

        let records = Records::new(Arc::new(globals), b"7 uid=\n").expect("it is well-formed");

        assert_eq!((records.get("uid"), records.get("gid")), (None, Some(&b"71"[..])));
    }

    #[test]
    fn what_is_said_again_takes_no_more_memory() {
        let mut globals = Values::default();
        for _ in 0..3 {
            globals.read(b"9 uid=70\n").expect("it is well-formed");
        }

        assert_eq!(globals.bytes(), 5);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for text in
            ["x", "5 a=b", "6 a=bc", "4 a\n", "99999999999999999999 a=b\n", "0 a=b\n", " a=b\n", "4 =\n"]
        {
            assert!(Values::default().read(text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
