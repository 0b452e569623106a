//! The PCI Express root ports of Intel's ICH9, each with a slot that takes and loses cards while the machine runs.
//!
//! A slot has an attention button, a power switch and a power lamp; cards may also be pulled out without notice. A card that
//! comes or goes is told of by presence and link changes, which interrupt by message or pin, as the button does. The link is up
//! while there is a card that has power; without power, what is behind is in reset and answers to nothing. Errors and power
//! management events do not happen.
//!
//! Spec: Intel 316972 (ICH9) §"PCI Express* Configuration Registers"; PCI Express Base 3.0 §7.8 (capability), §6.7 (hot
//! plug); PCI-to-PCI Bridge 1.2 §3.2.

use std::sync::Arc;

use device_model::At;
use device_model::Device;
use device_model::Inspect;
use device_model::IoError;
use device_model::IrqLine;
use device_model::MsiSink;
use device_model::Node;
use device_model::PciFunction;
use device_model::PciHeader;
use device_model::Region;
use device_model::Registers;
use device_model::Reset;
use device_model::RestoreError;
use device_model::Schema;
use device_model::Snapshot;
use device_model::Width;
use device_model::pci::Forwarding;
use serde::Deserialize;
use serde::Serialize;

use crate::Class;
use crate::Function;
use crate::Interrupter;
use crate::Msi;
use crate::pci_bridge;

/// Device identifier of the first port; the others follow in steps of two.
const DEVICE: u16 = 0x2940;
/// Ports of an ICH9.
pub const PORTS: u8 = 6;
/// Capability of PCI Express, its length, and its registers by offset.
const EXPRESS: u8 = 0x10;
const EXPRESS_LEN: u8 = 0x3c;
const POWER: u8 = 0x01;

mod reg {
    pub(super) const CAPABILITIES: u16 = 0x02;
    pub(super) const DEVICE: u16 = 0x04;
    pub(super) const DEVICE_CONTROL: u16 = 0x08;
    pub(super) const DEVICE_STATUS: u16 = 0x0a;
    pub(super) const LINK: u16 = 0x0c;
    pub(super) const LINK_CONTROL: u16 = 0x10;
    pub(super) const LINK_STATUS: u16 = 0x12;
    pub(super) const SLOT: u16 = 0x14;
    pub(super) const SLOT_CONTROL: u16 = 0x18;
    pub(super) const SLOT_STATUS: u16 = 0x1a;
    pub(super) const ROOT_CONTROL: u16 = 0x1c;
    pub(super) const ROOT_STATUS: u16 = 0x20;
    pub(super) const DEVICE_CONTROL_2: u16 = 0x28;
    pub(super) const LINK_CONTROL_2: u16 = 0x30;
}

/// Version 2, root port, with a slot.
const CAPABILITIES: u16 = 2 | 4 << 4 | 1 << 8;
/// Errors are reported by their roles; 128 bytes at a time.
const DEVICE_CAPABILITIES: u32 = 1 << 15;
/// 2.5 GT/s over one lane; tells when the link is up.
const LINK_CAPABILITIES: u32 = 1 | 1 << 4 | 1 << 20;
const LINK_STATUS: u16 = 1 | 1 << 4;
/// Link status: it is up.
const LINK_ACTIVE: u16 = 1 << 13;
/// Button, power switch and power lamp; cards come and go, also without notice; commands complete at once.
const SLOT_CAPABILITIES: u32 = 1 << 0 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 18;
/// Slot control: what interrupts, and whether anything does.
const BUTTON_ENABLE: u16 = 1 << 0;
const PRESENCE_ENABLE: u16 = 1 << 3;
const INTERRUPT_ENABLE: u16 = 1 << 5;
const LINK_ENABLE: u16 = 1 << 12;
/// Slot control: the lamp, 1 for on, 2 for blinking, 3 for off; the slot has no power.
const LAMP: u16 = 3 << 8;
const LAMP_BLINKS: u16 = 2 << 8;
const LAMP_ON: u16 = 1 << 8;
const POWER_OFF: u16 = 1 << 10;
/// Slot status: the button was pressed; presence has changed; there is a card; the link has changed.
const BUTTON_PRESSED: u16 = 1 << 0;
const PRESENCE_CHANGED: u16 = 1 << 3;
const PRESENT: u16 = 1 << 6;
const LINK_CHANGED: u16 = 1 << 8;

/// Told that the guest has turned a slot's power off. Called under the port's lock.
pub type PowerNotice = Box<dyn Fn() + Send>;

/// A port.
pub struct RootPort {
    // Wiring, and state in the header
    interrupter: Interrupter,
    notice: Option<PowerNotice>,
    // Configuration
    /// Where the capability is.
    express: u16,
    // State
    header: PciHeader,
    present: bool,
}

impl RootPort {
    /// Port `number`, from zero, with a card in its slot if `present`, that interrupts through `pin` or by messages to `sink`.
    pub fn new(number: u8, present: bool, (pin, sink): (IrqLine, Arc<dyn MsiSink>)) -> Self {
        let id = DEVICE + 2 * u16::from(number);
        let mut function = Function::new(0x8086, id, Class(0x06, 0x04, 0x00));
        function.pin = Self::pin(number);
        function.multifunction = true;
        function.revision = 2;
        let mut header = function.express_bridge_header();
        // There is room: the capabilities are as long as this says.
        let express = header.add_capability(EXPRESS, EXPRESS_LEN).unwrap_or(0);
        make_express(&mut header, express, number);
        let msi = Msi::add(&mut header, 0);
        if let Some(at) = header.add_capability(POWER, 8) {
            // Version 3; events from D0 and D3, which do not happen.
            header.fix(at + 2, &0xc803u16.to_le_bytes());
            header.allow(at + 4, &0x0103u16.to_le_bytes());
        }
        let mut this = Self {
            interrupter: Interrupter::new(pin, sink).with_msi(msi),
            notice: None,
            express,
            header,
            present,
        };
        this.power_on_self();
        this
    }

    /// With somebody who learns when the guest turns the slot's power off.
    #[must_use]
    pub fn with_notice(mut self, notice: PowerNotice) -> Self {
        self.notice = Some(notice);
        self
    }

    /// The interrupt pin of port `number`: INTA# to INTD# in turns.
    #[must_use]
    pub const fn pin(number: u8) -> u8 {
        number % 4 + 1
    }

    /// A card is put into the slot, or taken out of it.
    pub fn plug(&mut self, present: bool) {
        if self.present != present {
            self.present = present;
            self.note(PRESENCE_CHANGED);
            self.settle();
            self.update();
        }
    }

    /// Presses the slot's button: the guest is asked to turn its power off, or on again.
    pub fn press_attention(&mut self) {
        self.note(BUTTON_PRESSED);
        self.update();
    }

    /// Whether there is a card.
    #[must_use]
    pub fn present(&self) -> bool {
        self.present
    }

    /// Whether the slot has power.
    #[must_use]
    pub fn powered(&self) -> bool {
        self.header.word(self.express + reg::SLOT_CONTROL) & POWER_OFF == 0
    }

    /// Whether the lamp blinks: the guest is about to turn the power on or off.
    #[must_use]
    pub fn lamp_blinks(&self) -> bool {
        self.header.word(self.express + reg::SLOT_CONTROL) & LAMP == LAMP_BLINKS
    }

    /// A slot with a card has power from the start, an empty one has none.
    fn power_on_self(&mut self) {
        let control = if self.present { LAMP_ON } else { LAMP | POWER_OFF };
        self.put(reg::SLOT_CONTROL, LAMP | POWER_OFF, control);
        self.settle();
        self.put(reg::SLOT_STATUS, LINK_CHANGED, 0);
    }

    /// Replaces the bits of `mask` in a register of the capability; true when that changed it.
    fn put(&mut self, at: u16, mask: u16, bits: u16) -> bool {
        let old = self.header.word(self.express + at);
        let new = old & !mask | bits;
        self.header.put(self.express + at, &new.to_le_bytes());
        old != new
    }

    fn note(&mut self, event: u16) {
        self.put(reg::SLOT_STATUS, event, event);
    }

    /// Shows whether there is a card, and with power a link.
    fn settle(&mut self) {
        let bit = |on: bool, bit| if on { bit } else { 0 };
        self.put(reg::SLOT_STATUS, PRESENT, bit(self.present, PRESENT));
        let up = self.present && self.powered();
        if self.put(reg::LINK_STATUS, LINK_ACTIVE, bit(up, LINK_ACTIVE)) {
            self.note(LINK_CHANGED);
        }
    }

    /// Drives the interrupt.
    fn update(&mut self) {
        let status = self.header.word(self.express + reg::SLOT_STATUS);
        let control = self.header.word(self.express + reg::SLOT_CONTROL);
        let wanted = |changed, enable| status & changed != 0 && control & enable != 0;
        let event = wanted(PRESENCE_CHANGED, PRESENCE_ENABLE)
            || wanted(LINK_CHANGED, LINK_ENABLE)
            || wanted(BUTTON_PRESSED, BUTTON_ENABLE);
        self.interrupter
            .set(&mut self.header, event && control & INTERRUPT_ENABLE != 0);
    }
}

/// Makes the capability of PCI Express at `at`.
fn make_express(header: &mut PciHeader, at: u16, number: u8) {
    let slot = SLOT_CAPABILITIES | (u32::from(number) + 1) << 19;
    let link = LINK_CAPABILITIES | (u32::from(number) + 1) << 24;
    header.fix(at + reg::CAPABILITIES, &CAPABILITIES.to_le_bytes());
    header.fix(at + reg::DEVICE, &DEVICE_CAPABILITIES.to_le_bytes());
    header.allow(at + reg::DEVICE_CONTROL, &0x7fefu16.to_le_bytes());
    header.clear_by_ones(at + reg::DEVICE_STATUS, &0x000fu16.to_le_bytes());
    header.fix(at + reg::LINK, &link.to_le_bytes());
    header.allow(at + reg::LINK_CONTROL, &0x00dbu16.to_le_bytes());
    header.fix(at + reg::LINK_STATUS, &LINK_STATUS.to_le_bytes());
    header.changes(at + reg::LINK_STATUS, &LINK_ACTIVE.to_le_bytes());
    header.fix(at + reg::SLOT, &slot.to_le_bytes());
    let control = BUTTON_ENABLE | PRESENCE_ENABLE | INTERRUPT_ENABLE | LINK_ENABLE | LAMP | POWER_OFF;
    header.allow(at + reg::SLOT_CONTROL, &control.to_le_bytes());
    let events = BUTTON_PRESSED | PRESENCE_CHANGED | LINK_CHANGED;
    header.clear_by_ones(at + reg::SLOT_STATUS, &events.to_le_bytes());
    header.changes(at + reg::SLOT_STATUS, &PRESENT.to_le_bytes());
    header.allow(at + reg::ROOT_CONTROL, &0x000fu16.to_le_bytes());
    header.clear_by_ones(at + reg::ROOT_STATUS, &0x0001_0000u32.to_le_bytes());
    header.allow(at + reg::DEVICE_CONTROL_2, &0x001fu16.to_le_bytes());
    header.fix(at + reg::LINK_CONTROL_2, &1u16.to_le_bytes());
    header.allow(at + reg::LINK_CONTROL_2, &0x000fu16.to_le_bytes());
}

impl Registers for RootPort {
    fn regions(&self) -> &[Region] {
        &[]
    }

    fn read(&mut self, _at: At, _width: Width) -> Result<u64, IoError> {
        Err(IoError::NoRegister)
    }

    fn write(&mut self, _at: At, _width: Width, _value: u64) -> Result<(), IoError> {
        Err(IoError::NoRegister)
    }
}

impl PciFunction for RootPort {
    fn header(&self) -> &PciHeader {
        &self.header
    }

    fn header_mut(&mut self) -> &mut PciHeader {
        &mut self.header
    }

    fn config_write(&mut self, at: u16, width: Width, value: u32) {
        let had_power = self.powered();
        self.header.write(at, width, value);
        self.interrupter.written(&mut self.header, at, width);
        if had_power != self.powered() {
            self.settle();
        }
        self.update();
        if let Some(notice) = self.notice.as_ref().filter(|_| had_power && !self.powered()) {
            notice();
        }
    }

    fn forwarding(&self) -> Option<Forwarding> {
        Some(match self.powered() {
            true => Forwarding::of(&self.header),
            false => Forwarding {
                reset: true,
                ..Forwarding::default()
            },
        })
    }
}

impl Device for RootPort {
    fn reset(&mut self, _kind: Reset) {
        self.header.reset();
        self.power_on_self();
        self.update();
    }

    fn as_pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }
}

impl Snapshot for RootPort {
    type State = RootPortV1;

    fn save(&self) -> RootPortV1 {
        let Self {
            interrupter: _,
            notice: _,
            express: _,
            header,
            present,
        } = self;
        RootPortV1 {
            header: header.save(),
            present: *present,
        }
    }

    fn restore(&mut self, state: RootPortV1) -> Result<(), RestoreError> {
        let RootPortV1 { header, present } = state;
        self.header.restore(&header)?;
        self.present = present;
        self.interrupter.update_pin(&self.header);
        Ok(())
    }
}

impl Inspect for RootPort {
    fn inspect(&self) -> Node {
        pci_bridge::inspect(&Forwarding::of(&self.header))
            .with("present", self.present)
            .with("powered", self.powered())
    }
}

/// Saved state of [`RootPort`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RootPortV1 {
    header: Vec<u8>,
    present: bool,
}

impl Schema for RootPortV1 {
    const NAME: &'static str = "root_port";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use test_kit::IrqProbe;
    use test_kit::TestClock;
    use test_kit::contract;

    use super::*;

    fn port(present: bool) -> (Arc<IrqProbe>, RootPort) {
        let probe = IrqProbe::new();
        let port = RootPort::new(1, present, (probe.line(0), probe.clone()));
        (probe, port)
    }

    #[test]
    fn keeps_the_contract() {
        contract(&TestClock::new(), || Box::new(port(true).1));
    }

    #[test]
    fn port_says_what_it_is() {
        let (_, chip) = port(true);
        assert_eq!(chip.header.dword(0), 0x2942_8086);
        let at = chip.express;
        assert_eq!(chip.header.word(at), 0x10 | u16::from(chip.header.byte(at + 1)) << 8);
        assert_eq!(chip.header.word(at + reg::CAPABILITIES), 0x142);
        assert_eq!(
            chip.header.dword(at + reg::SLOT) >> 19,
            2,
            "slots are numbered from one"
        );
        assert_eq!(chip.header.word(at + reg::SLOT_STATUS), PRESENT);
        assert!(chip.powered());
        assert_eq!(chip.header.word(at + reg::LINK_STATUS) & LINK_ACTIVE, LINK_ACTIVE);
        let (_, empty) = port(false);
        assert_eq!(empty.header.word(at + reg::SLOT_STATUS), 0);
        assert!(!empty.powered());
    }

    /// Writes slot control: nothing interrupts, and the power is as `on` says.
    fn switch(chip: &mut RootPort, on: bool) {
        let control = if on { LAMP_ON } else { LAMP | POWER_OFF };
        chip.config_write(chip.express + reg::SLOT_CONTROL, Width::Word, control.into());
    }

    #[test]
    fn card_gets_its_link_with_power_and_loses_it() {
        let (sender, notices) = std::sync::mpsc::channel();
        let (_, chip) = port(false);
        let mut chip = chip.with_notice(Box::new(move || sender.send(()).unwrap()));
        let (status, link) = (chip.express + reg::SLOT_STATUS, chip.express + reg::LINK_STATUS);
        chip.plug(true);
        assert_eq!(
            chip.config_read(status, Width::Word),
            u32::from(PRESENT | PRESENCE_CHANGED)
        );
        assert_eq!(chip.header.word(link) & LINK_ACTIVE, 0);
        assert!(chip.forwarding().unwrap().reset);
        switch(&mut chip, true);
        assert_eq!(chip.header.word(link) & LINK_ACTIVE, LINK_ACTIVE);
        assert_eq!(chip.header.word(status) & LINK_CHANGED, LINK_CHANGED);
        assert!(!chip.forwarding().unwrap().reset);
        assert!(notices.try_recv().is_err());
        switch(&mut chip, false);
        switch(&mut chip, false);
        assert_eq!(notices.try_iter().count(), 1);
        assert!(chip.present() && chip.forwarding().unwrap().reset);
        chip.reset(Reset::Warm);
        assert!(chip.powered(), "a card that is there has power after a reset");
        assert_eq!(chip.header.word(status), PRESENT);
    }

    #[test]
    fn button_interrupts() {
        let (probe, mut chip) = port(true);
        let control = chip.express + reg::SLOT_CONTROL;
        chip.config_write(control, Width::Word, u32::from(INTERRUPT_ENABLE | BUTTON_ENABLE));
        chip.press_attention();
        assert!(probe.level(0));
        let status = chip.express + reg::SLOT_STATUS;
        chip.config_write(status, Width::Word, u32::from(BUTTON_PRESSED));
        assert!(!probe.level(0));
        assert_eq!(chip.header.word(status), PRESENT);
    }

    #[test]
    fn card_that_comes_interrupts_until_the_change_is_cleared() {
        let (probe, mut chip) = port(false);
        let at = chip.express;
        chip.config_write(
            at + reg::SLOT_CONTROL,
            Width::Word,
            u32::from(INTERRUPT_ENABLE | PRESENCE_ENABLE),
        );
        chip.plug(true);
        assert!(probe.level(0));
        assert_eq!(chip.config_read(at + reg::SLOT_STATUS, Width::Word), 0x148);
        chip.config_write(at + reg::SLOT_STATUS, Width::Word, u32::from(PRESENCE_CHANGED));
        assert!(!probe.level(0));
        chip.plug(true);
        assert!(!probe.level(0), "it was there already");
        chip.config_write(
            at + reg::SLOT_CONTROL,
            Width::Word,
            u32::from(INTERRUPT_ENABLE | LINK_ENABLE),
        );
        assert!(probe.level(0), "the link has changed too");
        chip.reset(Reset::Warm);
        assert!(!probe.level(0) && chip.present());
    }
}
