//! FADT: the fixed ACPI hardware, the reset register, and which legacy devices there are.
//!
//! The power button and wake by the real-time clock are fixed features, the sleep button is absent. Both forms of every
//! block's address are given, for operating systems of before and after ACPI 2.0.
//!
//! Spec: ACPI 6.5 §5.2.9.

use acpi_tables::Aml;
use acpi_tables::fadt::FADTBuilder;
use acpi_tables::fadt::Flags;
use acpi_tables::fadt::PmProfile;
use acpi_tables::gas::AccessSize;
use acpi_tables::gas::AddressSpace;
use acpi_tables::gas::GAS;

use super::AcpiInput;
use super::OEM_ID;
use super::OEM_REVISION;
use super::OEM_TABLE_ID;

/// Interrupt of ACPI events.
pub(super) const SCI: u16 = 9;
/// Reset control register of the chipset.
const RESET_PORT: u64 = 0xcf9;
/// Written there: a full reset through the processor's RESET#.
const RESET_VALUE: u8 = 6;
/// Worst latency of C2 or C3 that means that the state does not exist.
const NO_POWER_STATE: u16 = 0xfff;
/// CMOS byte of the century.
const CENTURY: u8 = 0x32;
/// Minor version with major version 6: ACPI 6.3.
const MINOR_VERSION: u8 = 3;

/// IA-PC boot architecture flags (§5.2.9.3).
mod boot_arch {
    /// There are devices on an ISA bus.
    pub(super) const LEGACY_DEVICES: u16 = 1 << 0;
    /// Ports 60h and 64h are a keyboard controller.
    pub(super) const HAS_8042: u16 = 1 << 1;
    /// There is no VGA to probe.
    pub(super) const NO_VGA: u16 = 1 << 2;
}

/// An I/O block of `len` bytes.
fn block(port: u16, len: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, len * 8, 0, access, port.into())
}

/// Where the table has addresses of others, and in how many bytes: FIRMWARE_CTRL, DSDT, X_DSDT.
pub(super) const POINTERS: [(usize, usize); 3] = [(36, 4), (40, 4), (140, 8)];

/// The table, with the addresses of those that it refers to.
pub(super) fn build(input: &AcpiInput, facs: u32, dsdt: u32) -> Vec<u8> {
    let pm = input.pm;
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::Unspecified)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .firmware_ctrl_32(facs)
        .dsdt_64(dsdt.into())
        .gpe_info(pm.gpe0.into(), 0, pm.gpe0_len, 0, 0);
    fadt.dsdt = dsdt.into();
    fadt.fadt_minor_version = MINOR_VERSION;
    fadt.sci_int = SCI.into();
    fadt.pm1a_evt_blk = u32::from(pm.event).into();
    fadt.pm1a_cnt_blk = u32::from(pm.control).into();
    fadt.pm_tmr_blk = u32::from(pm.timer).into();
    (fadt.pm1_evt_len, fadt.pm1_cnt_len, fadt.pm_tmr_len) = (4, 2, 4);
    fadt.x_pm1a_evt_blk = block(pm.event, 4, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = block(pm.control, 2, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = block(pm.timer, 4, AccessSize::DwordAccess);
    fadt.x_gpe0_blk = block(pm.gpe0, pm.gpe0_len, AccessSize::ByteAccess);
    fadt.p_lvl2_lat = NO_POWER_STATE.into();
    fadt.p_lvl3_lat = NO_POWER_STATE.into();
    fadt.century = CENTURY;
    if let Some(smi) = pm.smi {
        fadt.smi_cmd = u32::from(smi.port).into();
        (fadt.acpi_enable, fadt.acpi_disable) = (smi.enable, smi.disable);
    }
    let keyboard = if input.i8042 { boot_arch::HAS_8042 } else { 0 };
    let no_vga = if input.vga { 0 } else { boot_arch::NO_VGA };
    fadt.iapc_boot_arch = (boot_arch::LEGACY_DEVICES | no_vga | keyboard).into();
    fadt.reset_reg = GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    let mut bytes = Vec::new();
    fadt.finalize().to_aml_bytes(&mut bytes);
    bytes
}
