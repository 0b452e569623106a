//! What a running vCPU sees of the board: ports, memory-mapped registers, its local APIC, the time and the date.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chipset::cmos_rtc::CmosRtc;
use chipset::lapic::Lapic;
use cpu_model::CpuBoard;
use cpu_model::MsrFault;
use device_model::At;
use device_model::Bus;
use device_model::Clock;
use device_model::Slot;
use device_model::VmTime;
use device_model::Width;
use guest_memory::GuestMemory;
use guest_memory::PAGE_MASK;
use pci::Root;

use crate::HostClock;
use crate::fabric::Fabric;
use crate::stolen;

/// CMOS byte: why the processor was reset.
const CMOS_SHUTDOWN: u64 = 0x0f;
/// It was reset to come back from S3.
const SHUTDOWN_RESUME: u64 = 0xfe;
/// No page: the local APIC is not memory-mapped.
const NOWHERE: u64 = u64::MAX;

/// The board's face towards the vCPUs.
pub(crate) struct Board {
    pub(crate) pio: Arc<Bus>,
    pub(crate) mmio: Arc<Bus>,
    memory: Arc<GuestMemory>,
    /// The PCI buses, on a board that has them.
    pci: OnceLock<Arc<Root>>,
    pub(crate) fabric: Arc<Fabric>,
    clock: Arc<HostClock>,
    /// Knows the date.
    rtc: OnceLock<Arc<Slot<CmosRtc>>>,
    /// Address of each processor's local APIC page, so that other accesses need not ask the chip.
    lapic_page: Vec<AtomicU64>,
}

impl Board {
    pub(crate) fn new(fabric: Arc<Fabric>, clock: Arc<HostClock>, memory: Arc<GuestMemory>, cpus: u32) -> Self {
        Self {
            pio: Arc::default(),
            mmio: Arc::default(),
            memory,
            pci: OnceLock::new(),
            fabric,
            clock,
            rtc: OnceLock::new(),
            lapic_page: (0..cpus).map(|_| AtomicU64::new(NOWHERE)).collect(),
        }
    }

    /// The RTC is built after the board that the other devices belong to.
    pub(crate) fn set_rtc(&self, rtc: Arc<Slot<CmosRtc>>) {
        // A plan has one.
        let _ = self.rtc.set(rtc);
    }

    /// Tells firmware that the machine comes back from a suspend to RAM: the shut-down status in the CMOS memory.
    pub(crate) fn note_resume(&self) {
        self.pio.write(0x70, Width::Byte, CMOS_SHUTDOWN);
        self.pio.write(0x71, Width::Byte, SHUTDOWN_RESUME);
    }

    /// Connects the PCI buses.
    pub(crate) fn set_pci(&self, root: Arc<Root>) {
        // A plan has one root.
        let _ = self.pci.set(root);
    }

    /// The PCI buses.
    pub(crate) fn pci(&self) -> Option<&Arc<Root>> {
        self.pci.get()
    }

    /// The PCI buses, if a port may be one of theirs.
    fn pci_at(&self, port: u16) -> Option<&Arc<Root>> {
        (port & !7 == pci::root::ADDRESS_PORT).then(|| self.pci.get())?
    }

    /// The PCI buses and where in their memory-mapped configuration space `gpa` is, if it is there.
    fn ecam_at(&self, gpa: u64) -> Option<(&Arc<Root>, u64)> {
        let root = self.pci.get()?;
        Some((root, root.ecam().offset(gpa)?))
    }

    /// Looks again where every local APIC sits: after a reset or restore.
    pub(crate) fn refresh_lapic_pages(&self) {
        for cpu in 0..self.lapic_page.len() {
            if let Ok(cpu) = u32::try_from(cpu) {
                self.refresh_lapic_page(cpu);
            }
        }
    }

    fn refresh_lapic_page(&self, cpu: u32) {
        let page = self.fabric.lapic(cpu).and_then(|lapic| lapic.lock().base());
        if let Some(cell) = self.lapic_page.get(cpu as usize) {
            cell.store(page.unwrap_or(NOWHERE), Ordering::Release);
        }
    }

    /// The local APIC of `cpu`, if `gpa` is in its page.
    fn lapic_at(&self, cpu: u32, gpa: u64) -> Option<&Arc<Slot<Lapic>>> {
        let page = self.lapic_page.get(cpu as usize)?.load(Ordering::Acquire);
        (page == gpa & !PAGE_MASK).then(|| self.fabric.lapic(cpu))?
    }

    /// Calls `f` on the local APIC of `cpu`, then does to others what the APIC wants done.
    fn with_lapic<R>(&self, cpu: u32, f: impl FnOnce(&mut Lapic) -> R) -> Option<R> {
        let (result, effects) = self.fabric.lapic(cpu)?.with(|lapic| {
            let result = f(lapic);
            (result, lapic.take_effects())
        });
        self.fabric.carry_out(cpu, &effects);
        Some(result)
    }
}

/// Reads the APIC page. Registers are 32 bits wide at 16-byte steps; narrower reads get a part, wider ones two.
fn read_lapic(lapic: &mut Lapic, offset: u64, width: Width) -> u64 {
    use device_model::Registers;
    let dword = |lapic: &mut Lapic, offset: u64| {
        let at = At { region: 0, offset };
        lapic.read(at, Width::Dword).unwrap_or(0) & Width::Dword.ones()
    };
    let low = dword(lapic, offset & !3);
    let value = match offset & 3 {
        0 if width != Width::Qword => low,
        inside => (low | dword(lapic, (offset & !3) + 4) << 32) >> (inside * 8),
    };
    value & width.ones()
}

impl CpuBoard for Board {
    fn pio_read(&self, _cpu: u32, port: u16, width: Width) -> u32 {
        if let Some(value) = self.pci_at(port).and_then(|root| root.read_port(port, width)) {
            return value;
        }
        self.pio.read(port.into(), width) as u32
    }

    fn pio_write(&self, _cpu: u32, port: u16, width: Width, value: u32) {
        if self
            .pci_at(port)
            .is_some_and(|root| root.write_port(port, width, value))
        {
            return;
        }
        self.pio.write(port.into(), width, value.into());
    }

    fn mmio_read(&self, cpu: u32, gpa: u64, width: Width) -> u64 {
        let gpa = self.memory.on_bus(gpa);
        if let Some(lapic) = self.lapic_at(cpu, gpa) {
            return read_lapic(&mut lapic.lock(), gpa & PAGE_MASK, width);
        }
        match self.ecam_at(gpa) {
            Some((root, offset)) => root.read_ecam(offset, width),
            None => self.mmio.read(gpa, width),
        }
    }

    fn mmio_write(&self, cpu: u32, gpa: u64, width: Width, value: u64) {
        let gpa = self.memory.on_bus(gpa);
        if self.lapic_at(cpu, gpa).is_none() {
            return match self.ecam_at(gpa) {
                Some((root, offset)) => root.write_ecam(offset, width, value),
                None => self.mmio.write(gpa, width, value),
            };
        }
        // Only aligned 32-bit writes are defined (SDM vol. 3 §11.4.1). Of a wider one the low half counts; a narrower
        // one is dropped.
        let offset = gpa & PAGE_MASK;
        if width >= Width::Dword && offset & 3 == 0 {
            self.with_lapic(cpu, |lapic| {
                use device_model::Registers;
                let at = At { region: 0, offset };
                let _ = lapic.write(at, Width::Dword, value & Width::Dword.ones());
            });
        }
    }

    fn take_interrupt(&self, cpu: u32) -> Option<u8> {
        self.fabric.take_interrupt(cpu)
    }

    fn apic_read_msr(&self, cpu: u32, msr: u32) -> Result<u64, MsrFault> {
        let lapic = self.fabric.lapic(cpu).ok_or(MsrFault)?;
        lapic.lock().read_msr(msr)
    }

    fn apic_write_msr(&self, cpu: u32, msr: u32, value: u64) -> Result<(), MsrFault> {
        let result = self.with_lapic(cpu, |lapic| lapic.write_msr(msr, value));
        if msr == x86_isa::msr::APIC_BASE {
            self.refresh_lapic_page(cpu);
        }
        result.unwrap_or(Err(MsrFault))
    }

    fn apic_cr8(&self, cpu: u32) -> u8 {
        self.fabric.lapic(cpu).map_or(0, |lapic| lapic.lock().cr8())
    }

    fn set_apic_cr8(&self, cpu: u32, value: u8) {
        self.with_lapic(cpu, |lapic| lapic.set_cr8(value));
    }

    fn send_ipis(&self, _cpu: u32, first: u32, set: u128, icr: u32) -> Option<u32> {
        Some(self.fabric.send_ipis(first, set, icr))
    }

    fn unhalt(&self, apic_id: u32) {
        // APIC ids are the processors' numbers.
        self.fabric.unhalt(apic_id);
    }

    fn stolen(&self, _cpu: u32) -> Duration {
        stolen::by_others()
    }

    fn now(&self) -> VmTime {
        self.clock.now()
    }

    fn boot_date(&self) -> Duration {
        self.rtc.get().map_or(Duration::ZERO, |rtc| rtc.lock().boot_date())
    }
}
