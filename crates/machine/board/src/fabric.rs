//! The interrupt fabric of a PC: who is wired to whom.
//!
//! ```text
//!  ISA lines, GSIs ──┬──► 8259 pair ──INTR──► LINT0 of the boot processor
//!                    └──► I/O APIC ──┐
//!  MSI ──────────────────────────────┼──► local APICs (by destination)
//!  IPIs ─────────────────────────────┘        │ EOI
//!                       I/O APIC ◄────────────┘
//! ```
//!
//! Lines are numbered by global system interrupt (GSI), which is the I/O APIC's pin. ISA line 0 is GSI 2, as the MADT
//! says; GSI 0 goes nowhere. Several sources of one line are OR-ed.
//!
//! Lock order: device → line table → 8259 or I/O APIC → local APIC. A local APIC's lock is never held while another lock
//! of these is taken: what it wants done to others is collected as effects and carried out after it is free.
//!
//! Spec: Intel SDM vol. 3 §11.6-11.8 (IPIs, lowest priority, EOI broadcast), §11.11 (message format); ACPI 6.5 §5.2.12.5.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::Weak;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use chipset::ioapic::IoApic;
use chipset::lapic::DeliveryMode;
use chipset::lapic::Effects;
use chipset::lapic::Interrupt;
use chipset::lapic::Ipi;
use chipset::lapic::Lapic;
use chipset::lapic::Shorthand;
use chipset::pic::DualPic;
use cpu_model::Signal;
use cpu_model::Signals;
use device_model::IrqLine;
use device_model::LineTarget;
use device_model::MsiMessage;
use device_model::MsiSink;
use device_model::Slot;

/// Number of GSIs: the pins of the one I/O APIC.
pub(crate) const GSIS: usize = 24;
/// ISA lines.
pub(crate) const ISA_LINES: u32 = 16;
/// Destination of a broadcast.
const EVERYONE: u32 = u32::MAX;
/// GSI of ISA line 0; the 8259's pin of that number is the cascade, so it is free.
const TIMER_GSI: u32 = 2;

/// The wires between interrupt sources, controllers and processors.
pub(crate) struct Fabric {
    pic: OnceLock<Arc<Slot<DualPic>>>,
    ioapic: OnceLock<Arc<Slot<IoApic>>>,
    /// By processor.
    signals: Vec<Arc<Signals>>,
    /// By processor.
    lapics: Box<[OnceLock<Arc<Slot<Lapic>>>]>,
    /// Number of sources that hold each line high.
    high: Mutex<[u32; GSIS]>,
    /// Where the search for the lowest priority begins: equals take turns.
    turn: AtomicUsize,
}

impl Fabric {
    /// A fabric for the processors behind `signals`, without controllers: what arrives is lost until they are there.
    pub(crate) fn new(signals: Vec<Arc<Signals>>) -> Arc<Self> {
        Arc::new(Self {
            pic: OnceLock::new(),
            ioapic: OnceLock::new(),
            lapics: signals.iter().map(|_| OnceLock::new()).collect(),
            signals,
            high: Mutex::new([0; GSIS]),
            turn: AtomicUsize::new(0),
        })
    }

    /// Connects the 8259 pair.
    pub(crate) fn set_pic(&self, pic: Arc<Slot<DualPic>>) {
        let _ = self.pic.set(pic);
    }

    /// Connects the I/O APIC.
    pub(crate) fn set_ioapic(&self, ioapic: Arc<Slot<IoApic>>) {
        let _ = self.ioapic.set(ioapic);
    }

    /// Connects the local APIC of the next processor.
    pub(crate) fn add_lapic(&self, lapic: Arc<Slot<Lapic>>) {
        if let Some(free) = self.lapics.iter().find(|cell| cell.get().is_none()) {
            let _ = free.set(lapic);
        }
    }

    /// The local APIC of processor `cpu`.
    pub(crate) fn lapic(&self, cpu: u32) -> Option<&Arc<Slot<Lapic>>> {
        self.lapics.get(cpu as usize)?.get()
    }

    /// All local APICs from that of processor `first` on, then those before it.
    fn lapics_from(&self, first: usize) -> impl Iterator<Item = &Arc<Slot<Lapic>>> {
        let (before, after) = self.lapics.split_at_checked(first).unwrap_or_default();
        after.iter().chain(before).filter_map(OnceLock::get)
    }

    /// A line into ISA interrupt `irq`.
    pub(crate) fn isa(self: &Arc<Self>, irq: u32) -> IrqLine {
        self.gsi(if irq == 0 { TIMER_GSI } else { irq })
    }

    /// A line into GSI `gsi`.
    pub(crate) fn gsi(self: &Arc<Self>, gsi: u32) -> IrqLine {
        IrqLine::new(Arc::new(GsiInput(Arc::downgrade(self))), gsi)
    }

    /// The line that the 8259 pair's INTR output drives.
    pub(crate) fn pic_output(self: &Arc<Self>) -> IrqLine {
        IrqLine::new(Arc::new(LocalInput(Arc::downgrade(self))), 0)
    }

    /// Where messages go. Holds the fabric weakly, since the I/O APIC is one of the senders.
    pub(crate) fn messages(self: &Arc<Self>) -> Arc<dyn MsiSink> {
        Arc::new(Messages(Arc::downgrade(self)))
    }

    /// Acknowledges the highest interrupt that `cpu` can take: its local APIC's, else the 8259's where LINT0 passes it.
    pub(crate) fn take_interrupt(&self, cpu: u32) -> Option<u8> {
        let mut lapic = self.lapic(cpu)?.lock();
        let vector = lapic.take_interrupt();
        let from_pic = vector.is_none() && lapic.accepts_pic();
        drop(lapic);
        if !from_pic {
            return vector;
        }
        let mut pic = self.pic.get()?.lock();
        let vector = pic.intr().then(|| pic.acknowledge());
        if pic.intr()
            && let Some(signals) = self.signals.get(cpu as usize)
        {
            // INTR stays high for the next one: there will be no edge to tell of it.
            signals.raise(Signal::Interrupt);
        }
        vector
    }

    /// Carries out what processor `cpu`'s local APIC wants done. Its lock must be free.
    pub(crate) fn carry_out(&self, cpu: u32, effects: &Effects) {
        for vector in &effects.eois {
            if let Some(ioapic) = self.ioapic.get() {
                ioapic.lock().eoi(*vector);
            }
        }
        for ipi in &effects.ipis {
            self.send_ipi(cpu, ipi);
        }
    }

    fn send_ipi(&self, from: u32, ipi: &Ipi) {
        let is_sender = |index: usize| index == from as usize;
        match ipi.shorthand {
            Shorthand::None => self.deliver(ipi.dest, ipi.logical, &ipi.interrupt),
            Shorthand::Myself => self.deliver_to(is_sender, &ipi.interrupt),
            Shorthand::All => self.deliver_to(|_| true, &ipi.interrupt),
            Shorthand::Others => self.deliver_to(|index| !is_sender(index), &ipi.interrupt),
        }
    }

    /// Sends what the low half `icr` of an interrupt command register says to the processors with the APIC ids `first` + *n*,
    /// for each bit *n* of `set`. Returns how many of them there are.
    pub(crate) fn send_ipis(&self, first: u32, set: u128, icr: u32) -> u32 {
        let interrupt = interrupt(icr);
        let mut sent = 0;
        for n in (0..u128::BITS).filter(|n| set >> n & 1 != 0) {
            if let Some(lapic) = first.checked_add(n).and_then(|id| self.lapic(id)) {
                lapic.lock().deliver(&interrupt);
                sent += 1;
            }
        }
        sent
    }

    /// Takes processor `cpu` out of HLT, if there is one.
    pub(crate) fn unhalt(&self, cpu: u32) {
        if let Some(signals) = self.signals.get(cpu as usize) {
            signals.raise(Signal::Unhalt);
        }
    }

    fn deliver_to(&self, wanted: impl Fn(usize) -> bool, interrupt: &Interrupt) {
        for (index, lapic) in self.lapics_from(0).enumerate() {
            if wanted(index) {
                lapic.lock().deliver(interrupt);
            }
        }
    }

    /// Delivers by destination: to all that match, or under lowest priority to one of them.
    fn deliver(&self, dest: u32, logical: bool, interrupt: &Interrupt) {
        if interrupt.mode != DeliveryMode::LowestPriority {
            for lapic in self.lapics_from(0) {
                let mut chip = lapic.lock();
                if chip.matches(dest, logical) {
                    chip.deliver(interrupt);
                }
            }
            return;
        }
        if let Some(lapic) = self.lowest_priority(dest, logical) {
            lapic.lock().deliver(interrupt);
        }
    }

    fn lowest_priority(&self, dest: u32, logical: bool) -> Option<&Arc<Slot<Lapic>>> {
        let first = self.turn.fetch_add(1, Ordering::Relaxed) % self.lapics.len().max(1);
        let priority = |lapic: &Slot<Lapic>| {
            let chip = lapic.lock();
            (chip.matches(dest, logical) && chip.accepts_fixed()).then(|| chip.ppr())
        };
        self.lapics_from(first)
            .filter_map(|lapic| priority(lapic).map(|priority| (priority, lapic)))
            .min_by_key(|(priority, _)| *priority)
            .map(|(_, lapic)| lapic)
    }

    fn set_gsi(&self, gsi: u32, level: bool) {
        let mut high = self.high.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sources) = high.get_mut(gsi as usize) else {
            return;
        };
        let was_high = *sources > 0;
        *sources = if level { *sources + 1 } else { sources.saturating_sub(1) };
        if was_high == (*sources > 0) {
            return;
        }
        // The table stays locked, so that the controllers see the changes of one line in their order.
        if let Some(pic) = self.pic.get()
            && let Some(pin) = pic_pin(gsi)
        {
            pic.lock().set_line(pin, level);
        }
        if let Some(ioapic) = self.ioapic.get()
            && gsi != 0
        {
            ioapic.lock().set_line(gsi, level);
        }
    }
}

/// The 8259 pin that a GSI also reaches.
fn pic_pin(gsi: u32) -> Option<u32> {
    match gsi {
        TIMER_GSI => Some(0),
        1 | 3..ISA_LINES => Some(gsi),
        _ => None,
    }
}

/// Vector, delivery mode, level and trigger mode, as messages and interrupt command registers have them.
fn interrupt(bits: u32) -> Interrupt {
    let level_triggered = bits >> 15 & 1 != 0;
    Interrupt {
        vector: bits as u8,
        mode: DeliveryMode::from_bits((bits >> 8 & 7) as u8),
        level_triggered,
        assert: !level_triggered || bits >> 14 & 1 != 0,
    }
}

/// What a message says (SDM vol. 3 §11.11; bits 63-40 of the address extend the destination).
fn decode(message: MsiMessage) -> (u32, bool, Interrupt) {
    let MsiMessage { address, data } = message;
    let low = (address >> 12 & 0xff) as u32;
    let high = (address >> 40) as u32 & 0x00ff_ffff;
    // Eight ones mean everyone, to processors with wider identifiers too.
    let dest = if (high, low) == (0, 0xff) {
        EVERYONE
    } else {
        high << 8 | low
    };
    (dest, address >> 2 & 1 != 0, interrupt(data))
}

struct GsiInput(Weak<Fabric>);

impl LineTarget for GsiInput {
    fn set_line(&self, pin: u32, level: bool) {
        if let Some(fabric) = self.0.upgrade() {
            fabric.set_gsi(pin, level);
        }
    }
}

/// LINT0 and LINT1 of the boot processor.
struct LocalInput(Weak<Fabric>);

impl LineTarget for LocalInput {
    fn set_line(&self, pin: u32, level: bool) {
        if let Some(fabric) = self.0.upgrade()
            && let Some(lapic) = fabric.lapic(0)
        {
            lapic.lock().set_lint(pin, level);
        }
    }
}

struct Messages(Weak<Fabric>);

impl MsiSink for Messages {
    fn send(&self, message: MsiMessage) {
        if let Some(fabric) = self.0.upgrade() {
            let (dest, logical, interrupt) = decode(message);
            fabric.deliver(dest, logical, &interrupt);
        }
    }
}

#[cfg(test)]
mod tests {
    use chipset::lapic::LapicConfig;
    use device_model::At;
    use device_model::Clock;
    use device_model::Registers;
    use device_model::TestClock;
    use device_model::Wake;
    use device_model::Width;

    use super::*;

    struct NoWake;

    impl Wake for NoWake {
        fn wake(&self) {}
    }

    /// A fabric with real controllers around `cpus` processors whose local APICs are software-enabled, with logical
    /// destination `1 << cpu`.
    fn fabric(cpus: u32) -> Arc<Fabric> {
        let clock: Arc<dyn Clock> = Arc::new(TestClock::new());
        let signals: Vec<Arc<Signals>> = (0..cpus).map(|_| Arc::default()).collect();
        let fabric = Fabric::new(signals.clone());
        let pic = DualPic::new(fabric.pic_output());
        fabric.set_pic(Slot::new("pic", pic, clock.clone(), Arc::new(NoWake)));
        let ioapic = IoApic::new(0, fabric.messages());
        fabric.set_ioapic(Slot::new("ioapic", ioapic, clock.clone(), Arc::new(NoWake)));
        for (id, signals) in (0..).zip(signals) {
            let config = LapicConfig {
                id,
                bsp: id == 0,
                bus_hz: 1_000_000_000,
                tsc_hz: 2_000_000_000,
            };
            let mut lapic = Lapic::new(config, clock.clone(), signals, Arc::default());
            for (offset, value) in [(0xf0, 0x1ff), (0xd0, 1 << (24 + id))] {
                lapic.write(At { region: 0, offset }, Width::Dword, value).unwrap();
            }
            fabric.add_lapic(Slot::new("lapic", lapic, clock.clone(), Arc::new(NoWake)));
        }
        fabric
    }

    fn take_all(fabric: &Fabric) -> Vec<(u32, u8)> {
        let cpus = fabric.signals.len() as u32;
        (0..cpus)
            .filter_map(|cpu| Some((cpu, fabric.take_interrupt(cpu)?)))
            .collect()
    }

    fn set_ioapic(fabric: &Fabric, pin: u64, low: u64, high: u64) {
        let ioapic = fabric.ioapic.get().unwrap();
        for (index, value) in [(0x11 + 2 * pin, high), (0x10 + 2 * pin, low)] {
            ioapic.write(At { region: 0, offset: 0 }, Width::Dword, index);
            ioapic.write(
                At {
                    region: 0,
                    offset: 0x10,
                },
                Width::Dword,
                value,
            );
        }
    }

    fn init_pic(fabric: &Fabric) {
        let pic = fabric.pic.get().unwrap();
        for (region, base) in [(0, 0x20), (1, 0x28)] {
            for (offset, value) in [(0, 0x11), (1, base), (1, 4 - 2 * region as u64), (1, 1), (1, 0)] {
                pic.write(At { region, offset }, Width::Byte, value);
            }
        }
    }

    fn write_lapic(fabric: &Fabric, cpu: u32, offset: u64, value: u64) {
        let effects = fabric.lapic(cpu).unwrap().with(|lapic| {
            lapic.write(At { region: 0, offset }, Width::Dword, value).unwrap();
            lapic.take_effects()
        });
        fabric.carry_out(cpu, &effects);
    }

    #[test]
    fn isa_line_reaches_both_controllers_and_line_0_is_pin_2() {
        let fabric = fabric(1);
        init_pic(&fabric);
        set_ioapic(&fabric, 2, 0x40, 0);
        set_ioapic(&fabric, 4, 0x44, 0);
        for (irq, by_ioapic, by_pic) in [(0, 0x40, 0x20), (4, 0x44, 0x24)] {
            let line = fabric.isa(irq);
            line.set(true);
            assert_eq!(fabric.take_interrupt(0), Some(by_ioapic));
            assert_eq!(fabric.take_interrupt(0), Some(by_pic));
            assert_eq!(fabric.take_interrupt(0), None);
            line.set(false);
            write_lapic(&fabric, 0, 0xb0, 0);
            fabric
                .pic
                .get()
                .unwrap()
                .write(At { region: 0, offset: 0 }, Width::Byte, 0x20);
        }
    }

    #[test]
    fn shared_line_stays_high_until_its_last_source_lets_go() {
        let fabric = fabric(1);
        init_pic(&fabric);
        fabric
            .pic
            .get()
            .unwrap()
            .write(At { region: 0, offset: 1 }, Width::Byte, 0xff);
        // Level-triggered, active high.
        set_ioapic(&fabric, 9, 0x8059, 0);
        let (a, b) = (fabric.gsi(9), fabric.gsi(9));
        a.set(true);
        b.set(true);
        assert_eq!(fabric.take_interrupt(0), Some(0x59));
        a.set(false);
        write_lapic(&fabric, 0, 0xb0, 0);
        assert_eq!(
            fabric.take_interrupt(0),
            Some(0x59),
            "the EOI finds the line still high"
        );
        b.set(false);
        write_lapic(&fabric, 0, 0xb0, 0);
        assert_eq!(fabric.take_interrupt(0), None);
    }

    #[test]
    fn pic_with_a_second_request_signals_again_after_the_acknowledge() {
        let fabric = fabric(1);
        init_pic(&fabric);
        // The second of two requests is the higher one, so that INTR stays high while the first is in service.
        let (low, high) = (fabric.isa(4), fabric.isa(1));
        low.set(true);
        assert_eq!(fabric.take_interrupt(0), Some(0x24));
        high.set(true);
        fabric.signals[0].take(Signal::Interrupt);
        let again = fabric.isa(0);
        again.set(true);
        assert_eq!(fabric.take_interrupt(0), Some(0x20));
        assert_eq!(fabric.take_interrupt(0), None, "IRQ 1 waits for the EOI of IRQ 0");
        fabric
            .pic
            .get()
            .unwrap()
            .write(At { region: 0, offset: 0 }, Width::Byte, 0x60);
        assert!(fabric.signals[0].take(Signal::Interrupt));
        assert_eq!(fabric.take_interrupt(0), Some(0x21));
    }

    #[test]
    fn message_goes_to_its_physical_or_logical_destination() {
        let fabric = fabric(3);
        let sink = fabric.messages();
        let send = |address: u64, data: u32| {
            sink.send(MsiMessage { address, data });
            take_all(&fabric)
        };
        assert_eq!(send(0xfee0_1000, 0x51), [(1, 0x51)]);
        assert_eq!(send(0xfee0_6004, 0x62), [(1, 0x62), (2, 0x62)]);
        assert_eq!(send(0xfeef_f000, 0x73), [(0, 0x73), (1, 0x73), (2, 0x73)]);
        assert_eq!(send(0xfee0_9000, 0x84), []);
    }

    #[test]
    fn lowest_priority_takes_the_idlest_and_equals_take_turns() {
        let fabric = fabric(3);
        let sink = fabric.messages();
        write_lapic(&fabric, 1, 0x80, 0x30);
        let mut seen = [0; 3];
        for _ in 0..6 {
            sink.send(MsiMessage {
                address: 0xfee0_700c,
                data: 0x141,
            });
            for (cpu, vector) in take_all(&fabric) {
                assert_eq!(vector, 0x41);
                seen[cpu as usize] += 1;
                write_lapic(&fabric, cpu, 0xb0, 0);
            }
        }
        assert_eq!(seen[1], 0, "its task priority is higher");
        assert!(seen[0] > 0 && seen[2] > 0 && seen[0] + seen[2] == 6, "{seen:?}");
    }

    #[test]
    fn ipi_shorthands_reach_self_all_and_others() {
        let fabric = fabric(3);
        for (shorthand, expected) in [(1, &[1][..]), (2, &[0, 1, 2]), (3, &[0, 2])] {
            write_lapic(&fabric, 1, 0x300, shorthand << 18 | 0x4070);
            let got = take_all(&fabric);
            assert_eq!(got.iter().map(|(cpu, _)| *cpu).collect::<Vec<_>>(), expected);
            for (cpu, _) in got {
                write_lapic(&fabric, cpu, 0xb0, 0);
            }
        }
    }

    #[test]
    fn ipis_of_a_set_reach_its_processors_that_are_there() {
        let fabric = fabric(3);
        assert_eq!(fabric.send_ipis(1, 0b1011, 0x41), 2, "processors 1 and 2 of 1, 2 and 4");
        assert_eq!(take_all(&fabric), [(1, 0x41), (2, 0x41)]);
        assert_eq!(fabric.send_ipis(u32::MAX, 0b11, 0x41), 0);
        assert_eq!(fabric.send_ipis(0, 1, 0x400), 1);
        assert!(fabric.signals[0].take(Signal::Nmi));
        // The de-assertion of a level.
        assert_eq!(fabric.send_ipis(0, 1, 0x8041), 1);
        assert!(take_all(&fabric).is_empty());
        fabric.unhalt(2);
        fabric.unhalt(9);
        let unhalted = fabric.signals.iter().map(|signals| signals.take(Signal::Unhalt));
        assert_eq!(unhalted.collect::<Vec<_>>(), [false, false, true]);
    }

    #[test]
    fn nmi_and_start_up_messages_become_signals() {
        let fabric = fabric(2);
        write_lapic(&fabric, 0, 0x310, 1 << 24);
        write_lapic(&fabric, 0, 0x300, 0x4400);
        assert!(fabric.signals[1].take(Signal::Nmi));
        write_lapic(&fabric, 0, 0x300, 0x4609);
        assert!(fabric.signals[1].take(Signal::Sipi));
        assert_eq!(fabric.signals[1].sipi_vector(), 9);
        assert!(!fabric.signals[0].take(Signal::Sipi));
    }
}
