//! One IDE channel: the registers of two drives, the data register, and the command that is being executed.
//!
//! ```text
//!   Idle ──command──► Asked ◄──────────────┐
//!    ▲  │               │ answer           │ block full or empty
//!    │  ├──► Packet     ▼                  │
//!    │  └──► Dma     DataIn, DataOut ──────┘
//!    └────── end, with an interrupt
//! ```
//!
//! Spec: ATA8-APT §3-4 (registers, protocols); ACS-3 §7.

mod data;
mod saved;

use device_model::IrqLine;
use serde::Deserialize;
use serde::Serialize;

use crate::Drive;
use crate::ata;
use crate::ata::Protocol;
use crate::ata::Step;
use crate::ata::Taskfile;
use crate::ata::Transfer;
use crate::ata::code;
use crate::ata::error;
use crate::ata::status;
use crate::bytes;
use crate::work::Channel;
use crate::work::Data;
use crate::work::Outcome;
use crate::work::Request;
pub(super) use saved::CableV1;

/// Bytes that are fetched for, or collected from, the data register at a time.
const CHUNK: u64 = 128 << 10;
/// Bytes of a command packet.
const PACKET: usize = 12;

/// Bits of the control register.
const NIEN: u8 = 1 << 1;
const SRST: u8 = 1 << 2;
const HOB: u8 = 1 << 7;
/// Device 1, in the device register.
const DEV: u8 = 1 << 4;
/// The interrupt reason, in the count register of packet devices: a command, and towards the host.
const COD: u8 = 1 << 0;
const IO: u8 = 1 << 1;

/// What follows an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Then {
    End,
    /// The bytes go to the data register.
    Fill,
    /// A chunk is written; the next comes from the data register.
    Written,
    /// The bus master is done; the table of regions was just as long as needed.
    Mastered {
        exact: bool,
    },
}

/// What the channel is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Phase {
    Idle,
    /// The medium was asked for something.
    Asked {
        request: Request,
        then: Then,
    },
    DataIn,
    DataOut,
    Packet,
    /// Waits for the bus master to be started: to send what is in the buffer, take so many bytes, or move sectors.
    Dma {
        take: u32,
    },
}

/// The channel's state, as it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    tasks: [Taskfile; 2],
    second: bool,
    control: u8,
    interrupt: bool,
    /// The command, and which drive executes it.
    code: u8,
    by_second: bool,
    pub(super) phase: Phase,
    /// What is left to be moved.
    pub(super) transfer: Option<Transfer>,
    pub(super) buffer: Vec<u8>,
    /// Bytes that have passed through the data register, and where the present block ends.
    passed: u32,
    block_end: u32,
    /// Bytes of a whole block, and of all that is collected.
    block: u32,
    total: u32,
    /// PACKET was told to use the bus master.
    by_dma: bool,
    pub(super) master: super::dma::Master,
}

impl State {
    fn new() -> Self {
        Self {
            tasks: [Taskfile::default(); 2],
            second: false,
            control: 0,
            interrupt: false,
            code: 0,
            by_second: false,
            phase: Phase::Idle,
            transfer: None,
            buffer: Vec::new(),
            passed: 0,
            block_end: 0,
            block: 512,
            total: 0,
            by_dma: false,
            master: super::dma::Master::default(),
        }
    }
}

/// A channel.
pub(super) struct Cable {
    // Wiring
    irq: IrqLine,
    pub(super) work: Channel,
    // State
    drives: [Option<Drive>; 2],
    pub(super) state: State,
    // Derived
    /// The request of `Phase::Asked` was handed over.
    asked: bool,
    /// The function may access memory.
    pub(super) may_master: bool,
}

impl Cable {
    pub(super) fn new(irq: IrqLine, work: Channel, drives: [Option<Drive>; 2]) -> Self {
        let mut this = Self {
            irq,
            work,
            drives,
            state: State::new(),
            asked: false,
            may_master: false,
        };
        this.sign();
        this
    }

    pub(super) fn set_master(&mut self, may: bool) {
        self.may_master = may;
    }

    pub(super) fn drive_mut(&mut self, index: usize) -> Option<&mut Drive> {
        self.drives.get_mut(index)?.as_mut()
    }

    fn drive(&self, second: bool) -> Option<&Drive> {
        let [one, two] = &self.drives;
        if second { two.as_ref() } else { one.as_ref() }
    }

    fn task(&self, second: bool) -> &Taskfile {
        let [one, two] = &self.state.tasks;
        if second { two } else { one }
    }

    fn task_mut(&mut self, second: bool) -> &mut Taskfile {
        let [one, two] = &mut self.state.tasks;
        if second { two } else { one }
    }

    /// The registers of the drive that executes a command.
    fn executing(&mut self) -> &mut Taskfile {
        self.task_mut(self.state.by_second)
    }

    fn by_packet(&self) -> bool {
        self.state.code == code::PACKET
    }

    fn update_irq(&self) {
        self.irq.set(self.state.interrupt && self.state.control & NIEN == 0);
    }

    fn interrupt(&mut self) {
        self.state.interrupt = true;
        if self.state.control & NIEN == 0 {
            self.state.master.note_interrupt();
        }
        self.update_irq();
    }

    fn clear_interrupt(&mut self) {
        self.state.interrupt = false;
        self.update_irq();
    }

    /// What drives show after a reset.
    fn sign(&mut self) {
        for second in [false, true] {
            let Some(packet) = self.drive(second).map(Drive::is_packet) else {
                continue;
            };
            let task = self.task_mut(second);
            task.set_signature(packet);
            task.error = 1;
            task.status = if packet { 0 } else { status::READY };
        }
    }

    /// Nothing is being executed any more.
    fn stop(&mut self) {
        self.work.abandon();
        self.asked = false;
        self.state.phase = Phase::Idle;
        self.state.transfer = None;
        self.state.buffer = Vec::new();
        (self.state.passed, self.state.block_end) = (0, 0);
    }

    pub(super) fn reset(&mut self) {
        self.stop();
        for drive in self.drives.iter_mut().flatten() {
            drive.reset();
        }
        self.state = State::new();
        self.may_master = false;
        self.sign();
        self.update_irq();
    }
}

/// Registers.
impl Cable {
    fn is_busy(&self) -> bool {
        matches!(self.state.phase, Phase::Asked { .. } | Phase::Dma { .. }) || self.state.control & SRST != 0
    }

    pub(super) fn alternate_status(&self) -> u8 {
        let second = self.state.second;
        if self.drive(second).is_none() {
            return 0;
        }
        let mine = self.state.by_second == second || self.state.control & SRST != 0;
        if mine && self.is_busy() {
            return status::BSY;
        }
        self.task(second).status
    }

    pub(super) fn read_register(&mut self, offset: u8) -> u8 {
        let second = self.state.second;
        if self.drive(second).is_none() {
            return 0;
        }
        let before = usize::from(self.state.control & HOB != 0);
        let task = self.task(second);
        let pair = |pair: [u8; 2]| pair.get(before).copied().unwrap_or(0);
        match offset {
            1 => task.error,
            2 => pair(task.count),
            3 => pair(task.low),
            4 => pair(task.mid),
            5 => pair(task.high),
            6 => task.device | 0xA0,
            _ => {
                // The answer may be there before the device is polled.
                self.go();
                let status = self.alternate_status();
                self.clear_interrupt();
                status
            }
        }
    }

    pub(super) fn write_register(&mut self, offset: u8, value: u8) {
        self.state.control &= !HOB;
        if offset == 7 {
            return self.write_command(value);
        }
        if self.is_busy() {
            return;
        }
        for task in &mut self.state.tasks {
            let pair = match offset {
                1 => &mut task.features,
                2 => &mut task.count,
                3 => &mut task.low,
                4 => &mut task.mid,
                5 => &mut task.high,
                _ => {
                    task.device = value;
                    continue;
                }
            };
            *pair = [value, pair[0]];
        }
        if offset == 6 {
            self.state.second = value & DEV != 0;
        }
    }

    pub(super) fn write_control(&mut self, value: u8) {
        let was = self.state.control;
        self.state.control = value & (NIEN | SRST | HOB);
        if was & SRST == 0 && value & SRST != 0 {
            self.stop();
            self.state.interrupt = false;
            self.state.master.stop();
        } else if was & SRST != 0 && value & SRST == 0 {
            self.state.second = false;
            self.sign();
        }
        self.update_irq();
    }

    fn write_command(&mut self, value: u8) {
        let second = self.state.second;
        let Some(packet) = self.drive(second).map(Drive::is_packet) else {
            return;
        };
        self.clear_interrupt();
        if value == code::DEVICE_RESET && packet {
            self.stop();
            let task = self.task_mut(second);
            task.set_signature(true);
            (task.error, task.status) = (1, 0);
            return;
        }
        if self.is_busy() {
            return;
        }
        self.stop();
        (self.state.code, self.state.by_second) = (value, second);
        self.state.by_dma = matches!(value, 0x06 | 0x47);
        if value == code::DIAGNOSTIC {
            self.state.second = false;
            self.sign();
            return self.interrupt();
        }
        let mut task = *self.task(second);
        task.error = 0;
        let [one, two] = &mut self.drives;
        let drive = if second { two.as_mut() } else { one.as_mut() };
        let step = drive.map_or(Step::Fail(error::ABRT), |drive| drive.command(value, &mut task, false));
        *self.task_mut(second) = task;
        self.follow(step);
    }
}

/// Execution.
impl Cable {
    /// Does what a drive says.
    fn follow(&mut self, step: Step) {
        match step {
            Step::End => self.end(0),
            Step::Fail(error) => self.end(error),
            Step::Send(data) if self.state.by_dma => {
                self.state.buffer = data;
                self.wait_for_master(0);
            }
            Step::Send(data) => {
                self.state.block = if self.by_packet() { self.byte_limit() } else { 512 };
                self.fill(data);
            }
            Step::Take(len) if self.state.by_dma => self.wait_for_master(len),
            Step::Take(len) => {
                self.state.block = if self.by_packet() { self.byte_limit() } else { 512 };
                self.collect(len as u64, false);
            }
            Step::Move(transfer) => self.move_sectors(transfer),
            Step::Ask(request) => self.ask(request, Then::End),
            Step::Packet => {
                let task = self.executing();
                task.count[0] = COD;
                task.status = status::DRDY | status::DRQ;
                self.state.by_dma = self.task(self.state.by_second).features[0] & 1 != 0;
                self.state.buffer = Vec::with_capacity(PACKET);
                self.state.phase = Phase::Packet;
            }
        }
    }

    /// The byte count limit of PACKET: even, and not zero (ACS-3 §7.18.4).
    fn byte_limit(&mut self) -> u32 {
        let task = self.executing();
        match u16::from_le_bytes([task.mid[0], task.high[0]]) & !1 {
            0 => 0xFFFE,
            limit => limit.into(),
        }
    }

    fn move_sectors(&mut self, transfer: Transfer) {
        self.state.transfer = Some(transfer);
        if transfer.protocol == Protocol::Dma || self.state.by_dma {
            return self.wait_for_master(0);
        }
        self.state.block = match transfer.protocol {
            _ if self.by_packet() => self.byte_limit(),
            Protocol::Pio { block } => block,
            _ => 512,
        };
        if transfer.write {
            self.collect(transfer.len.min(CHUNK), false);
        } else {
            self.fetch();
        }
    }

    /// Asks for the next chunk of a transfer to the host.
    fn fetch(&mut self) {
        if let Some((transfer, offset, len)) = self.next_chunk() {
            self.ask(ata::request(&transfer, offset, len, Data::None), Then::Fill);
        }
    }

    /// Takes a chunk off what is left to be moved.
    fn next_chunk(&mut self) -> Option<(Transfer, u64, u64)> {
        let whole = self.state.transfer?;
        let len = whole.len.min(CHUNK);
        self.state.transfer = (whole.len > len).then_some(Transfer {
            offset: whole.offset + len,
            len: whole.len - len,
            ..whole
        });
        Some((whole, whole.offset, len))
    }

    /// Lets the host read bytes through the data register.
    fn fill(&mut self, data: Vec<u8>) {
        self.state.buffer = data;
        self.state.passed = 0;
        self.state.phase = Phase::DataIn;
        self.begin_block(true);
    }

    /// Lets the host write so many bytes through the data register.
    fn collect(&mut self, len: u64, interrupt: bool) {
        self.state.buffer = Vec::new();
        self.state.passed = 0;
        self.state.total = bytes::low32(len);
        self.state.phase = Phase::DataOut;
        self.begin_block(interrupt);
    }

    fn begin_block(&mut self, interrupt: bool) {
        let to_host = self.state.phase == Phase::DataIn;
        let all = if to_host {
            bytes::low32(self.state.buffer.len() as u64)
        } else {
            self.state.total
        };
        let len = self.state.block.min(all.saturating_sub(self.state.passed));
        self.state.block_end = self.state.passed + len;
        let packet = self.by_packet();
        let task = self.executing();
        task.status = status::READY | status::DRQ;
        if packet {
            task.count[0] = if to_host { IO } else { 0 };
            [task.mid[0], task.high[0]] = bytes::low16(len.into()).to_le_bytes();
            task.status = status::DRDY | status::DRQ;
        }
        if interrupt || packet {
            self.interrupt();
        }
    }

    fn ask(&mut self, request: Request, then: Then) {
        self.state.phase = Phase::Asked { request, then };
        self.go();
    }

    pub(super) fn ask_mastered(&mut self, request: Request, exact: bool) {
        self.ask(request, Then::Mastered { exact });
    }

    fn wait_for_master(&mut self, take: usize) {
        let take = bytes::low32(take as u64);
        self.state.phase = Phase::Dma { take };
        self.try_master();
    }

    /// The command ends: without an error, or with these bits of one.
    pub(super) fn end(&mut self, error: u8) {
        self.state.phase = Phase::Idle;
        self.state.transfer = None;
        self.state.buffer = Vec::new();
        let packet = self.by_packet();
        let task = self.executing();
        task.error = error;
        let ready = if packet { status::DRDY } else { status::READY };
        task.status = ready | if error == 0 { 0 } else { status::ERR };
        if packet {
            task.count[0] = IO | COD;
        }
        self.interrupt();
    }

    /// Hands the request over unless that was done, and looks at answers.
    fn go(&mut self) {
        loop {
            if self.asked {
                let Some((_, outcome)) = self.work.answer() else {
                    return;
                };
                self.asked = false;
                self.answered(outcome);
                continue;
            }
            // Answers to what was abandoned.
            while self.work.answer().is_some() {}
            let Phase::Asked { request, .. } = &self.state.phase else {
                return;
            };
            if self.work.is_held() {
                return;
            }
            let medium = self.drive(self.state.by_second).and_then(Drive::medium).cloned();
            let Some(medium) = medium else {
                self.fail(crate::work::Fault::Medium(crate::MediumError::Failed));
                return;
            };
            self.asked = true;
            self.work.submit(&medium, 0, request.clone());
        }
    }

    fn fail(&mut self, fault: crate::work::Fault) {
        let second = self.state.by_second;
        if matches!(
            self.state.phase,
            Phase::Asked {
                then: Then::Mastered { .. },
                ..
            }
        ) {
            self.state.master.finish(true, fault == crate::work::Fault::Memory);
        }
        let drive = self.drive_mut(usize::from(second));
        let error = drive.map_or(error::ABRT, |drive| drive.fault(fault));
        self.end(error);
    }

    fn answered(&mut self, outcome: Outcome) {
        let Phase::Asked { then, .. } = self.state.phase else {
            return;
        };
        let data = match outcome {
            Ok(data) => data,
            Err(fault) => return self.fail(fault),
        };
        match then {
            Then::End => self.end(0),
            Then::Fill => self.fill(data),
            Then::Written => match self.state.transfer {
                Some(rest) => self.collect(rest.len.min(CHUNK), true),
                None => self.end(0),
            },
            Then::Mastered { exact } => {
                self.state.master.finish(exact, false);
                self.end(0);
            }
        }
    }

    pub(super) fn go_on(&mut self) {
        self.work.hold(false);
        self.go();
    }

    pub(super) fn quiesce(&mut self) -> bool {
        self.work.hold(true);
        self.go();
        self.work.in_flight() == 0
    }

    /// The bus master was stopped before its end: the transfer waits for another start.
    pub(super) fn unmaster(&mut self) {
        if let Phase::Asked {
            then: Then::Mastered { .. },
            ..
        } = self.state.phase
        {
            self.work.abandon();
            self.asked = false;
            self.state.phase = Phase::Dma { take: 0 };
        }
    }

    /// Bytes came by way of the bus master.
    pub(super) fn taken(&mut self, given: &[u8]) {
        let (second, code) = (self.state.by_second, self.state.code);
        let task = *self.task(second);
        let drive = self.drive_mut(usize::from(second));
        let step = drive.map_or(Step::Fail(error::ABRT), |drive| drive.receive(code, &task, given));
        self.follow(step);
    }
}
