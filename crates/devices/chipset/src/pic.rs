//! Two Intel 8259A programmable interrupt controllers, cascaded as in a PC, with the edge/level control registers.
//!
//! All initialisation and operation command words: fixed and rotating priority, specific and non-specific EOI, automatic
//! EOI, special mask, special fully nested mode, polling, ISR and IRR read-back. Edge or level is chosen per pin by the
//! ELCRs, as in the PIIX; the LTIM bit of ICW1 is ignored, as there. The slave is wired to pin 2, whatever ICW3 says.
//! The MCS-80 mode (ICW4 bit 0 clear) is not modelled: every acknowledge gives an 8086 vector. Buffered mode and the
//! cascade bus have no visible effect.
//!
//! Spec: Intel 231468-003 (8259A data sheet); Intel 290550-002 (PIIX3) §2.5.3, §2.2.13 (ELCR).

mod chip;

use device_model::At;
use device_model::Device;
use device_model::Inspect;
use device_model::IoError;
use device_model::IrqLine;
use device_model::Node;
use device_model::Region;
use device_model::Registers;
use device_model::Reset;
use device_model::RestoreError;
use device_model::Schema;
use device_model::Snapshot;
use device_model::Space;
use device_model::Width;
use device_model::Widths;
use serde::Deserialize;
use serde::Serialize;

use crate::lanes;
use chip::Chip;
use chip::ChipV1;

const MASTER: usize = 0;
const SLAVE: usize = 1;
const ELCR: usize = 2;

const REGIONS: [Region; 3] = [
    Region {
        name: "master",
        space: Space::Pio,
        len: 2,
        widths: Widths::BYTE,
    },
    Region {
        name: "slave",
        space: Space::Pio,
        len: 2,
        widths: Widths::BYTE,
    },
    Region {
        name: "elcr",
        space: Space::Pio,
        len: 2,
        widths: Widths::BYTE,
    },
];

/// Pin of the master that the slave is wired to.
const CASCADE: u8 = 2;
/// Pins whose edge/level bit can be set: not 0 (timer), 1 (keyboard), 2 (cascade).
const MASTER_ELCR: u8 = 0xF8;
/// Pins whose edge/level bit can be set: not 8 (real-time clock) and 13 (coprocessor).
const SLAVE_ELCR: u8 = 0xDE;
/// What an acknowledge gives when the request has gone away.
const SPURIOUS: u8 = 7;

/// The two cascaded controllers.
pub struct DualPic {
    // Wiring
    intr: IrqLine,
    // State
    master: Chip,
    slave: Chip,
}

impl DualPic {
    /// Controllers that drive `intr` while the processor is to acknowledge an interrupt.
    #[must_use]
    pub fn new(intr: IrqLine) -> Self {
        Self {
            intr,
            master: Chip::new(MASTER_ELCR, 1 << CASCADE),
            slave: Chip::new(SLAVE_ELCR, 0),
        }
    }

    /// Input `pin` (0-15) is now at `level`. Pin 2 is the cascade and ignores this; so do pins that do not exist.
    pub fn set_line(&mut self, pin: u32, level: bool) {
        match u8::try_from(pin) {
            Ok(pin @ (0..=1 | 3..=7)) => self.master.set_pin(pin, level),
            Ok(pin @ 8..=15) => self.slave.set_pin(pin - 8, level),
            _ => return,
        }
        self.update();
    }

    /// The INTA cycle: takes the highest request into service and returns its vector; the spurious vector 7 of the chip
    /// where the request has gone away.
    pub fn acknowledge(&mut self) -> u8 {
        let vector = match self.master.acknowledge() {
            Some(CASCADE) => {
                let level = self.slave.acknowledge().unwrap_or(SPURIOUS);
                self.slave.vector(level)
            }
            Some(level) => self.master.vector(level),
            None => self.master.vector(SPURIOUS),
        };
        self.update();
        vector
    }

    /// The INTR output.
    #[must_use]
    pub fn intr(&self) -> bool {
        self.master.request().is_some()
    }

    fn update(&mut self) {
        self.master.set_pin(CASCADE, self.slave.request().is_some());
        self.intr.set(self.intr());
    }
}

impl Registers for DualPic {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        let value = match (at.region, at.offset) {
            (MASTER, port @ 0..=1) => self.master.read(port == 1),
            (SLAVE, port @ 0..=1) => self.slave.read(port == 1),
            (ELCR, 0) => self.master.elcr(),
            (ELCR, 1) => self.slave.elcr(),
            _ => return Err(IoError::NoRegister),
        };
        // Reading in poll mode acknowledges.
        self.update();
        Ok(value.into())
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        let value = lanes::byte(value);
        match (at.region, at.offset) {
            (MASTER, port @ 0..=1) => self.master.write(port == 1, value),
            (SLAVE, port @ 0..=1) => self.slave.write(port == 1, value),
            (ELCR, 0) => self.master.set_elcr(value),
            (ELCR, 1) => self.slave.set_elcr(value),
            _ => return Err(IoError::NoRegister),
        }
        self.update();
        Ok(())
    }
}

impl Device for DualPic {
    fn reset(&mut self, _kind: Reset) {
        self.master.reset();
        self.slave.reset();
        self.update();
    }
}

impl Snapshot for DualPic {
    type State = DualPicV1;

    fn save(&self) -> DualPicV1 {
        let Self { intr: _, master, slave } = self;
        DualPicV1 {
            master: master.save(),
            slave: slave.save(),
        }
    }

    fn restore(&mut self, state: DualPicV1) -> Result<(), RestoreError> {
        let DualPicV1 { master, slave } = state;
        self.master.restore(&master)?;
        self.slave.restore(&slave)?;
        self.update();
        Ok(())
    }
}

impl Inspect for DualPic {
    fn inspect(&self) -> Node {
        Node::tree()
            .with("master", self.master.inspect())
            .with("slave", self.slave.inspect())
            .with("intr", self.intr())
    }
}

/// Saved state of [`DualPic`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DualPicV1 {
    master: ChipV1,
    slave: ChipV1,
}

impl Schema for DualPicV1 {
    const NAME: &'static str = "dual_pic";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;
    use test_kit::IrqProbe;
    use test_kit::TestClock;

    fn pic() -> (DualPic, Arc<IrqProbe>) {
        let probe = IrqProbe::new();
        let mut pic = DualPic::new(probe.line(0));
        pic.reset(Reset::Cold);
        (pic, probe)
    }

    fn out(pic: &mut DualPic, region: usize, offset: u64, value: u8) {
        pic.write(At { region, offset }, Width::Byte, value.into()).unwrap();
    }

    fn inb(pic: &mut DualPic, region: usize, offset: u64) -> u8 {
        lanes::byte(pic.read(At { region, offset }, Width::Byte).unwrap())
    }

    /// As PC firmware does: vectors 08h and 70h, nothing masked.
    fn initialise(pic: &mut DualPic, icw4: u8) {
        for (region, base, icw3) in [(MASTER, 0x08, 0x04), (SLAVE, 0x70, 0x02)] {
            out(pic, region, 0, 0x11);
            out(pic, region, 1, base);
            out(pic, region, 1, icw3);
            out(pic, region, 1, icw4);
            out(pic, region, 1, 0);
        }
    }

    fn ready() -> (DualPic, Arc<IrqProbe>) {
        let (mut pic, probe) = pic();
        initialise(&mut pic, 0x01);
        (pic, probe)
    }

    fn edge(pic: &mut DualPic, pin: u32) {
        pic.set_line(pin, false);
        pic.set_line(pin, true);
    }

    #[test]
    fn edge_is_taken_once_and_again_after_eoi() {
        let (mut pic, probe) = ready();
        edge(&mut pic, 1);
        assert!(probe.level(0));
        assert_eq!(pic.acknowledge(), 0x09);
        assert!(!probe.level(0), "in service");
        edge(&mut pic, 1);
        assert!(!probe.level(0), "same level is blocked");
        out(&mut pic, MASTER, 0, 0x20);
        assert!(probe.level(0));
    }

    #[test]
    fn higher_level_nests_and_lower_waits() {
        let (mut pic, _) = ready();
        edge(&mut pic, 4);
        assert_eq!(pic.acknowledge(), 0x0C);
        edge(&mut pic, 5);
        assert!(!pic.intr());
        edge(&mut pic, 0);
        assert_eq!(pic.acknowledge(), 0x08);
        out(&mut pic, MASTER, 0, 0x20);
        assert!(!pic.intr(), "level 4 is still in service");
        out(&mut pic, MASTER, 0, 0x20);
        assert_eq!(pic.acknowledge(), 0x0D);
    }

    #[test]
    fn slave_request_travels_through_the_cascade() {
        let (mut pic, _) = ready();
        edge(&mut pic, 8);
        edge(&mut pic, 3);
        assert_eq!(pic.acknowledge(), 0x70, "pin 2 is above pin 3");
        assert!(!pic.intr());
        out(&mut pic, SLAVE, 0, 0x20);
        assert!(!pic.intr(), "the master still serves the cascade");
        out(&mut pic, MASTER, 0, 0x62);
        assert_eq!(pic.acknowledge(), 0x0B);
    }

    #[test]
    fn fully_nested_master_blocks_slave_and_special_does_not() {
        for (icw4, nests) in [(0x01, false), (0x11, true)] {
            let (mut pic, _) = pic();
            initialise(&mut pic, icw4);
            edge(&mut pic, 10);
            assert_eq!(pic.acknowledge(), 0x72);
            edge(&mut pic, 8);
            assert_eq!(pic.intr(), nests);
        }
    }

    #[test]
    fn acknowledge_without_request_is_spurious_and_not_in_service() {
        let (mut pic, _) = ready();
        assert_eq!(pic.acknowledge(), 0x0F);
        out(&mut pic, MASTER, 0, 0x0B);
        assert_eq!(inb(&mut pic, MASTER, 0), 0);
        pic.slave.write(true, 0xFF);
        edge(&mut pic, 9);
        pic.slave.write(true, 0);
        pic.update();
        pic.slave.write(true, 0xFF);
        assert_eq!(pic.acknowledge(), 0x77, "gone between the two chips");
        assert_eq!(inb(&mut pic, MASTER, 0), 0x04, "but the master serves it");
    }

    #[test]
    fn level_pin_follows_its_line() {
        let (mut pic, _) = ready();
        out(&mut pic, ELCR, 0, 0xFF);
        out(&mut pic, ELCR, 1, 0xFF);
        assert_eq!((inb(&mut pic, ELCR, 0), inb(&mut pic, ELCR, 1)), (0xF8, 0xDE));
        pic.set_line(11, true);
        assert!(pic.intr());
        pic.set_line(11, false);
        assert!(!pic.intr());
        pic.set_line(11, true);
        assert_eq!(pic.acknowledge(), 0x73);
        out(&mut pic, SLAVE, 0, 0x20);
        out(&mut pic, MASTER, 0, 0x20);
        assert_eq!(pic.acknowledge(), 0x73, "still asserted");
    }

    #[test]
    fn mask_hides_a_request_but_keeps_it() {
        let (mut pic, _) = ready();
        out(&mut pic, MASTER, 1, 0x10);
        edge(&mut pic, 4);
        assert!(!pic.intr());
        assert_eq!(inb(&mut pic, MASTER, 0), 0x10, "IRR is read after ICW1");
        out(&mut pic, MASTER, 1, 0);
        assert!(pic.intr());
        assert_eq!(inb(&mut pic, MASTER, 1), 0);
    }

    #[test]
    fn automatic_eoi_leaves_nothing_in_service() {
        let (mut pic, _) = pic();
        initialise(&mut pic, 0x03);
        edge(&mut pic, 0);
        assert_eq!(pic.acknowledge(), 0x08);
        edge(&mut pic, 6);
        assert_eq!(pic.acknowledge(), 0x0E);
        out(&mut pic, MASTER, 0, 0x0B);
        assert_eq!(inb(&mut pic, MASTER, 0), 0);
    }

    #[test]
    fn rotation_puts_the_served_level_last() {
        let (mut pic, _) = ready();
        edge(&mut pic, 4);
        assert_eq!(pic.acknowledge(), 0x0C);
        out(&mut pic, MASTER, 0, 0xA0);
        edge(&mut pic, 4);
        edge(&mut pic, 6);
        assert_eq!(pic.acknowledge(), 0x0E, "5 is highest now, 4 lowest");
        out(&mut pic, MASTER, 0, 0x66);
        out(&mut pic, MASTER, 0, 0xC0 | 5);
        edge(&mut pic, 5);
        edge(&mut pic, 6);
        assert_eq!(pic.acknowledge(), 0x0E, "set priority: 5 lowest");
    }

    #[test]
    fn rotation_in_automatic_eoi_mode() {
        let (mut pic, _) = pic();
        initialise(&mut pic, 0x03);
        out(&mut pic, MASTER, 0, 0x80);
        edge(&mut pic, 0);
        assert_eq!(pic.acknowledge(), 0x08);
        edge(&mut pic, 0);
        edge(&mut pic, 7);
        assert_eq!(pic.acknowledge(), 0x0F);
        out(&mut pic, MASTER, 0, 0x00);
        assert_eq!(pic.acknowledge(), 0x08);
        edge(&mut pic, 0);
        edge(&mut pic, 1);
        assert_eq!(pic.acknowledge(), 0x08, "no more rotation");
    }

    #[test]
    fn special_mask_lets_lower_levels_through() {
        let (mut pic, _) = ready();
        edge(&mut pic, 3);
        assert_eq!(pic.acknowledge(), 0x0B);
        edge(&mut pic, 5);
        out(&mut pic, MASTER, 1, 0x08);
        assert!(!pic.intr());
        out(&mut pic, MASTER, 0, 0x68);
        assert_eq!(pic.acknowledge(), 0x0D);
        out(&mut pic, MASTER, 0, 0x20);
        out(&mut pic, MASTER, 0, 0x20);
        out(&mut pic, MASTER, 0, 0x0B);
        assert_eq!(inb(&mut pic, MASTER, 0), 0x08, "a masked level needs a specific EOI");
        out(&mut pic, MASTER, 0, 0x63);
        assert_eq!(inb(&mut pic, MASTER, 0), 0);
    }

    #[test]
    fn poll_acknowledges_by_reading() {
        let (mut pic, _) = ready();
        out(&mut pic, MASTER, 0, 0x0C);
        assert_eq!(inb(&mut pic, MASTER, 0) & 0x80, 0);
        edge(&mut pic, 6);
        out(&mut pic, MASTER, 0, 0x0C);
        assert_eq!(inb(&mut pic, MASTER, 0), 0x86);
        assert!(!pic.intr());
        out(&mut pic, MASTER, 0, 0x0B);
        assert_eq!(inb(&mut pic, MASTER, 0), 0x40);
    }

    #[test]
    fn icw1_forgets_requests_until_the_next_edge() {
        let (mut pic, _) = ready();
        edge(&mut pic, 1);
        initialise(&mut pic, 0x01);
        assert!(!pic.intr());
        edge(&mut pic, 1);
        assert!(pic.intr());
    }

    #[test]
    fn icw1_without_icw4_ends_after_icw3() {
        let (mut pic, _) = ready();
        out(&mut pic, MASTER, 0, 0x10);
        out(&mut pic, MASTER, 1, 0x2F);
        out(&mut pic, MASTER, 1, 0x04);
        out(&mut pic, MASTER, 1, 0xFE);
        assert_eq!(inb(&mut pic, MASTER, 1), 0xFE, "OCW1 already");
        edge(&mut pic, 0);
        assert_eq!(pic.acknowledge(), 0x28);
    }

    #[test]
    fn keeps_the_device_contract() {
        let clock = TestClock::new();
        test_kit::contract(&clock, || Box::new(DualPic::new(IrqLine::detached())));
    }

    proptest! {
        #[test]
        fn no_access_breaks_it(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut pic = DualPic::new(IrqLine::detached());
            test_kit::fuzz_registers(&mut pic, &TestClock::new(), &bytes);
            for (pin, byte) in bytes.iter().enumerate() {
                pic.set_line(u32::try_from(pin % 20).unwrap(), byte & 1 != 0);
                if byte & 6 == 0 {
                    pic.acknowledge();
                }
            }
        }
    }
}
