//! POSIX access lists, as the kernel takes them: a list that is set changes the mode, and one that says no more than a mode is
//! not kept (acl(5), and the kernel's `posix_acl_valid` and `posix_acl_equiv_mode`).

/// The attribute of the list that counts.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute of the list that what is made in a folder begins with.
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

/// A list that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    /// It has no entries: nothing is set.
    Empty,
    /// It says no more than these nine bits of a mode.
    Mode(u16),
    /// It says more. The nine bits of the mode show a part of it.
    Extended(u16),
}

/// Reads a list; `None` if the kernel would refuse it.
pub(super) fn read(value: &[u8]) -> Option<List> {
    let entries = value.strip_prefix(&2_u32.to_le_bytes())?;
    let (entries, []) = entries.as_chunks::<8>() else { return None };
    if entries.is_empty() {
        return Some(List::Empty);
    }
    let (mut user, mut group, mut mask, mut other, mut named) = (None, None, None, None, false);
    let mut last = 0;
    for [tag, high, permissions, none, id @ ..] in entries {
        let (tag, permissions) =
            (u16::from_le_bytes([*tag, *high]), u16::from_le_bytes([*permissions, *none]));
        // In this order, and only users and groups that have names may come several times.
        let again = tag == last && matches!(tag, 2 | 8);
        if permissions > 7 || !(tag > last || again) {
            return None;
        }
        last = tag;
        match tag {
            1 => user = Some(permissions),
            4 => group = Some(permissions),
            2 | 8 if *id != [0xff; 4] => named = true,
            0x10 => mask = Some(permissions),
            0x20 => other = Some(permissions),
            _ => return None,
        }
    }
    let mode = user? << 6 | mask.or(group)? << 3 | other?;
    match (group, named, mask) {
        (None, _, _) | (_, true, None) => None,
        (_, false, None) => Some(List::Mode(mode)),
        _ => Some(List::Extended(mode)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            value.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
            value.extend(id.to_le_bytes());
        }
        value
    }

    #[test]
    fn lists_are_read_as_the_kernel_reads_them() {
        let none = u32::MAX;
        for (entries, expected) in [
            (&[][..], Some(List::Empty)),
            (&[(1, 7, none), (4, 5, none), (0x20, 1, none)], Some(List::Mode(0o751))),
            (
                &[(1, 6, none), (2, 7, 9), (4, 4, none), (0x10, 5, none), (0x20, 0, none)],
                Some(List::Extended(0o650)),
            ),
            (&[(1, 6, none), (2, 7, 9), (2, 1, 8), (4, 4, none), (0x20, 0, none)], None),
            (&[(4, 6, none), (1, 7, none), (0x20, 0, none)], None),
            (&[(1, 6, none), (0x20, 0, none)], None),
            (&[(1, 8, none), (4, 4, none), (0x20, 0, none)], None),
            (&[(1, 6, none), (3, 4, none), (4, 4, none), (0x20, 0, none)], None),
        ] {
            assert_eq!(read(&list(entries)), expected, "{entries:?}");
        }
        assert_eq!(read(b"\x01\0\0\0"), None);
        assert_eq!(read(&[2, 0, 0, 0, 1]), None);
    }
}
