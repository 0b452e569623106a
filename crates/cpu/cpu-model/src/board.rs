//! What a running vCPU asks of the machine around it.

use std::time::Duration;

use device_model::VmTime;
use device_model::Width;

/// The board refuses an MSR access: the guest gets #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrFault;

/// Callbacks of a running vCPU, made on its own thread with no lock held. `cpu` is the vCPU's index.
pub trait CpuBoard: Sync {
    /// Reads an I/O port; the value is in the low bits.
    fn pio_read(&self, cpu: u32, port: u16, width: Width) -> u32;

    /// Writes an I/O port.
    fn pio_write(&self, cpu: u32, port: u16, width: Width, value: u32);

    /// Reads memory that is not mapped as RAM or ROM. The access never crosses a page. The board routes the page of the
    /// local APIC to that of `cpu`.
    fn mmio_read(&self, cpu: u32, gpa: u64, width: Width) -> u64;

    /// Writes memory that is not mapped as RAM or ROM.
    fn mmio_write(&self, cpu: u32, gpa: u64, width: Width, value: u64);

    /// Acknowledges the highest-priority interrupt that `cpu` can take now (local APIC first, then a PIC behind
    /// LINT0), and returns its vector. `None` when the request has gone away.
    fn take_interrupt(&self, cpu: u32) -> Option<u8>;

    /// Reads an MSR of the local APIC: `IA32_APIC_BASE` (1Bh), `IA32_TSC_DEADLINE` (6E0h), x2APIC (800h-8FFh),
    /// `MSR_KVM_PV_EOI_EN` (4B564D04h).
    ///
    /// # Errors
    /// [`MsrFault`] where the register does not exist in the APIC's mode.
    fn apic_read_msr(&self, cpu: u32, msr: u32) -> Result<u64, MsrFault>;

    /// Writes an MSR of the local APIC.
    ///
    /// # Errors
    /// [`MsrFault`] where the register does not exist, is read-only, or a reserved bit is set.
    fn apic_write_msr(&self, cpu: u32, msr: u32, value: u64) -> Result<(), MsrFault>;

    /// CR8: bits 7-4 of the local APIC's task priority register.
    fn apic_cr8(&self, cpu: u32) -> u8;

    /// Writes CR8. An interrupt that becomes deliverable is signalled as usual.
    fn set_apic_cr8(&self, cpu: u32, value: u8);

    /// Sends an interrupt to the processors with the APIC ids `first` + *n*, for each bit *n* of `set`. `icr` is laid out as
    /// the low half of the interrupt command register: vector, delivery mode, level and trigger mode count. Returns how many
    /// of the processors are there; `None` on a board without interprocessor interrupts.
    fn send_ipis(&self, cpu: u32, first: u32, set: u128, icr: u32) -> Option<u32> {
        let _ = (cpu, first, set, icr);
        None
    }

    /// Takes the processor with this APIC id out of HLT: raises [`Signal::Unhalt`](crate::Signal::Unhalt) there. Nothing
    /// happens where there is none.
    fn unhalt(&self, apic_id: u32) {
        let _ = apic_id;
    }

    /// How long the calling vCPU's thread has had to wait for a processor of the host, since its start.
    fn stolen(&self, cpu: u32) -> Duration {
        let _ = cpu;
        Duration::ZERO
    }

    /// A random number for RDRAND and RDSEED: from the host kernel's generator, which never runs dry. `None` when there is
    /// none at the moment.
    fn random(&self) -> Option<u64> {
        let mut bytes = [0; 8];
        let flags = rustix::rand::GetRandomFlags::NONBLOCK;
        let good = rustix::rand::getrandom(&mut bytes, flags).is_ok_and(|n| n == bytes.len());
        good.then(|| u64::from_le_bytes(bytes))
    }

    /// Guest time. The TSC counts from here.
    fn now(&self) -> VmTime;

    /// The date at which guest time was zero, as the time since 1970: the guest's date is this and [`Self::now`]. 1970 on a
    /// board that has no date.
    fn boot_date(&self) -> Duration {
        Duration::ZERO
    }
}
