//! Registers, status bytes and commands of the 82077AA.

use bitfield_struct::bitfield;

/// DOR, digital output (RW).
#[bitfield(u8)]
pub(super) struct Dor {
    /// DRIVE SEL.
    #[bits(2)]
    pub(super) drive: u8,
    /// RESET#: low holds the controller in reset.
    pub(super) not_reset: bool,
    /// DMAGATE#: interrupts and DMA requests reach the board.
    pub(super) gate: bool,
    /// MOT EN0 to MOT EN3.
    #[bits(4)]
    pub(super) motors: u8,
}

/// MSR, main status (RO).
#[bitfield(u8)]
pub(super) struct Msr {
    /// DRV0 to DRV3 BUSY: the drive seeks.
    #[bits(4)]
    pub(super) seeking: u8,
    /// CMD BSY: a command is under way.
    pub(super) busy: bool,
    /// NON DMA: bytes of the execution phase go through the FIFO.
    pub(super) non_dma: bool,
    /// DIO: the next byte is to be read.
    pub(super) to_host: bool,
    /// RQM: a byte may be transferred.
    pub(super) ready: bool,
}

/// First byte of a command.
#[bitfield(u8)]
pub(super) struct Opcode {
    #[bits(5)]
    pub(super) code: u8,
    /// SK: skip deleted data.
    pub(super) skip: bool,
    /// MFM.
    pub(super) mfm: bool,
    /// MT: both sides of the cylinder.
    pub(super) multi_track: bool,
}

/// Codes of commands, the modifiers left out.
pub(super) mod code {
    pub(in super::super) const READ_TRACK: u8 = 0x02;
    pub(in super::super) const SPECIFY: u8 = 0x03;
    pub(in super::super) const SENSE_DRIVE: u8 = 0x04;
    pub(in super::super) const WRITE: u8 = 0x05;
    pub(in super::super) const READ: u8 = 0x06;
    pub(in super::super) const RECALIBRATE: u8 = 0x07;
    pub(in super::super) const SENSE_INTERRUPT: u8 = 0x08;
    pub(in super::super) const WRITE_DELETED: u8 = 0x09;
    pub(in super::super) const READ_ID: u8 = 0x0A;
    pub(in super::super) const READ_DELETED: u8 = 0x0C;
    pub(in super::super) const FORMAT: u8 = 0x0D;
    pub(in super::super) const DUMP: u8 = 0x0E;
    pub(in super::super) const SEEK: u8 = 0x0F;
    pub(in super::super) const VERSION: u8 = 0x10;
    pub(in super::super) const PERPENDICULAR: u8 = 0x12;
    pub(in super::super) const CONFIGURE: u8 = 0x13;
    pub(in super::super) const LOCK: u8 = 0x14;
    pub(in super::super) const VERIFY: u8 = 0x16;
}

/// Bytes of a command, the first included; one of unknown commands.
pub(super) fn command_len(opcode: Opcode) -> usize {
    match opcode.code() {
        code::READ_TRACK | code::WRITE | code::READ | code::WRITE_DELETED | code::READ_DELETED | code::VERIFY => 9,
        code::FORMAT => 6,
        code::CONFIGURE => 4,
        code::SPECIFY | code::SEEK => 3,
        code::SENSE_DRIVE | code::RECALIBRATE | code::READ_ID | code::PERPENDICULAR => 2,
        _ => 1,
    }
}

/// ST0.
pub(super) mod st0 {
    /// Ended abnormally.
    pub(in super::super) const ABNORMAL: u8 = 0x40;
    /// No such command.
    pub(in super::super) const INVALID: u8 = 0x80;
    /// The drive's state changed while polling.
    pub(in super::super) const POLLED: u8 = 0xC0;
    /// SE: the seek has ended.
    pub(in super::super) const SEEK_END: u8 = 0x20;
    /// EC: no track 0.
    pub(in super::super) const EQUIPMENT_CHECK: u8 = 0x10;
    /// NR: the drive is not ready.
    pub(in super::super) const NOT_READY: u8 = 0x08;
}

/// ST1.
pub(super) mod st1 {
    /// EN: it went on beyond the last sector.
    pub(in super::super) const END: u8 = 0x80;
    /// DE: the data are bad.
    pub(in super::super) const DATA_ERROR: u8 = 0x20;
    /// OR: the host was too slow.
    pub(in super::super) const OVERRUN: u8 = 0x10;
    /// ND: no such sector.
    pub(in super::super) const NO_DATA: u8 = 0x04;
    /// NW: write-protected.
    pub(in super::super) const NOT_WRITABLE: u8 = 0x02;
    /// MA: no address mark at this data rate.
    pub(in super::super) const NO_MARK: u8 = 0x01;
}

/// ST2.
pub(super) mod st2 {
    /// WC: another cylinder.
    pub(in super::super) const WRONG_CYLINDER: u8 = 0x10;
}

/// ST3.
pub(super) mod st3 {
    /// WP: write-protected.
    pub(in super::super) const PROTECTED: u8 = 0x40;
    /// Always one: ready, two sides.
    pub(in super::super) const ALWAYS: u8 = 0x28;
    /// T0: the head is on track 0.
    pub(in super::super) const TRACK_0: u8 = 0x10;
}

/// What VERSION says.
pub(super) const ENHANCED: u8 = 0x90;
/// SPECIFY's last byte: bytes go through the FIFO.
pub(super) const ND: u8 = 1;
/// DIR: the medium may have changed.
pub(super) const DSKCHG: u8 = 0x80;
/// LOCK: the command's bit, and that of its result.
pub(super) const LOCK: u8 = 0x80;
pub(super) const LOCKED: u8 = 0x10;
