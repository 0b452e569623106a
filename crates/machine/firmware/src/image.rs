//! ELF executables as memory images: segments with physical addresses, the entry point, and the PVH note.
//!
//! Both classes, little-endian, for i386 and x86-64. Sections, symbols and relocations are not looked at.
//!
//! Spec: System V ABI, chapters 4 and 5 (ELF header, program header, notes); Xen public/elfnote.h.

use std::ops::Range;

use guest_memory::GuestMemory;
use object::LittleEndian;
use object::elf;
use object::read::elf::FileHeader;
use object::read::elf::ProgramHeader;

use crate::BootError;
use crate::layout::Ram;

/// The most segments that are loaded; linkers make fewer than ten.
const SEGMENTS_MAX: usize = 64;
/// Owner of the PVH note.
const NOTE_OWNER: &[u8] = b"Xen";
/// XEN_ELFNOTE_PHYS32_ENTRY: physical address of the PVH entry point.
const NOTE_PHYS32_ENTRY: u32 = 18;
/// Bytes zeroed at a time.
const ZEROES: [u8; 4096] = [0; 4096];

/// A part of a file that belongs to an address; memory beyond the data is zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment<'a> {
    /// Guest physical address.
    pub(crate) gpa: u64,
    /// Content.
    pub(crate) data: &'a [u8],
    /// Length in memory, at least that of the data.
    pub(crate) len: u64,
}

/// What to put into memory, and where to start.
#[derive(Debug)]
pub(crate) struct Image<'a> {
    /// By address, without overlap, at least one.
    segments: Vec<Segment<'a>>,
    /// Physical address of the entry point.
    pub(crate) entry: u64,
}

/// An ELF file.
#[derive(Debug)]
pub(crate) struct Elf<'a> {
    /// Its segments and its own entry point.
    pub(crate) image: Image<'a>,
    /// Entry point of the PVH note.
    pub(crate) pvh_entry: Option<u32>,
}

impl<'a> Image<'a> {
    /// An image of `segments`, put in order.
    pub(crate) fn new(mut segments: Vec<Segment<'a>>, entry: u64) -> Result<Self, BootError> {
        segments.sort_by_key(|s| s.gpa);
        if segments.is_empty() {
            return Err(BootError::NotKernel("an ELF file with nothing to load"));
        }
        for (a, b) in segments.iter().zip(segments.iter().skip(1)) {
            if b.gpa - a.gpa < a.len {
                return Err(BootError::Damaged("its segments overlap"));
            }
        }
        Ok(Self { segments, entry })
    }

    /// The addresses of each segment, after the check that RAM is there.
    pub(crate) fn check(&self, ram: &Ram) -> Result<Vec<Range<u64>>, BootError> {
        for segment in &self.segments {
            let Segment { gpa, data: _, len } = *segment;
            if ram.contains(gpa, len) {
                continue;
            }
            let have = ram.low_end();
            return Err(match gpa.checked_add(len) {
                Some(need) if gpa >= have && need <= crate::layout::HOLE_START => {
                    BootError::TooLittleMemory { need, have }
                }
                Some(need) if gpa < have && have < crate::layout::HOLE_START => {
                    BootError::TooLittleMemory { need, have }
                }
                _ => BootError::Segment { start: gpa, len },
            });
        }
        Ok(self.segments.iter().map(|s| s.gpa..s.gpa + s.len).collect())
    }

    /// Writes the segments. [`Self::check`] must have passed.
    pub(crate) fn write(&self, memory: &GuestMemory) -> Result<(), BootError> {
        for segment in &self.segments {
            memory.write(segment.gpa, segment.data)?;
            let (mut at, end) = (segment.gpa + segment.data.len() as u64, segment.gpa + segment.len);
            while at < end {
                let n = (end - at).min(ZEROES.len() as u64);
                memory.write(at, ZEROES.get(..n as usize).unwrap_or(&ZEROES))?;
                at += n;
            }
        }
        Ok(())
    }
}

/// Reads an ELF executable; none when the file is no ELF file at all.
pub(crate) fn parse_elf(file: &[u8]) -> Result<Option<Elf<'_>>, BootError> {
    let ident = file.get(..6).unwrap_or_default();
    match ident {
        [0x7f, b'E', b'L', b'F', 1, 1] => parse::<elf::FileHeader32<LittleEndian>>(file).map(Some),
        [0x7f, b'E', b'L', b'F', 2, 1] => parse::<elf::FileHeader64<LittleEndian>>(file).map(Some),
        [0x7f, b'E', b'L', b'F', ..] => Err(BootError::NotKernel("an ELF file of another byte order")),
        _ => Ok(None),
    }
}

fn parse<H: FileHeader<Endian = LittleEndian>>(file: &[u8]) -> Result<Elf<'_>, BootError> {
    let header = H::parse(file).map_err(|_| BootError::Truncated("the ELF header is not complete"))?;
    let endian = LittleEndian;
    if !matches!(header.e_machine(endian), elf::EM_386 | elf::EM_X86_64) {
        return Err(BootError::NotKernel("an ELF file for another processor"));
    }
    if !matches!(header.e_type(endian), elf::ET_EXEC | elf::ET_DYN) {
        return Err(BootError::NotKernel("an ELF file that is not an executable"));
    }
    let programs = header
        .program_headers(endian, file)
        .map_err(|_| BootError::Truncated("the ELF program headers lie past its end"))?;
    let mut segments = Vec::new();
    let mut pvh_entry = None;
    let mut entry = header.e_entry(endian).into();
    for program in programs {
        if program.p_type(endian) == elf::PT_NOTE && pvh_entry.is_none() {
            pvh_entry = phys32_entry(program, file);
        }
        if program.p_type(endian) != elf::PT_LOAD || program.p_memsz(endian).into() == 0 {
            continue;
        }
        if segments.len() == SEGMENTS_MAX {
            return Err(BootError::Damaged("it has too many segments"));
        }
        let segment = segment(program, file)?;
        if let Some(offset) = header
            .e_entry(endian)
            .into()
            .checked_sub(program.p_vaddr(endian).into())
            && offset < segment.len
            && program.p_flags(endian).0 & elf::PF_X.0 != 0
        {
            // Loaders work with physical addresses, linkers give the entry point as a virtual one.
            entry = segment.gpa.wrapping_add(offset);
        }
        segments.push(segment);
    }
    let image = Image::new(segments, entry)?;
    Ok(Elf { image, pvh_entry })
}

fn segment<'a, P: ProgramHeader<Endian = LittleEndian>>(program: &P, file: &'a [u8]) -> Result<Segment<'a>, BootError> {
    let data = program
        .data(LittleEndian, file)
        .map_err(|()| BootError::Truncated("a segment lies past its end"))?;
    let len = program.p_memsz(LittleEndian).into();
    if len < data.len() as u64 {
        return Err(BootError::Damaged("a segment is larger in the file than in memory"));
    }
    Ok(Segment {
        gpa: program.p_paddr(LittleEndian).into(),
        data,
        len,
    })
}

/// The PVH entry point, if `program` holds that note. Notes that cannot be read are like notes of others.
fn phys32_entry<P: ProgramHeader<Endian = LittleEndian>>(program: &P, file: &[u8]) -> Option<u32> {
    let mut notes = program.notes(LittleEndian, file).ok()??;
    while let Ok(Some(note)) = notes.next() {
        if note.name() == NOTE_OWNER && note.n_type(LittleEndian).0 == NOTE_PHYS32_ENTRY {
            let (value, rest) = note.desc().split_first_chunk::<4>()?;
            return rest.iter().all(|b| *b == 0).then(|| u32::from_le_bytes(*value));
        }
    }
    None
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::layout::tests::memory;

    /// A segment for the makers below: virtual address, physical address, data, length in memory.
    pub(crate) type Part<'a> = (u64, u64, &'a [u8], u64);

    /// An ELF64 executable for x86-64.
    pub(crate) fn elf64(entry: u64, parts: &[Part<'_>], pvh: Option<u32>) -> Vec<u8> {
        let headers = parts.len() + 1;
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
        for field in [entry, 64, 0] {
            file.extend(field.to_le_bytes());
        }
        file.extend(0u32.to_le_bytes());
        for field in [64, 56, headers as u16, 0, 0, 0] {
            file.extend(field.to_le_bytes());
        }
        let mut data = pvh.map(note).unwrap_or_default();
        let at = 64 + 56 * headers as u64;
        let mut program = |kind: u32, flags: u32, fields: [u64; 6]| {
            file.extend(kind.to_le_bytes());
            file.extend(flags.to_le_bytes());
            fields.iter().for_each(|f| file.extend(f.to_le_bytes()));
        };
        program(4, 4, [at, 0, 0, data.len() as u64, data.len() as u64, 4]);
        for (vaddr, paddr, bytes, len) in parts {
            let offset = at + data.len() as u64;
            program(1, 5, [offset, *vaddr, *paddr, bytes.len() as u64, *len, 1]);
            data.extend(*bytes);
        }
        file.extend(data);
        file
    }

    /// An ELF32 executable for i386.
    pub(crate) fn elf32(entry: u32, parts: &[Part<'_>], pvh: Option<u32>) -> Vec<u8> {
        let headers = parts.len() + 1;
        let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0\x01\0\0\0".to_vec();
        for field in [entry, 52, 0, 0] {
            file.extend(field.to_le_bytes());
        }
        for field in [52, 32, headers as u16, 0, 0, 0] {
            file.extend(field.to_le_bytes());
        }
        let mut data = pvh.map(note).unwrap_or_default();
        let at = 52 + 32 * headers as u64;
        let mut program = |fields: [u64; 8]| {
            fields.iter().for_each(|f| file.extend((*f as u32).to_le_bytes()));
        };
        program([4, at, 0, 0, data.len() as u64, data.len() as u64, 4, 4]);
        for (vaddr, paddr, bytes, len) in parts {
            let offset = at + data.len() as u64;
            program([1, offset, *vaddr, *paddr, bytes.len() as u64, *len, 5, 1]);
            data.extend(*bytes);
        }
        file.extend(data);
        file
    }

    /// A build identifier note and then the PVH note.
    fn note(entry: u32) -> Vec<u8> {
        let mut note = Vec::new();
        for (kind, name, desc) in [(3u32, b"GNU\0", [7u8; 4]), (18, b"Xen\0", entry.to_le_bytes())] {
            for field in [4, 4, kind] {
                note.extend(field.to_le_bytes());
            }
            note.extend(name);
            note.extend(desc);
        }
        note
    }

    #[test]
    fn elf_of_both_classes_gives_segments_and_note() {
        let parts: [Part<'_>; 2] = [
            (0xc020_0000, 0x20_0000, b"two", 0x2000),
            (0xc010_0000, 0x10_0000, b"one", 3),
        ];
        for file in [
            elf64(0xc010_0002, &parts, Some(0x20_0001)),
            elf32(0xc010_0002, &parts, Some(0x20_0001)),
        ] {
            let elf = parse_elf(&file).unwrap().unwrap();
            assert_eq!(elf.pvh_entry, Some(0x20_0001));
            assert_eq!(elf.image.entry, 0x10_0002);
            let memory = memory(4 << 20);
            memory.write(0x20_1ff0, &[0xff; 32]).unwrap();
            let ranges = elf.image.check(&Ram::of(&memory)).unwrap();
            assert_eq!(ranges, [0x10_0000..0x10_0003, 0x20_0000..0x20_2000]);
            elf.image.write(&memory).unwrap();
            assert_eq!(memory.read_obj::<[u8; 4]>(0x20_0000).unwrap(), *b"two\0");
            assert_eq!(memory.read_obj::<[u8; 3]>(0x10_0000).unwrap(), *b"one");
            assert_eq!(memory.read_obj::<u64>(0x20_1ff8).unwrap(), 0);
            assert_eq!(memory.read_obj::<u8>(0x20_2000).unwrap(), 0xff);
        }
    }

    #[test]
    fn segment_outside_ram_says_what_is_missing() {
        let memory = memory(4 << 20);
        let check = |gpa, len| {
            let file = elf64(gpa, &[(gpa, gpa, b"x", len)], None);
            let elf = parse_elf(&file).unwrap().unwrap();
            elf.image.check(&Ram::of(&memory)).unwrap_err()
        };
        assert!(matches!(
            check(0x30_0000, 0x20_0000),
            BootError::TooLittleMemory {
                need: 0x50_0000,
                have: 0x40_0000
            }
        ));
        assert!(matches!(check(0xfee0_0000, 16), BootError::Segment { .. }));
        assert!(matches!(check(u64::MAX - 3, 16), BootError::Segment { .. }));
        assert!(matches!(check(0x10_0000, u64::MAX), BootError::Segment { .. }));
    }

    #[test]
    fn damaged_elf_is_refused_with_its_reason() {
        let file = elf64(0, &[(0, 0x10_0000, b"abcd", 4), (0, 0x10_0003, b"e", 1)], None);
        assert!(matches!(
            parse_elf(&file),
            Err(BootError::Damaged("its segments overlap"))
        ));
        let file = elf64(0, &[(0, 0x10_0000, b"abcd", 3)], None);
        assert!(matches!(parse_elf(&file), Err(BootError::Damaged(_))));
        let file = elf64(0, &[(0, 0x10_0000, b"abcd", 4)], None);
        assert!(matches!(
            parse_elf(&file[..file.len() - 1]),
            Err(BootError::Truncated(_))
        ));
        assert!(matches!(parse_elf(&file[..80]), Err(BootError::Truncated(_))));
        assert!(matches!(parse_elf(&file[..20]), Err(BootError::Truncated(_))));
        assert!(parse_elf(&file[..5]).unwrap().is_none());
        let mut other = file.clone();
        other[18] = 0xb7;
        assert!(matches!(parse_elf(&other), Err(BootError::NotKernel(_))));
        let many: Vec<Part<'_>> = (0..65).map(|i| (0, i * 16, &b"x"[..], 1)).collect();
        assert!(matches!(parse_elf(&elf64(0, &many, None)), Err(BootError::Damaged(_))));
    }

    #[test]
    fn elf_at_an_odd_address_is_read_too() {
        let mut file = vec![0];
        file.extend(elf64(0x10_0000, &[(0x10_0000, 0x10_0000, b"code", 4)], Some(5)));
        assert_eq!(parse_elf(&file[1..]).unwrap().unwrap().pvh_entry, Some(5));
    }
}
