//! One 8259A of the pair.

use bitfield_struct::bitfield;
use device_model::Node;
use device_model::RestoreError;
use serde::Deserialize;
use serde::Serialize;

/// Initialisation command word 1 (WO, port 0 with bit 4 set).
#[bitfield(u8)]
struct Icw1 {
    /// ICW4 follows.
    ic4: bool,
    /// Single: no ICW3 follows.
    sngl: bool,
    adi: bool,
    ltim: bool,
    /// Always set.
    init: bool,
    #[bits(3)]
    __: u8,
}

/// Initialisation command word 4 (WO, port 1).
#[bitfield(u8)]
struct Icw4 {
    upm: bool,
    /// Automatic EOI.
    aeoi: bool,
    #[bits(2)]
    buffered: u8,
    /// Special fully nested mode.
    sfnm: bool,
    #[bits(3)]
    __: u8,
}

/// Operation command word 2 (WO, port 0 with bits 4-3 = 00).
#[bitfield(u8)]
struct Ocw2 {
    /// Level that the command acts upon.
    #[bits(3)]
    level: u8,
    #[bits(2)]
    __: u8,
    /// R, SL, EOI.
    #[bits(3)]
    command: u8,
}

/// Operation command word 3 (WO, port 0 with bits 4-3 = 01).
#[bitfield(u8)]
struct Ocw3 {
    /// With `rr`: read ISR, else IRR.
    ris: bool,
    /// Read register command.
    rr: bool,
    /// Poll.
    p: bool,
    #[bits(2)]
    __: u8,
    /// With `esmm`: special mask mode.
    smm: bool,
    /// Enable special mask mode bit.
    esmm: bool,
    __: bool,
}

/// What port 1 takes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Expects {
    Ocw1,
    Icw2,
    Icw3,
    Icw4,
}

/// One controller.
pub(super) struct Chip {
    // Configuration
    /// Pins that can be level triggered.
    elcr_mask: u8,
    /// Pins that always follow their input: the cascade, whose request is the slave's.
    follows: u8,
    // State
    regs: ChipV1,
}

impl Chip {
    pub(super) fn new(elcr_mask: u8, follows: u8) -> Self {
        Self {
            elcr_mask,
            follows,
            regs: ChipV1::at_reset(0),
        }
    }

    pub(super) fn reset(&mut self) {
        self.regs = ChipV1::at_reset(self.regs.lines);
    }

    /// An input changed or is told again.
    pub(super) fn set_pin(&mut self, pin: u8, level: bool) {
        let bit = 1u8.checked_shl(pin.into()).unwrap_or(0);
        if level {
            // DEVIATION: an edge is kept until acknowledged, though the data sheet wants the line held. Sources that
            // only pulse their line would be lost otherwise (every guest with a level-less timer or keyboard model).
            self.regs.latched |= bit & !self.regs.lines;
            self.regs.lines |= bit;
        } else {
            self.regs.lines &= !bit;
        }
    }

    fn irr(&self) -> u8 {
        let level = self.regs.elcr | self.follows;
        self.regs.lines & level | self.regs.latched & !level
    }

    /// Distance from the highest priority; 0 is highest.
    fn rank(&self, level: u8) -> u8 {
        level.wrapping_sub(self.regs.lowest).wrapping_sub(1) & 7
    }

    fn highest(&self, levels: u8) -> Option<u8> {
        (0..8u8)
            .filter(|level| levels >> level & 1 != 0)
            .min_by_key(|level| self.rank(*level))
    }

    /// The level that the chip asks service for: the highest that nothing blocks.
    pub(super) fn request(&self) -> Option<u8> {
        let wanted = self.highest(self.irr() & !self.regs.imr)?;
        let mut blocking = self.regs.isr;
        if self.regs.special_mask {
            blocking &= !self.regs.imr;
        }
        if Icw4::from_bits(self.regs.icw4).sfnm() {
            // The slave sorts its own levels: a higher one of them may interrupt a lower one.
            blocking &= !self.follows;
        }
        match self.highest(blocking) {
            Some(served) if self.rank(served) <= self.rank(wanted) => None,
            _ => Some(wanted),
        }
    }

    /// Takes the requesting level into service.
    pub(super) fn acknowledge(&mut self) -> Option<u8> {
        let level = self.request()?;
        let bit = 1u8 << level;
        self.regs.latched &= !bit;
        if !Icw4::from_bits(self.regs.icw4).aeoi() {
            self.regs.isr |= bit;
        } else if self.regs.rotate_in_aeoi {
            self.regs.lowest = level;
        }
        Some(level)
    }

    /// The vector of `level`.
    pub(super) fn vector(&self, level: u8) -> u8 {
        self.regs.base | level & 7
    }

    pub(super) fn elcr(&self) -> u8 {
        self.regs.elcr
    }

    pub(super) fn set_elcr(&mut self, value: u8) {
        self.regs.elcr = value & self.elcr_mask;
        // A pin that becomes edge triggered starts with its edge still to come.
        self.regs.latched &= !self.regs.elcr;
    }

    pub(super) fn read(&mut self, port1: bool) -> u8 {
        if std::mem::take(&mut self.regs.poll) {
            return self.acknowledge().map_or(0, |level| 0x80 | level);
        }
        if port1 {
            self.regs.imr
        } else if self.regs.read_isr {
            self.regs.isr
        } else {
            self.irr()
        }
    }

    pub(super) fn write(&mut self, port1: bool, value: u8) {
        if port1 {
            self.write_port1(value);
        } else if Icw1::from_bits(value).init() {
            self.initialise(value);
        } else if value & 0x08 != 0 {
            self.write_ocw3(Ocw3::from_bits(value));
        } else {
            self.write_ocw2(Ocw2::from_bits(value));
        }
    }

    // 8259A §"Initialization Command Words 1 and 2": what ICW1 does by itself.
    fn initialise(&mut self, icw1: u8) {
        let elcr = self.regs.elcr;
        let base = self.regs.base;
        self.regs = ChipV1 {
            elcr,
            base,
            icw1,
            expects: Expects::Icw2,
            ..ChipV1::at_reset(self.regs.lines)
        };
    }

    fn write_port1(&mut self, value: u8) {
        let icw1 = Icw1::from_bits(self.regs.icw1);
        let last = if icw1.ic4() { Expects::Icw4 } else { Expects::Ocw1 };
        self.regs.expects = match self.regs.expects {
            Expects::Ocw1 => {
                self.regs.imr = value;
                Expects::Ocw1
            }
            Expects::Icw2 => {
                self.regs.base = value & 0xF8;
                if icw1.sngl() { last } else { Expects::Icw3 }
            }
            Expects::Icw3 => last,
            Expects::Icw4 => {
                self.regs.icw4 = value;
                Expects::Ocw1
            }
        };
    }

    fn write_ocw2(&mut self, ocw2: Ocw2) {
        let clearable = if self.regs.special_mask { !self.regs.imr } else { 0xFF };
        let highest = self.highest(self.regs.isr & clearable);
        match ocw2.command() {
            0b000 => self.regs.rotate_in_aeoi = false,
            0b100 => self.regs.rotate_in_aeoi = true,
            0b001 => self.end(highest, false),
            0b101 => self.end(highest, true),
            0b011 => self.end(Some(ocw2.level()), false),
            0b111 => self.end(Some(ocw2.level()), true),
            0b110 => self.regs.lowest = ocw2.level(),
            _ => {}
        }
    }

    fn end(&mut self, level: Option<u8>, rotate: bool) {
        let Some(level) = level else {
            return;
        };
        self.regs.isr &= !(1u8 << (level & 7));
        if rotate {
            self.regs.lowest = level & 7;
        }
    }

    fn write_ocw3(&mut self, ocw3: Ocw3) {
        if ocw3.esmm() {
            self.regs.special_mask = ocw3.smm();
        }
        if ocw3.p() {
            self.regs.poll = true;
        } else if ocw3.rr() {
            self.regs.read_isr = ocw3.ris();
        }
    }

    pub(super) fn save(&self) -> ChipV1 {
        let Self {
            elcr_mask: _,
            follows: _,
            regs,
        } = self;
        regs.clone()
    }

    pub(super) fn restore(&mut self, state: &ChipV1) -> Result<(), RestoreError> {
        if state.lowest > 7 || state.base & 7 != 0 || state.elcr & !self.elcr_mask != 0 {
            return Err(RestoreError::Invalid("8259A registers out of range".into()));
        }
        self.regs = state.clone();
        Ok(())
    }

    pub(super) fn inspect(&self) -> Node {
        Node::tree()
            .with("irr", self.irr())
            .with("isr", self.regs.isr)
            .with("imr", self.regs.imr)
            .with("elcr", self.regs.elcr)
            .with("lines", self.regs.lines)
            .with("base", self.regs.base)
            .with("icw4", self.regs.icw4)
            .with("lowest", self.regs.lowest)
            .with("special_mask", self.regs.special_mask)
            .with("initialising", self.regs.expects != Expects::Ocw1)
    }
}

/// The registers of one chip, as they are saved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ChipV1 {
    /// Levels of the inputs.
    lines: u8,
    /// Rising edges that are not yet acknowledged.
    latched: u8,
    isr: u8,
    imr: u8,
    elcr: u8,
    /// Vector of level 0.
    base: u8,
    icw1: u8,
    icw4: u8,
    /// Level of lowest priority.
    lowest: u8,
    expects: Expects,
    read_isr: bool,
    poll: bool,
    special_mask: bool,
    rotate_in_aeoi: bool,
}

impl ChipV1 {
    fn at_reset(lines: u8) -> Self {
        Self {
            lines,
            latched: 0,
            isr: 0,
            imr: 0,
            elcr: 0,
            base: 0,
            icw1: 0,
            icw4: 0,
            lowest: 7,
            expects: Expects::Ocw1,
            read_isr: false,
            poll: false,
            special_mask: false,
            rotate_in_aeoi: false,
        }
    }
}
