//! What software that knew a BIOS finds of it: interrupt vectors, the BIOS data area, and an initialised interrupt
//! controller and timer.
//!
//! There are no BIOS services. Each vector leads to a handler that returns, those of the 8259s' interrupts after an end of
//! interrupt, so that a kernel that goes back to real mode survives a timer tick. Of the data area there are the EBDA's
//! segment, the amount of conventional memory, and what a text screen looks like.
//!
//! Spec: IBM PC/AT Technical Reference 6183355, section 5 (interrupt vectors, BIOS data area); Intel 231468-003 (8259A);
//! Intel 231164-005 (8254).

use guest_memory::GuestMemory;
use guest_memory::MemoryError;

use crate::layout::EBDA;
use crate::layout::HANDLERS;
use crate::video::Screen;

/// Segment of the handlers, that of a BIOS.
const BIOS_SEGMENT: u16 = 0xf000;
/// First vector of interrupts 0 to 7.
const MASTER_VECTOR: u8 = 0x08;
/// First vector of interrupts 8 to 15.
const SLAVE_VECTOR: u8 = 0x70;

/// `iret`
const RETURN: [u8; 1] = [0xcf];
/// `push ax; mov al, 20h; out 20h, al; pop ax; iret`
const RETURN_MASTER: [u8; 7] = [0x50, 0xb0, 0x20, 0xe6, 0x20, 0x58, 0xcf];
/// `push ax; mov al, 20h; out 0a0h, al; out 20h, al; pop ax; iret`
const RETURN_SLAVE: [u8; 9] = [0x50, 0xb0, 0x20, 0xe6, 0xa0, 0xe6, 0x20, 0x58, 0xcf];
/// Distance of the handlers.
const HANDLER_LEN: u16 = 16;

/// BIOS data area: segment of the EBDA.
const BDA_EBDA_SEGMENT: u64 = 0x40e;
/// BIOS data area: KiB of conventional memory.
const BDA_MEMORY_KIB: u64 = 0x413;

/// BIOS data area: video mode, columns and bytes of a page; shape of the cursor and port of the CRT controller; rows less
/// one, and lines of a character. All for mode 3.
#[rustfmt::skip]
const BDA_VIDEO: [(u64, &[u8]); 3] = [
    (0x449, &[3, 80, 0, 0x00, 0x10]),
    (0x460, &[0x07, 0x06, 0, 0xd4, 0x03]),
    (0x484, &[24, 16, 0, 0x60, 0xf9]),
];

/// Port writes, in order, that the board does after each reset, before the first instruction of a kernel: the 8259s at
/// vectors 08h and 70h with the interrupts enabled that a BIOS handles, and timer 0 at 18.2 Hz.
#[rustfmt::skip]
pub const PORT_WRITES: [(u16, u8); 13] = [
    // ICW1 to ICW4: cascade on interrupt 2, 8086 mode.
    (0x20, 0x11), (0x21, MASTER_VECTOR), (0x21, 1 << 2), (0x21, 0x01),
    (0xa0, 0x11), (0xa1, SLAVE_VECTOR),  (0xa1, 2),      (0xa1, 0x01),
    // Masks: timer, keyboard, cascade and diskette; clock, mouse, coprocessor and disk.
    (0x21, 0xb8), (0xa1, 0x8e),
    // Counter 0, both bytes, mode 3, 65536.
    (0x43, 0x36), (0x40, 0x00), (0x40, 0x00),
];

/// Writes vectors, handlers and data areas.
pub(crate) fn write(memory: &GuestMemory, screen: &Screen) -> Result<(), MemoryError> {
    let handlers: [&[u8]; 3] = [&RETURN, &RETURN_MASTER, &RETURN_SLAVE];
    for (address, code) in (HANDLERS..).step_by(HANDLER_LEN.into()).zip(handlers) {
        memory.write(address, code)?;
    }
    let vectors: Vec<u8> = (0..=u8::MAX).flat_map(|vector| far_pointer(handler(vector))).collect();
    memory.write(0, &vectors)?;
    let (segment, kib) = ((EBDA >> 4) as u16, (EBDA >> 10) as u16);
    memory.write(BDA_EBDA_SEGMENT, &segment.to_le_bytes())?;
    memory.write(BDA_MEMORY_KIB, &kib.to_le_bytes())?;
    if *screen == Screen::Text {
        for (address, fields) in BDA_VIDEO {
            memory.write(address, fields)?;
        }
    }
    memory.write(EBDA, &[1])
}

/// Number of the handler of a vector.
fn handler(vector: u8) -> u16 {
    match vector & !7 {
        MASTER_VECTOR => 1,
        SLAVE_VECTOR => 2,
        _ => 0,
    }
}

/// Offset and segment of a handler.
fn far_pointer(handler: u16) -> [u8; 4] {
    let offset = (HANDLERS as u16) + handler * HANDLER_LEN;
    (u32::from(BIOS_SEGMENT) << 16 | u32::from(offset)).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::tests::memory;

    #[test]
    fn data_area_names_the_ebda() {
        let memory = memory(1 << 20);
        write(&memory, &Screen::None).unwrap();
        assert_eq!(memory.read_obj::<u16>(0x40e).unwrap(), 0x9fc0);
        assert_eq!(memory.read_obj::<u16>(0x413).unwrap(), 639);
    }

    #[test]
    fn every_vector_leads_to_its_handler() {
        let memory = memory(1 << 20);
        write(&memory, &Screen::None).unwrap();
        for vector in 0..256 {
            let [offset, segment] = memory.read_obj::<[u16; 2]>(vector * 4).unwrap();
            let code: [u8; 9] = memory.read_obj(u64::from(segment) * 16 + u64::from(offset)).unwrap();
            let expected: &[u8] = match vector {
                0x08..=0x0f => &RETURN_MASTER,
                0x70..=0x77 => &RETURN_SLAVE,
                _ => &RETURN,
            };
            assert!(code.starts_with(expected), "{vector:#x}");
        }
    }
}
