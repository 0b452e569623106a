//! Chipset configuration registers of an ICH9: those of its root complex register block that guests look for.
//!
//! The others read as zero. The routing of the chipset's own interrupt pins is fixed to what it is after a reset.
//!
//! Spec: Intel 316972 (ICH9) §10.1 (chipset configuration registers).

/// Bytes of the block.
pub(super) const LEN: u64 = 0x4000;
/// GCS: the watchdog does not reset the machine.
const NO_REBOOT: u32 = 1 << 5;

/// Registers: offset, value after reset, writable bits.
#[rustfmt::skip]
const REGISTERS: [(u64, u32, u32); 12] = [
    (0x3140, 0x0000_3210, 0), // D31IR, and above it nothing: INTA#-INTD# are PIRQA#-PIRQD#
    (0x3144, 0x0000_3210, 0), // D30IR, D29IR
    (0x3148, 0x3210_3210, 0), // D28IR, D27IR
    (0x314c, 0x3210_3210, 0), // D26IR, D25IR
    (0x31fc, 0x0300_0000, 0), // OIC: the I/O APIC is at FEC0_0000h
    (0x3400, 0x0000_0000, 0x0000_001f), // RC, real-time clock
    (0x3404, 0x0000_0080, 0), // HPTC: the event timer is at FED0_0000h
    (GCS,    NO_REBOOT,   0x0000_0ff6), // GCS, general control and status
    (0x3414, 0x0000_0000, 0x0000_0007), // BUC, backed-up control
    (0x3418, 0x0000_0000, 0), // FD: no function can be disabled
    (0x341c, 0x0000_0000, 0xffff_ffff), // CG, clock gating
    (0x3420, 0x0000_0000, 0), // PDSW
];
pub(super) const GCS: u64 = 0x3410;
pub(super) const COUNT: usize = REGISTERS.len();

/// The registers' values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Config(pub(super) [u32; COUNT]);

impl Config {
    pub(super) const fn new() -> Self {
        let mut values = [0; COUNT];
        let mut index = 0;
        while index < COUNT {
            #[expect(clippy::indexing_slicing, reason = "evaluated when it is compiled")]
            {
                values[index] = REGISTERS[index].1;
            }
            index += 1;
        }
        Self(values)
    }

    fn index(offset: u64) -> Option<usize> {
        REGISTERS.iter().position(|(at, _, _)| *at == offset & !3)
    }

    /// The byte at `offset`.
    pub(super) fn read(&self, offset: u64) -> u8 {
        let value = Self::index(offset).and_then(|index| self.0.get(index));
        let bytes = value.copied().unwrap_or(0).to_le_bytes();
        let inside = usize::try_from(offset & 3).unwrap_or(0);
        bytes.get(inside).copied().unwrap_or(0)
    }

    pub(super) fn write(&mut self, offset: u64, byte: u8) {
        let Some(index) = Self::index(offset) else {
            return;
        };
        if let Some(value) = self.0.get_mut(index)
            && let Some((_, _, writable)) = REGISTERS.get(index)
        {
            let shift = 8 * (offset & 3);
            let mask = 0xff << shift & writable;
            *value = *value & !mask | u32::from(byte) << shift & mask;
        }
    }

    /// Takes saved values back: the bits that can differ.
    pub(super) fn restore(&mut self, saved: &[u32; COUNT]) {
        for ((value, saved), (_, reset, writable)) in self.0.iter_mut().zip(saved).zip(REGISTERS) {
            *value = reset & !writable | saved & writable;
        }
    }

    /// Whether the watchdog resets the machine.
    pub(super) fn reboots(&self) -> bool {
        let gcs = Self::index(GCS).and_then(|index| self.0.get(index));
        gcs.is_some_and(|gcs| gcs & NO_REBOOT == 0)
    }
}
