//! One counter of the 8254.
//!
//! Nothing happens tick by tick: count and output follow from the tick at which the count was loaded.
//!
//! Spec: Intel 231164-005 §"Mode Definitions", §"Read/Write Operations".

use device_model::Node;
use serde::Deserialize;
use serde::Serialize;

use crate::lanes;

/// Whether and since when a counter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Run {
    /// No count has been written since the control word.
    Stopped,
    /// Has a count and waits for its gate to rise.
    Armed,
    /// The count was, or will be, loaded at this tick.
    Since(u64),
    /// The gate holds the count this many ticks after it was loaded.
    Held(u64),
}

/// A count that is loaded at a later tick, in modes 2 and 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Next {
    count: u32,
    tick: u64,
    /// At the end of a high half of mode 3, so that a low half follows.
    low_half: bool,
}

/// A counter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Counter {
    mode: u8,
    bcd: bool,
    /// 1 low byte, 2 high byte, 3 both.
    access: u8,
    gate: bool,
    /// Count register as written.
    written: u16,
    /// Count that was loaded: 1 to 65536.
    count: u32,
    run: Run,
    next: Option<Next>,
    /// The count register waits for a trigger to be loaded.
    unloaded: bool,
    /// Low byte that waits for its high byte.
    low_byte: Option<u8>,
    /// The next read of an unlatched count gives the high byte.
    high_read: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Counter {
    pub(super) fn new(gate: bool) -> Self {
        Self {
            mode: 0,
            bcd: false,
            access: 3,
            gate,
            written: 0,
            count: 0x1_0000,
            run: Run::Stopped,
            next: None,
            unloaded: true,
            low_byte: None,
            high_read: false,
            latched_count: None,
            latched_status: None,
        }
    }

    pub(super) fn is_legal(&self) -> bool {
        let counts = 1..=0x1_0000;
        self.mode <= 5
            && (1..=3).contains(&self.access)
            && counts.contains(&self.count)
            && self.next.is_none_or(|next| counts.contains(&next.count))
    }

    pub(super) fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// Ticks after which a count of 0 comes round.
    fn modulus(&self) -> u32 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    fn decode(&self, written: u16) -> u32 {
        let value = if self.bcd {
            [12u32, 8, 4, 0]
                .into_iter()
                .fold(0, |value, shift| value * 10 + u32::from(written >> shift & 0xF))
        } else {
            written.into()
        };
        if value == 0 { self.modulus() } else { value }
    }

    fn encode(&self, count: u32) -> u16 {
        let count = count % self.modulus();
        if !self.bcd {
            return lanes::word(count.into());
        }
        let digits = [1_000u32, 100, 10, 1].map(|unit| count / unit % 10);
        lanes::word(digits.into_iter().fold(0, |value, digit| value << 4 | u64::from(digit)))
    }

    /// Length of the high half of mode 3.
    fn high_half(count: u32) -> u64 {
        u64::from(count).div_ceil(2)
    }

    /// Ticks since the count was loaded.
    fn elapsed(&self, tick: u64) -> u64 {
        match self.run {
            Run::Since(base) => tick.saturating_sub(base),
            Run::Held(elapsed) => elapsed,
            Run::Stopped | Run::Armed => 0,
        }
    }

    /// The OUT pin.
    pub(super) fn output(&self, tick: u64) -> bool {
        let count = u64::from(self.count);
        let elapsed = self.elapsed(tick);
        let counting = matches!(self.run, Run::Since(_) | Run::Held(_));
        match self.mode {
            0 => counting && elapsed >= count,
            _ if !counting => true,
            1 => matches!(self.run, Run::Since(base) if tick < base) || elapsed >= count,
            2 => elapsed % count != count - 1,
            3 => elapsed % count < Self::high_half(self.count),
            _ => elapsed != count,
        }
    }

    /// The counting element as software reads it.
    fn value(&self, tick: u64) -> u16 {
        let count = u64::from(self.count);
        let elapsed = self.elapsed(tick);
        let value = match self.mode {
            2 => count - elapsed % count,
            3 => {
                let within = elapsed % count;
                let half = Self::high_half(self.count);
                // Odd counts are made even before they are counted down by twos.
                (count & !1).saturating_sub(2 * (if within < half { within } else { within - half }))
            }
            _ => {
                let modulus = u64::from(self.modulus());
                (count % modulus + modulus - elapsed % modulus) % modulus
            }
        };
        self.encode(lanes::dword(value))
    }

    fn status(&self, tick: u64) -> u8 {
        let waiting = matches!(self.run, Run::Since(base) if tick < base);
        let null = self.unloaded || self.next.is_some() || waiting;
        u8::from(self.output(tick)) << 7 | u8::from(null) << 6 | self.access << 4 | self.mode << 1 | u8::from(self.bcd)
    }

    /// Loads a count whose tick has come.
    pub(super) fn settle(&mut self, tick: u64) {
        let Some(next) = self.next.filter(|next| next.tick <= tick) else {
            return;
        };
        let into = if next.low_half { Self::high_half(next.count) } else { 0 };
        self.next = None;
        self.count = next.count;
        self.run = Run::Since(next.tick.saturating_sub(into));
    }

    /// The first tick after `tick` at which the output rises.
    pub(super) fn rises_after(&self, tick: u64) -> Option<u64> {
        let Run::Since(base) = self.run else {
            return None;
        };
        let count = u64::from(self.count);
        let once = |ticks| Some(base.saturating_add(ticks)).filter(|edge| *edge > tick);
        match self.mode {
            0 | 1 => once(count),
            4 | 5 => once(count + 1),
            // A count of 1 is not legal here and never makes an edge.
            _ if count < 2 => None,
            _ => Some(base.saturating_add((self.elapsed(tick) / count + 1).saturating_mul(count))),
        }
    }

    /// The first tick after `tick` at which something happens that cannot be found out later.
    pub(super) fn next_event(&self, tick: u64) -> Option<u64> {
        let edge = self.rises_after(tick);
        let load = self.next.map(|next| next.tick).filter(|load| *load > tick);
        match (edge, load) {
            (Some(edge), Some(load)) => Some(edge.min(load)),
            (edge, load) => edge.or(load),
        }
    }

    /// A control word for this counter.
    pub(super) fn program(&mut self, mode: u8, bcd: bool, access: u8) {
        *self = Self {
            // Modes 6 and 7 are 2 and 3.
            mode: if mode > 5 { mode - 4 } else { mode },
            bcd,
            access,
            ..Self::new(self.gate)
        };
    }

    /// Latches what the read-back or latch command names; what is latched already stays.
    pub(super) fn read_back(&mut self, count: bool, status: bool, tick: u64) {
        if status && self.latched_status.is_none() {
            self.latched_status = Some(self.status(tick));
        }
        if count && self.latched_count.is_none() {
            self.latched_count = Some(self.value(tick));
            self.high_read = false;
        }
    }

    pub(super) fn read(&mut self, tick: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched_count.unwrap_or_else(|| self.value(tick)).to_le_bytes();
        let high_now = self.access == 2 || self.access == 3 && self.high_read;
        self.high_read = self.access == 3 && !self.high_read;
        if !self.high_read {
            self.latched_count = None;
        }
        if high_now { high } else { low }
    }

    pub(super) fn write(&mut self, byte: u8, tick: u64) {
        let count = match (self.access, self.low_byte.take()) {
            (1, _) => u16::from(byte),
            (2, _) => u16::from(byte) << 8,
            (_, Some(low)) => u16::from_le_bytes([low, byte]),
            (_, None) => {
                self.low_byte = Some(byte);
                if self.mode == 0 {
                    // The first byte stops the count and pulls the output low.
                    self.run = Run::Stopped;
                }
                return;
            }
        };
        self.written = count;
        self.unloaded = true;
        match (self.mode, self.run) {
            (0 | 4, _) => self.load(tick),
            (2 | 3, Run::Since(base)) if base <= tick => self.load_later(base, tick),
            (2 | 3, _) if self.gate => self.load(tick),
            (_, Run::Stopped) => self.run = Run::Armed,
            _ => {}
        }
    }

    /// The next clock loads the count register.
    fn load(&mut self, tick: u64) {
        self.count = self.decode(self.written);
        self.unloaded = false;
        self.next = None;
        self.run = if self.gate || !matches!(self.mode, 0 | 4) {
            Run::Since(tick.saturating_add(1))
        } else {
            Run::Held(0)
        };
    }

    /// The end of the period, or of the half in mode 3, loads the count register.
    fn load_later(&mut self, base: u64, tick: u64) {
        let count = u64::from(self.count);
        let elapsed = self.elapsed(tick);
        let period_start = base.saturating_add(elapsed - elapsed % count);
        let half = Self::high_half(self.count);
        let low_half = self.mode == 3 && elapsed % count < half && half < count;
        let ticks = if low_half { half } else { count };
        self.unloaded = false;
        self.next = Some(Next {
            count: self.decode(self.written),
            tick: period_start.saturating_add(ticks),
            low_half,
        });
    }

    pub(super) fn set_gate(&mut self, gate: bool, tick: u64) {
        let rises = gate && !self.gate;
        let falls = !gate && self.gate;
        self.gate = gate;
        match (self.mode, self.run) {
            (_, Run::Stopped) => {}
            (0 | 4, Run::Since(_)) if falls => self.run = Run::Held(self.elapsed(tick)),
            (0 | 4, Run::Held(elapsed)) if rises => self.run = Run::Since(tick.saturating_sub(elapsed)),
            (1 | 5, _) | (2 | 3, _) if rises => self.load(tick),
            (2 | 3, _) if falls => {
                self.next = None;
                self.run = Run::Armed;
            }
            _ => {}
        }
    }

    pub(super) fn inspect(&self, tick: u64) -> Node {
        Node::tree()
            .with("mode", self.mode)
            .with("bcd", self.bcd)
            .with("gate", self.gate)
            .with("reload", self.written)
            .with("count", self.value(tick))
            .with("output", self.output(tick))
            .with("running", matches!(self.run, Run::Since(_)))
    }
}
