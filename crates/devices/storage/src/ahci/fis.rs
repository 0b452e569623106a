//! Frame information structures, as they lie in memory.
//!
//! Spec: SATA 3.3 §10.5; AHCI 1.3.1 §4.2.1 (received FISes).
use crate::ata::Taskfile;
use crate::bytes;

/// Register FIS from the host.
pub(super) const FROM_HOST: u8 = 0x27;
/// Where received FISes go.
pub(super) const PIO_SETUP_AT: u64 = 0x20;
pub(super) const REGISTERS_AT: u64 = 0x40;
pub(super) const SET_BITS_AT: u64 = 0x58;

const INTERRUPT: u8 = 1 << 6;
const TO_HOST: u8 = 1 << 5;

/// The registers that a FIS from the host writes.
pub(super) fn taskfile(fis: &[u8], device: &Taskfile) -> Taskfile {
    let pair = |now, before| [bytes::at(fis, now), bytes::at(fis, before)];
    Taskfile {
        features: pair(3, 11),
        count: pair(12, 13),
        low: pair(4, 8),
        mid: pair(5, 9),
        high: pair(6, 10),
        device: bytes::at(fis, 7),
        ..*device
    }
}

/// What the register FIS and the PIO setup FIS have in common.
fn registers(kind: u8, flags: u8, task: &Taskfile) -> [u8; 20] {
    let Taskfile {
        count, low, mid, high, ..
    } = *task;
    let mut fis = [0; 20];
    let head = [
        kind,
        flags,
        task.status,
        task.error,
        low[0],
        mid[0],
        high[0],
        task.device,
    ];
    bytes::put(&mut fis, 0, &head);
    bytes::put(&mut fis, 8, &[low[1], mid[1], high[1], 0, count[0], count[1]]);
    fis
}

/// Register FIS towards the host, with or without an interrupt.
pub(super) fn to_host(task: &Taskfile, interrupt: bool) -> [u8; 20] {
    registers(0x34, if interrupt { INTERRUPT } else { 0 }, task)
}

/// PIO setup FIS of the last block, with the status that follows it.
pub(super) fn pio_setup(task: &Taskfile, read: bool, len: u16) -> [u8; 20] {
    let during = Taskfile {
        status: task.status | crate::ata::status::DRQ,
        ..*task
    };
    let mut fis = registers(0x5F, INTERRUPT | if read { TO_HOST } else { 0 }, &during);
    bytes::put(&mut fis, 15, &[task.status]);
    bytes::put(&mut fis, 16, &len.to_le_bytes());
    fis
}

/// Set device bits FIS: these tags are done.
pub(super) fn set_bits(task: &Taskfile, done: u32) -> [u8; 8] {
    let [a, b, c, d] = done.to_le_bytes();
    // BSY and DRQ do not travel.
    [0xA1, INTERRUPT, task.status & 0x77, task.error, a, b, c, d]
}
