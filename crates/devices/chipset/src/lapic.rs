//! Local APIC of one processor: xAPIC page and x2APIC registers.
//!
//! Interrupt acceptance and priority, the local vector table, the timer (one-shot, periodic, TSC deadline), inter-processor
//! interrupts, logical and physical destinations in flat, cluster and x2APIC form, the error status register, EOI broadcast
//! and its suppression, and the legal mode changes of IA32_APIC_BASE. INIT resets the APIC here and then signals the
//! processor. No interrupt comes from the thermal sensor or performance counters. There is no system management mode: SMIs
//! are dropped. Remote reads and the arbitration priority register read as zero. An acknowledge takes the interrupt in one
//! step, so the race that gives the spurious vector on hardware cannot happen.
//!
//! ```text
//!  set_lint ──► LVT ──┐                            ┌─► Signal::Interrupt ─► take_interrupt (IRR → ISR)
//!  timer    ──► LVT ──┼─► IRR ─ priority over PPR ─┘
//!  deliver  ──────────┘          EOI ──► Effects::eois      ICR ──► Effects::ipis
//! ```
//!
//! Spec: SDM vol. 3 §11 (APIC), §11.12 (x2APIC).

mod message;
mod pv_eoi;
mod regs;
mod spec;
mod state;
mod timer;
mod vectors;

use std::sync::Arc;

use cpu_model::Signal;
use cpu_model::Signals;
use device_model::At;
use device_model::Clock;
use device_model::Device;
use device_model::Inspect;
use device_model::IoError;
use device_model::Node;
use device_model::Region;
use device_model::Registers;
use device_model::Reset;
use device_model::Space;
use device_model::VmTime;
use device_model::Width;
use device_model::Widths;
use guest_memory::GuestMemory;
use serde::Deserialize;
use serde::Serialize;

use crate::lanes;

pub use message::DeliveryMode;
pub use message::Effects;
pub use message::Interrupt;
pub use message::Ipi;
pub use message::Shorthand;
pub use state::LapicV2;

use pv_eoi::PvEoi;
use spec::ApicBase;
use spec::ESR_RECEIVE_ILLEGAL;
use spec::LVT_COUNT;
use spec::LVT_ERROR;
use spec::LVT_LINT0;
use spec::LVT_LINT1;
use spec::LVT_TIMER;
use spec::Lvt;
use spec::Svr;
use timer::Instant;
use timer::Mode;
use timer::Timer;
use vectors::Vectors;

const REGIONS: [Region; 1] = [Region {
    name: "lapic",
    space: Space::Mmio,
    len: 0x1000,
    widths: Widths::DWORD,
}];

/// Vectors below this are for exceptions; a message with one is an error.
const FIRST_VECTOR: u8 = 16;
/// Destination that means every processor, in 8 and in 32 bits.
const BROADCAST: [u32; 2] = [0xFF, 0xFFFF_FFFF];

/// What a local APIC is told of its processor.
#[derive(Clone, Copy, Debug)]
pub struct LapicConfig {
    /// x2APIC id; its low byte is the xAPIC id.
    pub id: u32,
    /// Bootstrap processor.
    pub bsp: bool,
    /// Frequency of the timer's undivided input.
    pub bus_hz: u64,
    /// Frequency of the TSC.
    pub tsc_hz: u64,
}

/// A local APIC.
pub struct Lapic {
    // Wiring
    clock: Arc<dyn Clock>,
    signals: Arc<Signals>,
    // Configuration
    config: LapicConfig,
    // State
    base: ApicBase,
    /// Set by software in xAPIC mode only.
    xapic_id: u8,
    tpr: u8,
    /// In xAPIC mode; that of x2APIC mode follows from the id.
    ldr: u8,
    /// Model field of the destination format register.
    flat: bool,
    svr: Svr,
    irr: Vectors,
    isr: Vectors,
    tmr: Vectors,
    /// As software reads it.
    esr: u32,
    /// Since software last wrote it.
    errors: u32,
    icr: u64,
    lvt: [Lvt; LVT_COUNT],
    timer: Timer,
    /// TSC minus guest time in ticks.
    tsc_offset: u64,
    /// Levels of LINT0 and LINT1.
    lint: [bool; 2],
    /// An ExtINT message waits for its acknowledge.
    extint: ExtInt,
    pv_eoi: PvEoi,
    // Derived
    /// Taken by the board under the same lock as what caused it: empty when saved.
    effects: Effects,
}

/// Life of an ExtINT message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum ExtInt {
    None,
    Pending,
    /// The processor has been sent to the 8259 once; the next acknowledge forgets it.
    Offered,
}

impl Lapic {
    /// A local APIC in its state after power-on, which tells its processor through `signals`. Software may end interrupts in
    /// `memory`.
    #[must_use]
    pub fn new(config: LapicConfig, clock: Arc<dyn Clock>, signals: Arc<Signals>, memory: Arc<GuestMemory>) -> Self {
        let mut lapic = Self {
            clock,
            signals,
            config: LapicConfig {
                bus_hz: config.bus_hz.max(1),
                tsc_hz: config.tsc_hz.max(1),
                ..config
            },
            base: ApicBase::AT_RESET.with_bsp(config.bsp),
            xapic_id: lanes::byte(config.id.into()),
            tpr: 0,
            ldr: 0,
            flat: true,
            svr: Svr::AT_RESET,
            irr: Vectors::default(),
            isr: Vectors::default(),
            tmr: Vectors::default(),
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [Lvt::new(); LVT_COUNT],
            timer: Timer::new(),
            tsc_offset: 0,
            lint: [false; 2],
            extint: ExtInt::None,
            pv_eoi: PvEoi::new(memory),
            effects: Effects::default(),
        };
        lapic.on_init();
        lapic
    }

    /// Address of the register page; `None` in x2APIC mode and while disabled.
    #[must_use]
    pub fn base(&self) -> Option<u64> {
        (self.base.en() && !self.base.extd()).then(|| self.base.page() << 12)
    }

    /// Enabled in IA32_APIC_BASE: what CPUID says too.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.base.en()
    }

    /// Takes fixed and lowest-priority interrupts: also enabled in the spurious-interrupt vector register.
    #[must_use]
    pub fn accepts_fixed(&self) -> bool {
        self.base.en() && self.svr.enabled()
    }

    /// CR8: the task priority class. Works while the APIC is disabled too.
    #[must_use]
    pub fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// Writes CR8.
    pub fn set_cr8(&mut self, value: u8) {
        self.settle_eoi();
        self.set_tpr(value << 4);
    }

    /// Tells the difference between the TSC and guest time, in ticks, after the guest wrote its TSC.
    pub fn set_tsc_offset(&mut self, ticks: u64) {
        self.tsc_offset = ticks;
    }

    /// Processor priority: the class of interrupts that are held back, and what lowest-priority delivery compares.
    #[must_use]
    pub fn ppr(&self) -> u8 {
        let served = self.isr.highest().unwrap_or(0) & 0xF0;
        if self.tpr & 0xF0 >= served { self.tpr } else { served }
    }

    /// Whether a message to `dest` is for this processor.
    ///
    /// `dest` is taken as it is: a sender with an 8-bit destination that means broadcast to x2APICs too says FFFF_FFFFh.
    #[must_use]
    pub fn matches(&self, dest: u32, logical: bool) -> bool {
        match (self.base.en(), self.base.extd()) {
            (false, _) => false,
            (true, true) if dest == 0xFFFF_FFFF => true,
            (true, true) if logical => {
                let ldr = self.x2apic_ldr();
                dest >> 16 == ldr >> 16 && dest & ldr & 0xFFFF != 0
            }
            (true, true) => dest == self.config.id,
            (true, false) if BROADCAST.contains(&dest) => true,
            (true, false) if logical => u8::try_from(dest).is_ok_and(|dest| self.matches_logical(dest)),
            (true, false) => dest == self.xapic_id.into(),
        }
    }

    /// xAPIC logical destination (SDM vol. 3 §11.6.2.2).
    fn matches_logical(&self, dest: u8) -> bool {
        if self.flat {
            return dest & self.ldr != 0;
        }
        dest >> 4 == self.ldr >> 4 && dest & self.ldr & 0x0F != 0
    }

    fn x2apic_ldr(&self) -> u32 {
        (self.config.id >> 4) << 16 | 1 << (self.config.id & 0xF)
    }

    /// Takes an interrupt message whose destination this processor is.
    pub fn deliver(&mut self, interrupt: &Interrupt) {
        if !self.base.en() || !interrupt.assert {
            return;
        }
        match interrupt.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                self.accept(interrupt.vector, interrupt.level_triggered);
            }
            DeliveryMode::Nmi => self.signals.raise(Signal::Nmi),
            DeliveryMode::Init => {
                self.on_init();
                self.signals.raise(Signal::Init);
            }
            DeliveryMode::Sipi => self.signals.raise_sipi(interrupt.vector),
            DeliveryMode::ExtInt => {
                self.extint = ExtInt::Pending;
                self.signals.raise(Signal::Interrupt);
            }
            DeliveryMode::Smi | DeliveryMode::Reserved => {}
        }
    }

    /// Input LINT0 (pin 0) or LINT1 (pin 1) is now at `level`. While the APIC is disabled they are INTR and NMI.
    pub fn set_lint(&mut self, pin: u32, level: bool) {
        let (Some(input), entry) = (
            usize::try_from(pin).ok().and_then(|pin| self.lint.get_mut(pin)),
            if pin == 0 { LVT_LINT0 } else { LVT_LINT1 },
        ) else {
            return;
        };
        let rises = !std::mem::replace(input, level) && level;
        if self.base.en() {
            self.serve_lint(entry, level, rises);
        } else if rises && pin == 0 {
            self.signals.raise(Signal::Interrupt);
        } else if rises {
            self.signals.raise(Signal::Nmi);
        }
    }

    fn serve_lint(&mut self, index: usize, asserted: bool, rises: bool) {
        let Some(entry) = self.lvt.get_mut(index) else {
            return;
        };
        if entry.masked() || !asserted {
            return;
        }
        match DeliveryMode::from_bits(entry.delivery_mode()) {
            DeliveryMode::Fixed if entry.level() && (entry.remote_irr() || !self.svr.enabled()) => {}
            DeliveryMode::Fixed if entry.level() => {
                entry.set_remote_irr(true);
                let vector = entry.vector();
                self.accept(vector, true);
            }
            DeliveryMode::ExtInt => self.signals.raise(Signal::Interrupt),
            _ if rises => self.raise_lvt(index),
            _ => {}
        }
    }

    /// Delivers a local interrupt as its vector table entry says, once.
    fn raise_lvt(&mut self, index: usize) {
        let Some(entry) = self.lvt.get(index).copied().filter(|entry| !entry.masked()) else {
            return;
        };
        self.deliver(&Interrupt {
            vector: entry.vector(),
            mode: DeliveryMode::from_bits(entry.delivery_mode()),
            level_triggered: false,
            assert: true,
        });
    }

    /// Whether the processor is to acknowledge at the 8259: LINT0 passes its INTR, or a message asked for it.
    #[must_use]
    pub fn accepts_pic(&self) -> bool {
        self.extint != ExtInt::None || self.lint0_passes()
    }

    fn lint0_passes(&self) -> bool {
        let [lint0, _] = self.lint;
        let entry = self.lvt.get(LVT_LINT0).copied().unwrap_or_default();
        let external = DeliveryMode::from_bits(entry.delivery_mode()) == DeliveryMode::ExtInt;
        lint0 && (!self.base.en() || external && !entry.masked())
    }

    fn accept(&mut self, vector: u8, level: bool) {
        if !self.accepts_fixed() {
            return;
        }
        if vector < FIRST_VECTOR {
            return self.error(ESR_RECEIVE_ILLEGAL);
        }
        self.irr.set(vector, true);
        self.tmr.set(vector, level);
        self.signal();
    }

    /// Logs an error; the first one since the register was written raises the error interrupt.
    fn error(&mut self, bit: u32) {
        let first = self.errors == 0;
        self.errors |= bit;
        if first {
            self.raise_lvt(LVT_ERROR);
        }
    }

    /// Tells the processor when there is something to acknowledge.
    fn signal(&self) {
        // What was not lent back yet may have ended.
        let unsure = self.pv_eoi.is_lent() && self.irr.highest().is_some();
        if unsure || self.has_interrupt() || self.lint0_passes() {
            self.signals.raise(Signal::Interrupt);
        }
    }

    fn deliverable(&self) -> Option<u8> {
        let vector = self.irr.highest().filter(|_| self.base.en())?;
        (vector & 0xF0 > self.ppr() & 0xF0).then_some(vector)
    }

    /// Whether an interrupt is pending that the processor's priority lets through.
    #[must_use]
    pub fn has_interrupt(&self) -> bool {
        self.deliverable().is_some()
    }

    /// Takes the highest pending interrupt into service. `None` when none may be delivered; the 8259 is then to be asked
    /// if [`Self::accepts_pic`].
    pub fn take_interrupt(&mut self) -> Option<u8> {
        self.settle_eoi();
        if self.extint == ExtInt::Offered {
            self.extint = ExtInt::None;
        }
        let Some(vector) = self.deliverable() else {
            if self.extint == ExtInt::Pending {
                self.extint = ExtInt::Offered;
            }
            return None;
        };
        self.irr.set(vector, false);
        self.isr.set(vector, true);
        self.lend_eoi(vector);
        self.signal();
        Some(vector)
    }

    /// What is to be done to other chips since the last call.
    pub fn take_effects(&mut self) -> Effects {
        std::mem::take(&mut self.effects)
    }

    /// Resets what INIT resets: everything but the id, the mode and address, and the inputs (SDM vol. 3 §11.4.7.3).
    pub fn on_init(&mut self) {
        self.tpr = 0;
        self.ldr = 0;
        self.flat = true;
        self.svr = Svr::AT_RESET;
        self.irr = Vectors::default();
        self.isr = Vectors::default();
        self.tmr = Vectors::default();
        self.esr = 0;
        self.errors = 0;
        self.icr = 0;
        self.lvt = [Lvt::new().with_masked(true); LVT_COUNT];
        self.timer = Timer::new();
        self.extint = ExtInt::None;
        self.pv_eoi.reset();
        self.effects = Effects::default();
        if self.config.bsp {
            // DEVIATION: hardware starts with LINT0 masked and its firmware opens it to the 8259 (virtual wire mode).
            // Kernels that are booted without firmware rely on that (Linux with `nolapic` or `noapic`).
            let external = Lvt::new().with_delivery_mode(7);
            if let Some(entry) = self.lvt.get_mut(LVT_LINT0) {
                *entry = external;
            }
        }
    }

    fn instant(&self) -> Instant {
        self.instant_at(self.clock.now())
    }

    fn instant_at(&self, time: VmTime) -> Instant {
        Instant {
            time,
            bus: time.to_ticks(self.config.bus_hz),
            tsc: time.to_ticks(self.config.tsc_hz).wrapping_add(self.tsc_offset),
        }
    }

    fn timer_entry(&self) -> Lvt {
        self.lvt.get(LVT_TIMER).copied().unwrap_or_default()
    }

    fn timer_mode(&self) -> Mode {
        Mode::from_bits(self.timer_entry().timer_mode())
    }

    /// Does what the timer has due.
    fn run_timer(&mut self, now: Instant) {
        if self.timer.expire(self.timer_mode(), now) {
            self.raise_lvt(LVT_TIMER);
        }
    }
}

impl Registers for Lapic {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        let offset = self.page_offset(at, width)?;
        self.settle_eoi();
        Ok(self.read_page(offset).into())
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        let offset = self.page_offset(at, width)?;
        self.settle_eoi();
        self.write_page(offset, lanes::dword(value));
        Ok(())
    }
}

impl Device for Lapic {
    fn reset(&mut self, _kind: Reset) {
        self.base = ApicBase::AT_RESET.with_bsp(self.config.bsp);
        self.xapic_id = lanes::byte(self.config.id.into());
        self.tsc_offset = 0;
        self.on_init();
        self.signal();
    }

    fn poll(&mut self, now: VmTime) -> Option<VmTime> {
        let now = self.instant_at(now);
        self.run_timer(now);
        if self.timer_entry().masked() {
            // Nobody is told, and the count follows from the clock when it is read.
            return None;
        }
        let LapicConfig { bus_hz, tsc_hz, .. } = self.config;
        self.timer.next(self.timer_mode(), now, bus_hz, tsc_hz)
    }
}

impl Inspect for Lapic {
    fn inspect(&self) -> Node {
        let mode = match (self.base.en(), self.base.extd()) {
            (false, _) => "disabled",
            (true, false) => "xapic",
            (true, true) => "x2apic",
        };
        let set = |vectors: &Vectors| {
            let words = (0..8).map(|index| format!("{:08x}", vectors.word(index)));
            words.rev().collect::<Vec<_>>().join("_")
        };
        const ENTRIES: [&str; LVT_COUNT] = ["timer", "thermal", "performance", "lint0", "lint1", "error"];
        let mut lvt = Node::tree();
        for (name, entry) in ENTRIES.into_iter().zip(self.lvt) {
            lvt = lvt.with(name, entry.into_bits());
        }
        let timer = Node::tree()
            .with("initial", self.timer.initial())
            .with("divide", self.timer.divide())
            .with("tsc_deadline", self.timer.deadline());
        Node::tree()
            .with("id", self.config.id)
            .with("mode", mode)
            .with("base", self.base.into_bits())
            .with("tpr", self.tpr)
            .with("ppr", self.ppr())
            .with("svr", self.svr.into_bits())
            .with("esr", self.errors)
            .with("irr", set(&self.irr))
            .with("isr", set(&self.isr))
            .with("tmr", set(&self.tmr))
            .with("lvt", lvt)
            .with("timer", timer)
    }
}

#[cfg(test)]
mod tests;
