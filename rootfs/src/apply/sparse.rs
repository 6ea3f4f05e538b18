//! Files with holes: where in the file the data of a member belongs. GNU tar has written this in four ways.

use std::io::{self, BufRead};

use super::{
    archive::{Archive, BLOCK, Member},
    pax::{decimal, malformed, natural},
};

/// The map of a file with holes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sparse {
    /// Offset and length of each piece of data, in bytes, in order; the pieces follow each other in the archive.
    pub(super) pieces: Vec<(u64, u64)>,
    /// The size of the file, in bytes.
    pub(super) size: u64,
}

/// Reads the map of a member, if it has one. What is malformed is an [`io::ErrorKind::InvalidData`].
pub(super) fn read<R: BufRead>(
    member: &Member,
    archive: &mut Archive<R>,
    limit: u64,
) -> io::Result<Option<Sparse>> {
    let record = |key| member.records.get(key);
    let mut sparse = if member.kind.is_gnu_sparse() {
        old(member, archive, limit)?
    } else if let Some(major) = record("GNU.sparse.major") {
        if (major, record("GNU.sparse.minor")) != (b"1", Some(b"0")) {
            return Err(malformed("its sparse format is not known"));
        }
        let size = record("GNU.sparse.realsize").and_then(decimal);
        Sparse {
            pieces: leading(archive, limit)?,
            size: size.ok_or_else(|| malformed("it has no real size"))?,
        }
    } else if let Some(map) = record("GNU.sparse.map") {
        let numbers: Option<Vec<_>> = map.split(|byte| *byte == b',').map(decimal).collect();
        let size = record("GNU.sparse.size").and_then(decimal);
        let pieces = numbers.and_then(pairs).ok_or_else(|| malformed("its sparse map is malformed"))?;
        Sparse { pieces, size: size.ok_or_else(|| malformed("it has no real size"))? }
    } else {
        return Ok(None);
    };
    sparse.check(archive.left())?;
    // GNU tar ends the map of a file that ends in a hole with an empty piece, where the file ends.
    sparse.pieces.retain(|(_, length)| *length > 0);
    Ok(Some(sparse))
}

impl Sparse {
    /// Pieces come in order, do not overlap, are inside the file, and are all the data that there is.
    fn check(&self, data: u64) -> io::Result<()> {
        let mut end = 0;
        let mut sum = 0_u64;
        for (offset, length) in &self.pieces {
            let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= self.size);
            end = next.ok_or_else(|| malformed("its sparse map is out of order, or larger than the file"))?;
            sum += length;
        }
        match sum == data {
            true => Ok(()),
            false => Err(malformed("its sparse map does not fit its data")),
        }
    }
}

/// The old GNU format: the map is in the header, and goes on in blocks after it.
fn old<R: BufRead>(member: &Member, archive: &mut Archive<R>, limit: u64) -> io::Result<Sparse> {
    let header =
        member.header.as_gnu().ok_or_else(|| malformed("it is sparse in a format that cannot be"))?;
    let mut fields: Vec<([u8; 12], [u8; 12])> =
        header.sparse.iter().map(|piece| (piece.offset, piece.numbytes)).collect();
    let mut more = header.is_extended();
    let mut read = 0;
    while more {
        read += BLOCK as u64;
        if read > limit {
            return Err(malformed("its sparse map is too long"));
        }
        let mut block = tar::GnuExtSparseHeader::new();
        block.as_mut_bytes().copy_from_slice(&archive.extra_block()?);
        fields.extend(block.sparse.iter().map(|piece| (piece.offset, piece.numbytes)));
        more = block.is_extended();
    }
    let pieces: Option<Vec<_>> = fields
        .iter()
        .filter(|(offset, length)| offset[0] != 0 && length[0] != 0)
        .map(|(offset, length)| Some((natural(offset)?, natural(length)?)))
        .collect();
    let (pieces, size) =
        pieces.zip(natural(&header.realsize)).ok_or_else(|| malformed("its sparse map is malformed"))?;
    Ok(Sparse { pieces, size })
}

/// PAX format 1.0: the map is at the beginning of the data, in lines, and fills whole blocks.
fn leading<R: BufRead>(archive: &mut Archive<R>, limit: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut numbers: Vec<u64> = Vec::new();
    let mut digits = Vec::new();
    let mut read = 0;
    // The first line says how many pieces follow, of two lines each.
    while numbers.first().is_none_or(|count| (numbers.len() as u64 - 1) / 2 < *count) {
        read += BLOCK as u64;
        if read > limit {
            return Err(malformed("its sparse map is too long"));
        }
        for byte in archive.block()? {
            match byte {
                b'\n' => {
                    let number = decimal(&digits).ok_or_else(|| malformed("its sparse map is malformed"))?;
                    numbers.push(number);
                    digits.clear();
                }
                _ => digits.push(byte),
            }
        }
    }
    let count = usize::try_from(numbers[0]).map_err(|_| malformed("its sparse map is too long"))?;
    // What fills the last block are no lines.
    numbers.truncate(1 + 2 * count);
    numbers.remove(0);
    pairs(numbers).ok_or_else(|| malformed("its sparse map is malformed"))
}

fn pairs(numbers: Vec<u64>) -> Option<Vec<(u64, u64)>> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[offset, length]| (*offset, *length)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_that_does_not_fit_is_refused() {
        for (pieces, size, data, fits) in [
            (&[(0, 5), (10, 5)][..], 20, 10, true),
            (&[(20, 0)], 20, 0, true),
            (&[], 0, 0, true),
            (&[(0, 5), (4, 5)], 20, 10, false),
            (&[(10, 5), (0, 5)], 20, 10, false),
            (&[(18, 5)], 20, 5, false),
            (&[(u64::MAX, 5)], 20, 5, false),
            (&[(0, 5)], 20, 6, false),
        ] {
            let sparse = Sparse { pieces: pieces.to_vec(), size };
            assert_eq!(sparse.check(data).is_ok(), fits, "{sparse:?} of {data}");
        }
    }
}
