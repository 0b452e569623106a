//! The serial EEPROM of the 8254x: 64 words behind a Microwire bus, or read by a register.
//!
//! Reads, writes, erasures and their enabling are modelled; an operation takes no time, so the device is never busy.
//!
//! Spec: SDM 8254x §5.3 (interface), §5.6 (map and checksum), §13.4.3-13.4.4; Microchip DS21749 (93LC46B, commands).

use device_model::net::Mac;
use serde::Deserialize;
use serde::Serialize;

use super::Model;

pub(super) const WORDS: usize = 64;
/// What all words add up to (§5.6.35).
const SUM: u16 = 0xbaba;
/// EECD: clock, chip select, data in and out, request, grant, present.
const SK: u32 = 1 << 0;
const CS: u32 = 1 << 1;
const DI: u32 = 1 << 2;
const DO: u32 = 1 << 3;
const FWE: u32 = 3 << 4;
const REQ: u32 = 1 << 6;
const GNT: u32 = 1 << 7;
const PRES: u32 = 1 << 8;
/// EERD: start and done.
const START: u32 = 1 << 0;
const DONE: u32 = 1 << 4;
/// Bits of a command: start bit, operation and address.
const COMMAND_BITS: u8 = 9;

/// The device and the lines to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Eeprom {
    words: Vec<u16>,
    /// The lines as EECD was written last.
    lines: u32,
    /// What was clocked in since the start bit, and how many bits.
    input: u32,
    bits: u8,
    /// What is clocked out: bits that are left, and the line.
    output: u16,
    out_bits: u8,
    out: bool,
    /// Writes are enabled.
    enabled: bool,
}

impl Eeprom {
    /// What a card of this model with this address has in it.
    pub(super) fn new(model: Model, mac: Mac) -> Self {
        let mut words = vec![0xffff; WORDS];
        let [a, b, c, d, e, f] = mac;
        let (_, device) = model.id();
        // §5.6, table 5-2
        #[rustfmt::skip]
        let fixed = [
            (0x00, u16::from_le_bytes([a, b])), (0x01, u16::from_le_bytes([c, d])), (0x02, u16::from_le_bytes([e, f])),
            (0x03, 0x0000), (0x08, 0x0000), (0x09, 0x0000), (0x0a, 0x4408), (0x0b, 0x1100), (0x0c, 0x1af4),
            (0x0d, device), (0x0e, 0x8086), (0x0f, 0x3040), (0x21, 0x7863), (0x2f, 0x0602), (0x30, 0x0000),
        ];
        for (at, value) in fixed {
            if let Some(word) = words.get_mut(at) {
                *word = value;
            }
        }
        let sum = words
            .iter()
            .take(WORDS - 1)
            .fold(0u16, |sum, word| sum.wrapping_add(*word));
        if let Some(last) = words.last_mut() {
            *last = SUM.wrapping_sub(sum);
        }
        Self {
            words,
            lines: 0,
            input: 0,
            bits: 0,
            output: 0,
            out_bits: 0,
            out: true,
            enabled: false,
        }
    }

    /// The address in it.
    pub(super) fn mac(&self) -> Mac {
        let [a, b] = self.word(0).to_le_bytes();
        let [c, d] = self.word(1).to_le_bytes();
        let [e, f] = self.word(2).to_le_bytes();
        [a, b, c, d, e, f]
    }

    fn word(&self, at: usize) -> u16 {
        self.words.get(at).copied().unwrap_or(0xffff)
    }

    pub(super) fn is_sound(&self) -> bool {
        self.words.len() == WORDS && self.out_bits <= 16 && self.bits <= 32
    }

    /// Forgets what goes on at the lines. What is stored stays.
    pub(super) fn reset(&mut self) {
        let Self { words, .. } = self;
        let words = std::mem::take(words);
        *self = Self {
            words,
            lines: 0,
            input: 0,
            bits: 0,
            output: 0,
            out_bits: 0,
            out: true,
            enabled: false,
        };
    }

    /// EECD as it is read.
    pub(super) fn eecd(&self) -> u32 {
        let grant = if self.lines & REQ != 0 { GNT } else { 0 };
        let out = if self.out { DO } else { 0 };
        self.lines | grant | out | PRES
    }

    /// EECD is written.
    pub(super) fn write_eecd(&mut self, value: u32) {
        let old = std::mem::replace(&mut self.lines, value & (SK | CS | DI | FWE | REQ));
        if value & CS == 0 {
            (self.input, self.bits, self.out_bits, self.out) = (0, 0, 0, true);
        } else if old & SK == 0 && value & SK != 0 {
            self.clock(value & DI != 0);
        }
    }

    /// A rising edge of the clock.
    fn clock(&mut self, di: bool) {
        if self.out_bits > 0 {
            self.out_bits -= 1;
            self.out = self.output >> self.out_bits & 1 != 0;
            return;
        }
        if self.bits == 0 && !di {
            return;
        }
        self.input = self.input << 1 | u32::from(di);
        self.bits = self.bits.saturating_add(1).min(32);
        let address = (self.input & 0x3f) as usize;
        match (self.bits, self.input >> 6 & 7) {
            // READ: a zero first, then the word.
            (COMMAND_BITS, 0b110) => (self.output, self.out_bits, self.out) = (self.word(address), 16, false),
            // ERASE
            (COMMAND_BITS, 0b111) => self.store(address..address + 1, 0xffff),
            // EWEN, EWDS, ERAL
            (COMMAND_BITS, 0b100) => match self.input >> 4 & 3 {
                0b11 => self.enabled = true,
                0b00 => self.enabled = false,
                0b10 => self.store(0..WORDS, 0xffff),
                _ => {}
            },
            // WRITE, WRAL
            (25, _) => {
                let word = u16::try_from(self.input & 0xffff).unwrap_or(0);
                let address = (self.input >> 16 & 0x3f) as usize;
                match self.input >> 22 & 7 {
                    0b101 => self.store(address..address + 1, word),
                    0b100 if self.input >> 20 & 3 == 0b01 => self.store(0..WORDS, word),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn store(&mut self, range: std::ops::Range<usize>, word: u16) {
        if self.enabled {
            self.words.get_mut(range).unwrap_or_default().fill(word);
        }
        self.out = true;
    }

    /// EERD is written: what it reads as.
    pub(super) fn read_by_register(&self, value: u32) -> u32 {
        if value & START == 0 {
            return value & 0xff00;
        }
        let at = (value >> 8 & 0xff) as usize;
        u32::from(self.word(at)) << 16 | value & 0xff00 | DONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Driver(Eeprom);

    impl Driver {
        fn bit(&mut self, di: bool) -> bool {
            let lines = REQ | CS | if di { DI } else { 0 };
            self.0.write_eecd(lines);
            self.0.write_eecd(lines | SK);
            let out = self.0.eecd() & DO != 0;
            self.0.write_eecd(lines);
            out
        }

        fn send(&mut self, value: u32, bits: u32) {
            for bit in (0..bits).rev() {
                self.bit(value >> bit & 1 != 0);
            }
        }

        fn receive(&mut self) -> u16 {
            (0..16).fold(0, |word, _| word << 1 | u16::from(self.bit(false)))
        }

        fn end(&mut self) {
            self.0.write_eecd(REQ);
        }

        fn read(&mut self, at: u32) -> u16 {
            self.send(0b110 << 6 | at, 9);
            let word = self.receive();
            self.end();
            word
        }
    }

    fn driver() -> Driver {
        Driver(Eeprom::new(Model::I82540Em, [0x08, 0, 0x27, 1, 2, 3]))
    }

    #[test]
    fn words_are_read_by_wires_and_by_register() {
        let mut driver = driver();
        let words: Vec<u16> = (0..64).map(|at| driver.read(at)).collect();
        assert_eq!(words[..3], [0x0008, 0x0127, 0x0302]);
        assert_eq!(words.iter().fold(0u16, |sum, word| sum.wrapping_add(*word)), SUM);
        for (at, word) in (0u32..).zip(&words) {
            assert_eq!(
                driver.0.read_by_register(at << 8 | 1),
                u32::from(*word) << 16 | at << 8 | 0x10
            );
        }
        assert_eq!(driver.0.mac(), [0x08, 0, 0x27, 1, 2, 3]);
    }

    #[test]
    fn word_is_written_only_when_that_is_enabled() {
        let mut driver = driver();
        driver.send(0b101 << 6 | 5, 9);
        driver.send(0x1234, 16);
        driver.end();
        assert_eq!(driver.read(5), 0xffff);
        driver.send(0b1_0011_0000, 9);
        driver.end();
        driver.send(0b101 << 6 | 5, 9);
        driver.send(0x1234, 16);
        driver.end();
        assert_eq!(driver.read(5), 0x1234);
        driver.send(0b111 << 6 | 5, 9);
        driver.end();
        assert_eq!(driver.read(5), 0xffff);
    }
}
