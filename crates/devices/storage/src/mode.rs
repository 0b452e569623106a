//! Mode parameters of SCSI and packet devices: what MODE SENSE tells and what MODE SELECT may change.
//!
//! Nothing is saved beyond a reset, and there are no subpages.
//!
//! Spec: SPC-4 §6.11, §6.12 (MODE SELECT), §6.13, §6.14 (MODE SENSE), §7.5 (mode parameters).

use crate::ata::Sense;
use crate::ata::sense;
use crate::bytes;

/// PARAMETER LIST LENGTH ERROR.
pub(crate) const LIST_LENGTH: Sense = Sense(5, 0x1A, 0);
/// SAVING PARAMETERS NOT SUPPORTED.
const NOT_SAVED: Sense = Sense(5, 0x39, 0);
/// Bytes of a list of parameters at most.
const MOST: u16 = 512;

/// A mode page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    /// Its code.
    pub(crate) code: u8,
    /// What is behind its length.
    pub(crate) current: Vec<u8>,
    /// What that is after power-on.
    pub(crate) default: Vec<u8>,
    /// The bits that can be changed.
    pub(crate) changeable: Vec<u8>,
}

impl Page {
    /// A page that stays as it is.
    pub(crate) fn fixed(code: u8, body: Vec<u8>) -> Self {
        Self {
            code,
            changeable: vec![0; body.len()],
            default: body.clone(),
            current: body,
        }
    }
}

/// What MODE SENSE tells beside the pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header<'a> {
    /// Type of the medium.
    pub(crate) medium: u8,
    /// The parameter that belongs to the type of device.
    pub(crate) specific: u8,
    /// A block descriptor, if it is wanted.
    pub(crate) descriptor: &'a [u8],
}

/// Whether a command has the form with six bytes.
fn is_short(cdb: &[u8]) -> bool {
    matches!(bytes::at(cdb, 0), 0x15 | 0x1A)
}

/// Answers MODE SENSE of either length.
pub(crate) fn sense(cdb: &[u8], header: Header<'_>, pages: &[Page]) -> Result<Vec<u8>, Sense> {
    let (control, wanted) = (bytes::at(cdb, 2) >> 6, bytes::at(cdb, 2) & 0x3F);
    if control == 3 {
        return Err(NOT_SAVED);
    }
    let mut told = Vec::new();
    for page in pages.iter().filter(|page| wanted == page.code || wanted == 0x3F) {
        let body = match control {
            0 => &page.current,
            1 => &page.changeable,
            _ => &page.default,
        };
        told.extend([page.code, bytes::low8(body.len() as u64)]);
        told.extend(body);
    }
    if told.is_empty() {
        return Err(sense::BAD_FIELD);
    }
    let descriptor = if bytes::at(cdb, 1) & 8 == 0 {
        header.descriptor
    } else {
        &[]
    };
    let len = (descriptor.len() + told.len()) as u64;
    let described = bytes::low8(descriptor.len() as u64);
    let (mut data, limit) = if is_short(cdb) {
        let head = vec![bytes::low8(len + 3), header.medium, header.specific, described];
        (head, u16::from(bytes::at(cdb, 4)))
    } else {
        let [high, low] = bytes::low16(len + 6).to_be_bytes();
        let head = vec![high, low, header.medium, header.specific, 0, 0, 0, described];
        (head, bytes::be16(cdb, 7))
    };
    data.extend(descriptor);
    data.extend(told);
    data.truncate(limit.into());
    Ok(data)
}

/// Bytes of the list that MODE SELECT gives.
pub(crate) fn list_len(cdb: &[u8]) -> Result<usize, Sense> {
    let len = match is_short(cdb) {
        true => u16::from(bytes::at(cdb, 4)),
        false => bytes::be16(cdb, 7),
    };
    if len > MOST {
        return Err(LIST_LENGTH);
    }
    Ok(len.into())
}

/// The pages of a list that MODE SELECT gives, by their codes, after they were found to change nothing that cannot be
/// changed. A block descriptor must be `descriptor`, or leave the number of blocks as it is.
pub(crate) fn select<'a>(
    cdb: &[u8],
    given: &'a [u8],
    descriptor: &[u8],
    pages: &[Page],
) -> Result<Vec<(u8, &'a [u8])>, Sense> {
    let (head, described) = match is_short(cdb) {
        true => (4, usize::from(bytes::at(given, 3))),
        false => (8, usize::from(bytes::be16(given, 6))),
    };
    let long = !is_short(cdb) && bytes::at(given, 4) & 1 != 0;
    let body = given.get(head..).ok_or(LIST_LENGTH)?;
    let (blocks, mut rest) = body.split_at_checked(described).ok_or(LIST_LENGTH)?;
    let same = |blocks: &[u8]| {
        let (count, size) = blocks.split_at_checked(4).unwrap_or_default();
        let (ours, our_size) = descriptor.split_at_checked(4).unwrap_or_default();
        size.get(1..) == our_size.get(1..) && (count == [0; 4] || count == [0xFF; 4] || count == ours)
    };
    if !blocks.is_empty() && (long || blocks.len() != 8 || !same(blocks)) {
        return Err(sense::BAD_LIST);
    }
    let mut changes = Vec::new();
    while let Some((head, tail)) = rest.split_first_chunk::<2>() {
        let [code, len] = *head;
        let (body, tail) = tail.split_at_checked(len.into()).ok_or(LIST_LENGTH)?;
        // Subpages have a bit of their own in the code.
        let page = pages.iter().find(|page| page.code == code & 0x7F);
        let page = page.ok_or(sense::BAD_LIST)?;
        let may = |(new, (old, mask)): (&u8, (&u8, &u8))| (new ^ old) & !mask == 0;
        let known = page.current.iter().zip(&page.changeable);
        if body.len() != page.current.len() || !body.iter().zip(known).all(may) {
            return Err(sense::BAD_LIST);
        }
        changes.push((page.code, body));
        rest = tail;
    }
    match rest {
        [] => Ok(changes),
        _ => Err(LIST_LENGTH),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages() -> [Page; 2] {
        let one = Page {
            code: 8,
            current: vec![4, 7],
            default: vec![0, 7],
            changeable: vec![4, 0],
        };
        [one, Page::fixed(10, vec![1])]
    }

    const DESCRIPTOR: [u8; 8] = [0, 0, 0, 9, 0, 0, 2, 0];

    fn told(cdb: [u8; 6]) -> Result<Vec<u8>, Sense> {
        let header = Header {
            medium: 1,
            specific: 0x10,
            descriptor: &DESCRIPTOR,
        };
        sense(&cdb, header, &pages())
    }

    #[test]
    fn pages_are_told_as_they_are_and_were_and_may_be() {
        assert_eq!(told([0x1A, 8, 8, 0, 255, 0]).unwrap(), [7, 1, 0x10, 0, 8, 2, 4, 7]);
        assert_eq!(told([0x1A, 8, 0x48, 0, 255, 0]).unwrap()[4..], [8, 2, 4, 0]);
        assert_eq!(told([0x1A, 8, 0x88, 0, 255, 0]).unwrap()[4..], [8, 2, 0, 7]);
        assert_eq!(told([0x1A, 8, 0xC8, 0, 255, 0]), Err(NOT_SAVED));
        let all = told([0x1A, 0, 0x3F, 0, 255, 0]).unwrap();
        assert_eq!((all[0], all[3], &all[4..12]), (18, 8, &DESCRIPTOR[..]));
        assert_eq!(all[12..], [8, 2, 4, 7, 10, 1, 1]);
        assert_eq!(told([0x1A, 0, 0x3F, 0, 5, 0]).unwrap().len(), 5);
        assert_eq!(told([0x1A, 0, 5, 0, 255, 0]), Err(sense::BAD_FIELD));
    }

    #[test]
    fn only_what_can_be_changed_is_taken() {
        let short = [0x15, 0x10, 0, 0, 255, 0];
        let select = |given: &[u8]| super::select(&short, given, &DESCRIPTOR, &pages()).map(|list| list.len());
        assert_eq!(select(&[0, 0, 0, 0]), Ok(0));
        assert_eq!(select(&[0, 0, 0, 0, 8, 2, 0, 7]), Ok(1));
        assert_eq!(select(&[0, 0, 0, 0, 0x88, 2, 4, 7, 10, 1, 1]), Ok(2));
        for count in [[0; 4], [0xFF; 4], [0, 0, 0, 9]] {
            let given = [&[0, 0, 0, 8][..], &count, &[0, 0, 2, 0]].concat();
            assert_eq!(select(&given), Ok(0));
        }
        for bad in [
            &[0, 0, 0, 0, 8, 2, 5, 7][..],
            &[0, 0, 0, 0, 8, 1, 4],
            &[0, 0, 0, 0, 9, 1, 4],
            &[0, 0, 0, 0, 0x48, 2, 4, 7],
            &[0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 2, 0],
            &[0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 4, 0],
            &[0, 0, 0, 2, 0, 0],
        ] {
            assert_eq!(select(bad), Err(sense::BAD_LIST), "{bad:?}");
        }
        for short in [
            &[0, 0, 0][..],
            &[0, 0, 0, 8, 0],
            &[0, 0, 0, 0, 8],
            &[0, 0, 0, 0, 8, 2, 4],
        ] {
            assert_eq!(select(short), Err(LIST_LENGTH), "{short:?}");
        }
        let ten = [0x55, 0x10, 0, 0, 0, 0, 0, 0, 255, 0];
        let long = super::select(&ten, &[0, 0, 0, 0, 0, 0, 0, 0, 8, 2, 0, 7], &DESCRIPTOR, &pages());
        assert_eq!(long, Ok(vec![(8, &[0, 7][..])]));
        assert_eq!(list_len(&[0x55, 0x10, 0, 0, 0, 0, 0, 2, 1, 0]), Err(LIST_LENGTH));
        assert_eq!((list_len(&ten), list_len(&short)), (Ok(255), Ok(255)));
    }
}
