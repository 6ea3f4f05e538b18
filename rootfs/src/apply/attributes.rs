//! Extended attributes, as different programs write them into PAX records, and POSIX ACLs among them.

use std::{path::Path, str};

use base64::{
    Engine, alphabet, engine::general_purpose::GeneralPurpose, engine::general_purpose::GeneralPurposeConfig,
};
use tar::EntryType;

use super::{IdMap, Limits, pax::Records, refused};
use crate::{Error, Result};

/// The attributes in which the kernel keeps ACLs.
const ACCESS: &[u8] = b"system.posix_acl_access";
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";
/// The attribute that makes a program privileged.
const CAPABILITY: &[u8] = b"security.capability";

/// libarchive leaves out the padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
);

/// The attributes that an entry gets. Those that a layer may not set, or that nothing of its type can have, are left out.
pub(super) fn of(
    records: &Records,
    kind: EntryType,
    path: &Path,
    limits: &Limits,
) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut bytes = 0;
    for (key, value) in records.attributes() {
        let malformed =
            |why: &str| refused(path, format!("its record {:?} {why}", key.escape_ascii().to_string()));
        let (name, value) = if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            (name.to_vec(), value.to_vec())
        } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            let name = percent_decoded(name).ok_or_else(|| malformed("has a malformed name"))?;
            (name, BASE64.decode(value).map_err(|_| malformed("is no base64"))?)
        } else {
            let name = match key {
                b"SCHILY.acl.access" => ACCESS,
                b"SCHILY.acl.default" => DEFAULT,
                // Those of NFSv4, for which Linux has no place.
                _ => continue,
            };
            (name.to_vec(), acl(value).map_err(|why| malformed(&why))?)
        };
        bytes += (name.len() + value.len()) as u64;
        let over = |what, limit| Error::Limit { entry: path.to_owned(), what, limit };
        if bytes > limits.xattr_bytes {
            return Err(over("bytes of extended attributes", limits.xattr_bytes));
        }
        if !is_allowed(&name, kind) {
            continue;
        }
        if name.contains(&0) {
            return Err(malformed("has a NUL byte in its name"));
        }
        // The same attribute in several forms: they come in the order of their keys, and the plain form counts.
        match xattrs.iter_mut().find(|(there, _)| *there == name) {
            Some(there) => there.1 = value,
            None => xattrs.push((name, value)),
        }
        if xattrs.len() as u64 > limits.xattrs {
            return Err(over("extended attributes", limits.xattrs));
        }
    }
    Ok(xattrs)
}

/// Whether a layer may set an attribute on such an entry: not those by which overlayfs is steered, and not where the kernel
/// has no place for it.
fn is_allowed(name: &[u8], kind: EntryType) -> bool {
    let is_folder = kind == EntryType::Directory;
    match name {
        ACCESS => kind != EntryType::Symlink,
        DEFAULT => is_folder,
        _ if name.starts_with(b"user.overlay.") => false,
        _ if name.starts_with(b"user.") => {
            is_folder || kind.is_file() || kind.is_gnu_sparse() || kind.is_contiguous()
        }
        _ => name.starts_with(b"security."),
    }
}

/// The value of an attribute for those whose ids are others: ACLs and capabilities hold ids.
pub(super) fn mapped(name: &[u8], value: &[u8], ids: &IdMap) -> Result<Vec<u8>, String> {
    match name {
        ACCESS | DEFAULT => map_acl(value, ids),
        CAPABILITY => map_capability(value, ids),
        _ => Ok(value.to_vec()),
    }
}

/// Reads an ACL's text (`user::rwx,user:lisa:rw-:502,…`), and gives the form that the kernel takes (linux/posix_acl_xattr.h).
fn acl(text: &[u8]) -> Result<Vec<u8>, String> {
    let text = str::from_utf8(text).map_err(|_| "is no text".to_owned())?;
    let mut entries = Vec::new();
    for entry in text.split([',', '\n']).map(str::trim) {
        // What follows `#` is a comment: `#effective:r--`.
        let entry = entry.split('#').next().unwrap_or_default().trim();
        if entry.is_empty() {
            continue;
        }
        let fields: Vec<_> = entry.split(':').map(str::trim).collect();
        let why = || format!("has the entry {entry:?}, which is none of an ACL");
        let (kind, who, permissions, id) = match fields[..] {
            [kind @ ("mask" | "m" | "other" | "o"), permissions] => (kind, "", permissions, None),
            [kind, who, permissions] => (kind, who, permissions, None),
            [kind, who, permissions, id] => (kind, who, permissions, Some(id)),
            _ => return Err(why()),
        };
        let tag: u16 = match (kind, who) {
            ("user" | "u", "") => 0x01,
            ("user" | "u", _) => 0x02,
            ("group" | "g", "") => 0x04,
            ("group" | "g", _) => 0x08,
            ("mask" | "m", "") => 0x10,
            ("other" | "o", "") => 0x20,
            _ => return Err(why()),
        };
        let mut bits = 0;
        for letter in permissions.chars() {
            bits |= match letter {
                'r' => 4,
                'w' => 2,
                'x' => 1,
                '-' => 0,
                _ => return Err(why()),
            };
        }
        let id = match tag {
            0x02 | 0x08 => id.unwrap_or(who).parse().map_err(|_| {
                format!("names {who:?} without a number: write the archive with numeric owners")
            })?,
            _ => u32::MAX,
        };
        entries.push((tag, bits, id));
    }
    Ok(write_acl(entries))
}

/// The kernel takes the entries by tag, then by id.
fn write_acl(mut entries: Vec<(u16, u16, u32)>) -> Vec<u8> {
    entries.sort_by_key(|(tag, _, id)| (*tag, *id));
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, bits, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(bits.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

fn map_acl(value: &[u8], ids: &IdMap) -> Result<Vec<u8>, String> {
    let (version, entries) = value.split_first_chunk::<4>().ok_or("it is no ACL")?;
    let (entries, rest) = entries.as_chunks::<8>();
    if *version != 2_u32.to_le_bytes() || !rest.is_empty() {
        return Err("it is no ACL".to_owned());
    }
    let mut mapped = Vec::new();
    for [tag0, tag1, bits0, bits1, id @ ..] in entries {
        let (tag, bits) = (u16::from_le_bytes([*tag0, *tag1]), u16::from_le_bytes([*bits0, *bits1]));
        let id = u32::from_le_bytes(*id);
        let id = match tag {
            0x02 => ids.uid(id).map_err(|id| id.to_string())?,
            0x08 => ids.gid(id).map_err(|id| id.to_string())?,
            _ => Some(id),
        };
        // Where all is the caller's, others have no names.
        mapped.extend(id.map(|id| (tag, bits, id)));
    }
    Ok(write_acl(mapped))
}

/// A capability is good in the user namespace whose root it names (version 3); without a name, in the first one.
fn map_capability(value: &[u8], ids: &IdMap) -> Result<Vec<u8>, String> {
    const REVISION: u32 = 0xff00_0000;
    let malformed = || "it is no capability".to_owned();
    let magic = u32::from_le_bytes(*value.first_chunk().ok_or_else(malformed)?);
    let root = match (magic & REVISION, value.len()) {
        (0x0200_0000, 20) => 0,
        (0x0300_0000, 24) => u32::from_le_bytes(*value.last_chunk().ok_or_else(malformed)?),
        _ => return Err(malformed()),
    };
    let Some(root) = ids.uid(root).map_err(|id| id.to_string())? else {
        // The kernel adds the name of the namespace that the caller is in.
        return Ok(value.to_vec());
    };
    let magic = (magic & !REVISION) | 0x0300_0000;
    Ok([&magic.to_le_bytes()[..], &value[4..20], &root.to_le_bytes()].concat())
}

/// Reads a name in which some bytes are written as `%41`.
fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::new();
    let mut rest = text;
    while let Some((byte, more)) = rest.split_first() {
        rest = more;
        decoded.push(match byte {
            b'%' => {
                let (digits, more) = rest.split_first_chunk::<2>()?;
                rest = more;
                u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?
            }
            other => *other,
        });
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn read(text: &[(&str, &[u8])], kind: EntryType) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut pax = Vec::new();
        for (key, value) in text {
            let rest = key.len() + value.len() + 3;
            let length =
                (rest..).find(|length| rest + length.to_string().len() == *length).expect("it grows");
            pax.extend([format!("{length} {key}=").as_bytes(), value, b"\n"].concat());
        }
        let records = Records::new(Arc::default(), &pax).expect("it is well-formed");
        of(&records, kind, Path::new("file"), &Limits::default())
    }

    #[test]
    fn what_steers_overlayfs_or_has_no_place_is_left_out() {
        let value = &b"value"[..];
        for (name, on_file, on_link) in [
            ("user.note", true, false),
            ("security.capability", true, true),
            ("user.overlay.opaque", false, false),
            ("trusted.overlay.opaque", false, false),
            ("trusted.other", false, false),
            ("system.posix_acl_access", true, false),
            ("system.posix_acl_default", false, false),
            ("system.nfs4_acl", false, false),
            ("com.apple.quarantine", false, false),
        ] {
            let key = format!("SCHILY.xattr.{name}");
            for (kind, kept) in [(EntryType::Regular, on_file), (EntryType::Symlink, on_link)] {
                let xattrs = read(&[(&key, value)], kind).expect(name);
                assert_eq!(xattrs.len(), usize::from(kept), "{name}");
            }
        }
    }

    #[test]
    fn libarchive_writes_names_and_values_in_letters() {
        let text: &[(&str, &[u8])] =
            &[("LIBARCHIVE.xattr.user.a%3Db", b"AP8"), ("LIBARCHIVE.xattr.user.c", b"eHg=")];

        let xattrs = read(text, EntryType::Regular).expect("it is well-formed");

        assert_eq!(xattrs, [(b"user.a=b".to_vec(), vec![0, 0xff]), (b"user.c".to_vec(), b"xx".to_vec())]);
    }

    #[test]
    fn the_same_attribute_twice_is_set_once() {
        let text: &[(&str, &[u8])] =
            &[("LIBARCHIVE.xattr.user.a", b"eHg="), ("SCHILY.xattr.user.a", b"plain")];

        let xattrs = read(text, EntryType::Regular).expect("it is well-formed");

        assert_eq!(xattrs, [(b"user.a".to_vec(), b"plain".to_vec())]);
    }

    #[test]
    fn acls_are_read_in_every_form() {
        let want = [
            &[2, 0, 0, 0][..],
            &[1, 0, 7, 0, 255, 255, 255, 255],
            &[2, 0, 6, 0, 0xf6, 1, 0, 0],
            &[4, 0, 5, 0, 255, 255, 255, 255],
            &[8, 0, 4, 0, 7, 0, 0, 0],
            &[16, 0, 7, 0, 255, 255, 255, 255],
            &[32, 0, 0, 0, 255, 255, 255, 255],
        ]
        .concat();
        for text in [
            "user::rwx,user:lisa:rw-:502,group::r-x,group:7:r--,mask::rwx,other::---",
            "user::rwx\nuser:502:rw-\t#effective:rw-\ngroup::r-x\ngroup:wheel:r--:7\nmask:rwx\nother:---\n",
            "o::---,m::rwx,g:7:r,g::rx,u:502:rw,u::rwx",
        ] {
            assert_eq!(acl(text.as_bytes()).expect(text), want, "{text}");
        }
        for text in ["user:lisa:rwx", "user", "king::rwx", "user::rwq", "mask:1:rwx", "user:1:r:2:3"] {
            assert!(acl(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn ids_in_attributes_are_mapped() {
        let ids = IdMap::ranges(
            ["0 100000 65536".parse().expect("a range")],
            ["0 200000 65536".parse().expect("a range")],
        );
        let acl_of = |text: &str| acl(text.as_bytes()).expect(text);

        let access =
            mapped(ACCESS, &acl_of("u::rwx,u:5:r,g::r,g:6:r,m::r,o::r"), &ids).expect("they are mapped");
        let capability =
            mapped(CAPABILITY, &[&[1, 0, 0, 2][..], &[7; 16]].concat(), &ids).expect("it is mapped");

        assert_eq!(access, acl_of("u::rwx,u:100005:r,g::r,g:200006:r,m::r,o::r"));
        assert_eq!(capability, [&[1, 0, 0, 3][..], &[7; 16], &100_000_u32.to_le_bytes()].concat());
        let unmapped = mapped(ACCESS, &acl_of("u::rwx,u:70000:r,g::r,m::r,o::r"), &ids);
        assert!(unmapped.is_err_and(|why| why.contains("70000")));
    }
}
