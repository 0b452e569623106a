//! Intel 82077AA floppy disk controller with two drives.
//!
//! All data transfer commands, by DMA and through the FIFO, formatting, seeks, and the commands that configure. Scans,
//! relative seeks and deleted address marks are not modelled: media keep no such marks, so deleted data read as data. The
//! time that rotation takes is not modelled; a command is carried out a moment after its last byte.
//!
//! ```text
//!   Command ──last byte──► Busy ──deadline──► Result ──last byte──► Command
//!                           │                   ▲
//!                           └──► Fifo (no DMA) ─┘
//! ```
//!
//! Spec: Intel 290166-007 (82077AA) §2 (registers), §4-5 (command set), §6 (status).

mod drive;
mod spec;

use std::collections::VecDeque;
use std::sync::Arc;

use device_model::At;
use device_model::Clock;
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
use device_model::VmTime;
use device_model::Width;
use device_model::Widths;
use serde::Deserialize;
use serde::Serialize;

use crate::dma8237::DmaChannel;
use crate::lanes;
use drive::Drive;
use drive::SECTOR;
use spec::Dor;
use spec::Msr;
use spec::Opcode;
use spec::code;
use spec::st0;
use spec::st1;
use spec::st2;
use spec::st3;

pub use drive::FloppyMedium;
pub use drive::is_floppy_size;

/// Usual first port.
pub const PORT: u64 = 0x3F0;
/// Port of DIR and CCR, apart because a hard disk's register is between.
pub const DIR_PORT: u64 = 0x3F7;
/// Drives that a PC has at most.
pub const DRIVES: usize = 2;

const PORTS: usize = 0;
const DIR: usize = 1;

const fn region(name: &'static str, len: u64) -> Region {
    Region {
        name,
        space: Space::Pio,
        len,
        widths: Widths::BYTE,
    }
}

const REGIONS: [Region; 2] = [region("fdc", 6), region("dir", 1)];

/// Between a command's last byte and its execution, and the time of a seek and a reset.
const COMMAND_NS: u64 = 200_000;
const SEEK_NS: u64 = 500_000;
const RESET_NS: u64 = 50_000;
/// Longest command.
const COMMAND_MAX: usize = 9;
/// Longest result.
const RESULT_MAX: usize = 16;
/// Interrupts after a reset: one for each drive that there could be.
const POLLED: u8 = 4;

/// What the controller is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    /// Waits for bytes of a command.
    Command,
    /// Carries it out at the deadline.
    Busy,
    /// Passes a sector through the FIFO: towards the host, or from it.
    Fifo { to_host: bool },
    /// Has bytes of a result.
    Result,
}

/// Where a transfer is: the bytes that a result ends with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Position {
    cylinder: u8,
    head: u8,
    sector: u8,
    /// Size code: 128 bytes times two to its power.
    size: u8,
}

/// The controller's state, as it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    dor: u8,
    /// Data rate code.
    rate: u8,
    phase: Phase,
    command: Vec<u8>,
    result: VecDeque<u8>,
    /// The sector that passes through the FIFO, and how far.
    sector: Vec<u8>,
    passed: usize,
    position: Position,
    interrupt: bool,
    /// Drives whose polling after a reset was not yet asked for.
    polled: u8,
    /// ST0 of seeks that have ended, and were not yet asked for.
    seeks: VecDeque<(u8, u8)>,
    /// Drives that seek.
    seeking: u8,
    specify: [u8; 2],
    configure: [u8; 2],
    perpendicular: u8,
    locked: bool,
    deadline: Option<VmTime>,
    /// Cylinder of each head, and whether the medium may have changed.
    drives: Vec<(u8, bool)>,
}

impl State {
    fn new() -> Self {
        Self {
            dor: Dor::new().with_not_reset(true).with_gate(true).into_bits(),
            rate: 2,
            phase: Phase::Command,
            command: Vec::new(),
            result: VecDeque::new(),
            sector: Vec::new(),
            passed: 0,
            position: Position::default(),
            interrupt: false,
            polled: 0,
            seeks: VecDeque::new(),
            seeking: 0,
            specify: [0; 2],
            configure: [0; 2],
            perpendicular: 0,
            locked: false,
            deadline: None,
            drives: Vec::new(),
        }
    }
}

/// The controller.
pub struct Fdc {
    // Wiring
    clock: Arc<dyn Clock>,
    irq: IrqLine,
    dma: DmaChannel,
    // State: of the drives, see `State::drives`
    drives: [Drive; DRIVES],
    state: State,
}

impl Fdc {
    /// A controller that interrupts through `irq` and transfers through `dma`, with so many drives (at most two).
    pub fn new(clock: Arc<dyn Clock>, irq: IrqLine, dma: DmaChannel, drives: usize) -> Self {
        let mut this = Self {
            clock,
            irq,
            dma,
            drives: Default::default(),
            state: State::new(),
        };
        for drive in this.drives.iter_mut().take(drives) {
            drive.present = true;
            drive.changed = true;
        }
        this
    }

    /// Puts a medium into drive `index`, or takes it out. False when there is no such drive.
    pub fn insert(&mut self, index: usize, medium: Option<Box<dyn FloppyMedium>>) -> bool {
        let drive = self.drives.get_mut(index).filter(|drive| drive.present);
        drive.map(|drive| drive.insert(medium)).is_some()
    }

    fn dor(&self) -> Dor {
        Dor::from_bits(self.state.dor)
    }

    fn update_irq(&self) {
        self.irq.set(self.state.interrupt && self.dor().gate());
    }

    fn interrupt(&mut self, on: bool) {
        self.state.interrupt = on;
        self.update_irq();
    }

    fn wait(&mut self, ns: u64) {
        self.state.phase = Phase::Busy;
        self.state.deadline = Some(self.clock.now() + ns);
    }

    /// The byte of the command at `index`; zero where there is none.
    fn argument(&self, index: usize) -> u8 {
        self.state.command.get(index).copied().unwrap_or(0)
    }

    fn opcode(&self) -> Opcode {
        Opcode::from_bits(self.argument(0))
    }

    /// Drive number and head that the command names.
    fn unit(&self) -> (u8, u8) {
        let byte = self.argument(1);
        (byte & 3, byte >> 2 & 1)
    }

    fn drive(&mut self, number: u8) -> Option<&mut Drive> {
        self.drives.get_mut(usize::from(number)).filter(|drive| drive.present)
    }
}

impl Registers for Fdc {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        check(at, width)?;
        let value = match (at.region, at.offset) {
            // SRA and SRB exist on PS/2 only.
            (PORTS, 0 | 1) => 0xFF,
            (PORTS, 2) => self.state.dor,
            (PORTS, 3) => 0,
            (PORTS, 4) => self.msr().into_bits(),
            (PORTS, _) => self.read_fifo(),
            _ => self.dir(),
        };
        Ok(u64::from(value))
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        check(at, width)?;
        let value = lanes::byte(value);
        match (at.region, at.offset) {
            (PORTS, 2) => self.write_dor(value),
            (PORTS, 4) => {
                self.state.rate = value & 3;
                // SW RESET clears itself.
                if value & 0x80 != 0 {
                    self.soft_reset();
                    self.wait(RESET_NS);
                }
            }
            (PORTS, 5) => self.write_fifo(value),
            (DIR, _) => self.state.rate = value & 3,
            _ => {}
        }
        Ok(())
    }
}

fn check(at: At, width: Width) -> Result<(), IoError> {
    let region = REGIONS.get(at.region).ok_or(IoError::NoRegister)?;
    if at.offset >= region.len {
        return Err(IoError::NoRegister);
    }
    if width == Width::Byte {
        Ok(())
    } else {
        Err(IoError::Width)
    }
}

impl Fdc {
    fn msr(&self) -> Msr {
        let state = &self.state;
        let msr = Msr::new().with_seeking(state.seeking & 0xF);
        if !self.dor().not_reset() {
            return msr;
        }
        match state.phase {
            Phase::Command => msr.with_ready(true).with_busy(!state.command.is_empty()),
            Phase::Busy if state.command.is_empty() => msr,
            // A seek leaves the controller free.
            Phase::Busy => msr.with_busy(state.seeking == 0),
            Phase::Fifo { to_host } => msr
                .with_ready(true)
                .with_busy(true)
                .with_non_dma(true)
                .with_to_host(to_host),
            Phase::Result => msr.with_ready(true).with_busy(true).with_to_host(true),
        }
    }

    /// DIR: the disk change line of the selected drive while its motor runs.
    fn dir(&self) -> u8 {
        let dor = self.dor();
        let drive = self.drives.get(usize::from(dor.drive()));
        let runs = dor.motors() >> dor.drive() & 1 != 0;
        match drive.filter(|drive| drive.present && runs) {
            Some(drive) if drive.changed => spec::DSKCHG,
            _ => 0,
        }
    }

    fn write_dor(&mut self, value: u8) {
        let was = self.dor();
        self.state.dor = value;
        match (was.not_reset(), self.dor().not_reset()) {
            (true, false) => self.soft_reset(),
            (false, true) => self.wait(RESET_NS),
            _ => {}
        }
        self.update_irq();
    }

    /// What both kinds of software reset do; interrupts follow when it is over.
    fn soft_reset(&mut self) {
        let state = &mut self.state;
        state.phase = Phase::Command;
        state.command.clear();
        state.result.clear();
        state.seeks.clear();
        state.seeking = 0;
        state.polled = 0;
        state.deadline = None;
        if !state.locked {
            state.configure = [0; 2];
        }
        state.perpendicular = 0;
        self.interrupt(false);
    }

    fn read_fifo(&mut self) -> u8 {
        match self.state.phase {
            Phase::Result => {
                self.interrupt(false);
                let byte = self.state.result.pop_front().unwrap_or(0);
                if self.state.result.is_empty() {
                    self.state.command.clear();
                    self.state.phase = Phase::Command;
                }
                byte
            }
            Phase::Fifo { to_host: true } => {
                let byte = self.state.sector.get(self.state.passed).copied().unwrap_or(0);
                self.state.passed += 1;
                if self.state.passed >= self.state.sector.len() {
                    self.next_by_fifo();
                }
                byte
            }
            _ => 0,
        }
    }

    fn write_fifo(&mut self, value: u8) {
        if !self.dor().not_reset() {
            return;
        }
        match self.state.phase {
            Phase::Command => {
                self.state.command.push(value);
                if self.state.command.len() >= spec::command_len(self.opcode()) {
                    self.begin();
                }
            }
            Phase::Fifo { to_host: false } => {
                let passed = self.state.passed;
                if let Some(byte) = self.state.sector.get_mut(passed) {
                    *byte = value;
                }
                self.state.passed += 1;
                if self.state.passed >= self.state.sector.len() {
                    self.write_by_fifo();
                }
            }
            _ => {}
        }
    }

    /// All bytes of a command are there.
    fn begin(&mut self) {
        let opcode = self.opcode();
        match opcode.code() {
            code::SPECIFY => {
                self.state.specify = [self.argument(1), self.argument(2)];
                self.finish(&[]);
            }
            code::CONFIGURE => {
                self.state.configure = [self.argument(2), self.argument(3)];
                self.finish(&[]);
            }
            code::PERPENDICULAR => {
                self.state.perpendicular = self.argument(1);
                self.finish(&[]);
            }
            code::LOCK => {
                self.state.locked = self.argument(0) & spec::LOCK != 0;
                self.finish(&[if self.state.locked { spec::LOCKED } else { 0 }]);
            }
            code::VERSION if self.argument(0) == code::VERSION => self.finish(&[spec::ENHANCED]),
            code::DUMP if self.argument(0) == code::DUMP => self.dump(),
            code::SENSE_DRIVE => self.sense_drive(),
            code::SENSE_INTERRUPT => self.sense_interrupt(),
            code::SEEK | code::RECALIBRATE => {
                let (drive, _) = self.unit();
                self.state.seeking |= 1 << drive;
                self.wait(SEEK_NS);
            }
            code::READ_TRACK..=code::FORMAT | code::VERIFY => self.wait(COMMAND_NS),
            _ => self.finish(&[st0::INVALID]),
        }
    }

    /// Ends a command with these bytes, or without any.
    fn finish(&mut self, result: &[u8]) {
        self.state.result = result.iter().copied().collect();
        self.state.deadline = None;
        if result.is_empty() {
            self.state.command.clear();
            self.state.phase = Phase::Command;
        } else {
            self.state.phase = Phase::Result;
        }
    }

    fn dump(&mut self) {
        let cylinder = |drive: usize| self.drives.get(drive).map_or(0, |drive| drive.cylinder);
        let (one, two) = (cylinder(0), cylinder(1));
        let state = &self.state;
        let ([srt, hlt], [config, pretrk]) = (state.specify, state.configure);
        let lock = if state.locked { 0x80 } else { 0 } | state.perpendicular & 0x7F;
        let last = state.position.sector;
        self.finish(&[one, two, 0, 0, srt, hlt, last, lock, config, pretrk]);
    }

    fn sense_drive(&mut self) {
        let (number, head) = self.unit();
        let mut status = st3::ALWAYS | head << 2 | number;
        if let Some(drive) = self.drive(number) {
            if drive.cylinder == 0 {
                status |= st3::TRACK_0;
            }
            if drive.is_read_only() {
                status |= st3::PROTECTED;
            }
        }
        self.finish(&[status]);
    }

    fn sense_interrupt(&mut self) {
        self.interrupt(false);
        let result = if self.state.polled > 0 {
            let drive = POLLED - self.state.polled;
            self.state.polled -= 1;
            Some((st0::POLLED | drive, drive))
        } else {
            self.state.seeks.pop_front().map(|(status, drive)| (status, drive))
        };
        match result {
            Some((status, drive)) => {
                let cylinder = self.drives.get(usize::from(drive)).map_or(0, |drive| drive.cylinder);
                self.finish(&[status, cylinder]);
            }
            None => self.finish(&[st0::INVALID]),
        }
    }

    /// The deadline has come.
    fn execute(&mut self) {
        self.state.deadline = None;
        self.state.phase = Phase::Command;
        match self.opcode().code() {
            _ if self.state.command.is_empty() => {
                self.state.polled = POLLED;
                self.interrupt(true);
            }
            code::SEEK | code::RECALIBRATE => self.seek(),
            code::READ_ID => self.read_id(),
            code::FORMAT => self.format(),
            _ => self.transfer(),
        }
    }

    fn seek(&mut self) {
        let (number, head) = self.unit();
        let to = match self.opcode().code() {
            code::SEEK => self.argument(2),
            _ => 0,
        };
        let status = match self.drive(number) {
            Some(drive) => {
                drive.seek(to);
                st0::SEEK_END
            }
            // Without a drive there is no track 0 to be found.
            None if to == 0 => st0::ABNORMAL | st0::SEEK_END | st0::EQUIPMENT_CHECK,
            None => st0::SEEK_END,
        };
        self.state.seeking &= !(1 << number);
        if self.state.seeks.len() < DRIVES * 2 {
            self.state.seeks.push_back((status | head << 2 | number, number));
        }
        self.state.command.clear();
        self.interrupt(true);
    }

    /// Whether the drive has a medium that can be read at the present data rate; else the status bytes.
    fn ready(&mut self, number: u8) -> Result<drive::Format, (u8, u8, u8)> {
        let rate = self.state.rate;
        let Some(format) = self.drive(number).and_then(|drive| drive.format()) else {
            return Err((st0::NOT_READY, st1::NO_MARK, 0));
        };
        if format.rates >> rate & 1 == 0 || !self.opcode().mfm() {
            return Err((0, st1::NO_MARK, 0));
        }
        Ok(format)
    }

    /// Whether the sector at the present position is under the head.
    fn find(&mut self, number: u8, head: u8) -> Result<(), (u8, u8, u8)> {
        let format = self.ready(number)?;
        let position = self.state.position;
        let cylinder = self.drive(number).map_or(0, |drive| drive.cylinder);
        if position.cylinder != cylinder || cylinder >= format.cylinders {
            return Err((0, st1::NO_DATA, st2::WRONG_CYLINDER));
        }
        let exists = (1..=format.sectors).contains(&position.sector) && head < format.sides;
        if !exists || position.head != head || position.size != 2 {
            return Err((0, st1::NO_DATA, 0));
        }
        Ok(())
    }

    /// The result of a command that moves data; an error makes it abnormal.
    fn end(&mut self, outcome: Result<(), (u8, u8, u8)>) {
        let (number, head) = self.unit();
        let (zero, one, two) = match outcome {
            Ok(()) => (0, 0, 0),
            Err((zero, one, two)) => (zero | st0::ABNORMAL, one, two),
        };
        let Position {
            cylinder,
            head: id_head,
            sector,
            size,
        } = self.state.position;
        let status = zero | head << 2 | number;
        self.finish(&[status, one, two, cylinder, id_head, sector, size]);
        self.interrupt(true);
    }

    fn read_id(&mut self) {
        let (number, head) = self.unit();
        let found = self.ready(number);
        let cylinder = self.drive(number).map_or(0, |drive| drive.cylinder);
        self.state.position = Position {
            cylinder,
            head,
            sector: 1,
            size: 2,
        };
        let outcome = found.and_then(|format| match head < format.sides && cylinder < format.cylinders {
            true => Ok(()),
            false => Err((0, st1::NO_MARK, 0)),
        });
        self.end(outcome);
    }

    /// Reads, writes and verifies: by DMA at once, without it sector by sector through the FIFO.
    fn transfer(&mut self) {
        self.state.position = Position {
            cylinder: self.argument(2),
            head: self.argument(3),
            sector: self.argument(4),
            size: self.argument(5),
        };
        if self.opcode().code() == code::READ_TRACK {
            self.state.position.sector = 1;
        }
        let by_fifo = self.state.specify.get(1).is_some_and(|byte| byte & spec::ND != 0);
        if by_fifo && self.opcode().code() != code::VERIFY {
            return self.start_by_fifo();
        }
        let outcome = self.transfer_by_dma();
        self.end(outcome);
    }

    fn writes(&self) -> bool {
        matches!(self.opcode().code(), code::WRITE | code::WRITE_DELETED)
    }

    /// A sector under the head into the buffer, or the buffer into it.
    fn sector(&mut self, buffer: &mut [u8; SECTOR], write: bool) -> Result<(), (u8, u8, u8)> {
        let (number, _) = self.unit();
        // Both sides of a cylinder follow each other under MT.
        let side = self.state.position.head & 1;
        self.find(number, side)?;
        let sector = self.state.position.sector;
        let drive = self.drive(number).ok_or((st0::NOT_READY, 0, 0))?;
        if write && drive.is_read_only() {
            return Err((0, st1::NOT_WRITABLE, 0));
        }
        let done = match write {
            true => drive.write(side, sector, buffer),
            false => drive.read(side, sector, buffer),
        };
        done.map_err(|_| (0, st1::DATA_ERROR, 0))
    }

    /// To the next sector. False at the end of the track, or of the cylinder under MT.
    fn advance(&mut self) -> bool {
        let last = self.argument(6);
        let multi_track = self.opcode().multi_track();
        let position = &mut self.state.position;
        if position.sector != last {
            position.sector = position.sector.wrapping_add(1);
            return true;
        }
        position.sector = 1;
        if multi_track {
            position.head ^= 1;
            if position.head & 1 == 1 {
                return true;
            }
        }
        position.cylinder = position.cylinder.wrapping_add(1);
        false
    }

    fn transfer_by_dma(&mut self) -> Result<(), (u8, u8, u8)> {
        let (code, mut buffer) = (self.opcode().code(), [0; SECTOR]);
        // A sector number that is never reached ends the loop where the format does: with no data.
        loop {
            let terminal = if code == code::VERIFY {
                self.sector(&mut buffer, false)?;
                false
            } else if self.writes() {
                // Nothing is taken from memory that cannot be written.
                let (number, side) = (self.unit().0, self.state.position.head & 1);
                self.find(number, side)?;
                if self.drive(number).is_some_and(|drive| drive.is_read_only()) {
                    return Err((0, st1::NOT_WRITABLE, 0));
                }
                let taken = self.dma.take(&mut buffer);
                if taken.bytes == 0 {
                    return Err((0, st1::OVERRUN, 0));
                }
                self.sector(&mut buffer, true)?;
                taken.terminal
            } else {
                self.sector(&mut buffer, false)?;
                let given = self.dma.give(&buffer);
                if given.bytes < SECTOR && !given.terminal {
                    return Err((0, st1::OVERRUN, 0));
                }
                given.terminal
            };
            let more = self.advance();
            match (terminal, more) {
                (true, _) => return Ok(()),
                (false, true) => {}
                (false, false) if code == code::VERIFY => return Ok(()),
                (false, false) => return Err((0, st1::END, 0)),
            }
        }
    }

    fn start_by_fifo(&mut self) {
        let to_host = !self.writes();
        let mut buffer = [0; SECTOR];
        let (number, side) = (self.unit().0, self.state.position.head & 1);
        let outcome = if to_host {
            self.sector(&mut buffer, false)
        } else if self.drive(number).is_some_and(|drive| drive.is_read_only()) {
            Err((0, st1::NOT_WRITABLE, 0))
        } else {
            self.find(number, side)
        };
        if outcome.is_err() {
            return self.end(outcome);
        }
        self.state.sector = buffer.to_vec();
        self.state.passed = 0;
        self.state.phase = Phase::Fifo { to_host };
        self.interrupt(true);
    }

    /// A sector has passed to the host.
    fn next_by_fifo(&mut self) {
        self.interrupt(false);
        // There is no terminal count without DMA: the last sector is the end, and an error to say so.
        if self.advance() {
            self.start_by_fifo();
        } else {
            self.end(Err((0, st1::END, 0)));
        }
    }

    /// A sector has come from the host.
    fn write_by_fifo(&mut self) {
        self.interrupt(false);
        let mut buffer = [0; SECTOR];
        for (to, from) in buffer.iter_mut().zip(&self.state.sector) {
            *to = *from;
        }
        match self.sector(&mut buffer, true) {
            Ok(()) => self.next_by_fifo(),
            error => self.end(error),
        }
    }

    /// Fills a track: for each sector the host gives an address of four bytes.
    fn format(&mut self) {
        let (number, head) = self.unit();
        let (size, count, fill) = (self.argument(2), self.argument(3), self.argument(5));
        let mut outcome = self.ready(number).map(|_| ());
        for _ in 0..count {
            if outcome.is_err() {
                break;
            }
            let mut id = [0; 4];
            let taken = self.dma.take(&mut id);
            if taken.bytes < id.len() {
                outcome = Err((0, st1::OVERRUN, 0));
                break;
            }
            let [cylinder, id_head, sector, _] = id;
            self.state.position = Position {
                cylinder,
                head: id_head,
                sector,
                size,
            };
            outcome = self
                .find(number, head)
                .and_then(|()| self.sector(&mut [fill; SECTOR], true));
            if taken.terminal {
                break;
            }
        }
        self.end(outcome);
    }
}

impl Device for Fdc {
    fn reset(&mut self, _kind: Reset) {
        self.state = State::new();
        for drive in self.drives.iter_mut().filter(|drive| drive.present) {
            drive.cylinder = 0;
            drive.changed = true;
        }
        self.update_irq();
    }

    fn poll(&mut self, now: VmTime) -> Option<VmTime> {
        if self.state.deadline.is_some_and(|deadline| deadline <= now) {
            self.execute();
        }
        self.state.deadline
    }
}

impl Snapshot for Fdc {
    type State = FdcV1;

    fn save(&self) -> FdcV1 {
        let Self {
            clock: _,
            irq: _,
            dma: _,
            drives,
            state,
        } = self;
        let mut state = state.clone();
        state.drives = drives.iter().map(|drive| (drive.cylinder, drive.changed)).collect();
        FdcV1 { state }
    }

    fn restore(&mut self, saved: FdcV1) -> Result<(), RestoreError> {
        let FdcV1 { mut state } = saved;
        let sound = state.command.len() <= COMMAND_MAX
            && state.result.len() <= RESULT_MAX
            && state.seeks.len() <= DRIVES * 2
            && state.sector.len() <= SECTOR
            && state.passed <= SECTOR
            && state.polled <= POLLED
            && state.rate <= 3
            && state.drives.len() == DRIVES
            && (state.phase != Phase::Busy || state.deadline.is_some());
        if !sound {
            return Err(RestoreError::Invalid("fdc state that cannot be".to_owned()));
        }
        for (drive, (cylinder, changed)) in self.drives.iter_mut().zip(state.drives.drain(..)) {
            drive.cylinder = cylinder;
            drive.changed = changed;
        }
        self.state = state;
        self.update_irq();
        Ok(())
    }
}

impl Inspect for Fdc {
    fn inspect(&self) -> Node {
        let drives = self.drives.iter().filter(|drive| drive.present).enumerate();
        let tree = Node::tree()
            .with("dor", self.state.dor)
            .with("msr", self.msr().into_bits())
            .with("phase", format!("{:?}", self.state.phase))
            .with("interrupt", self.state.interrupt);
        drives.fold(tree, |tree, (number, drive)| {
            let node = Node::tree()
                .with("cylinder", drive.cylinder)
                .with("changed", drive.changed)
                .with("medium", drive.format().is_some());
            tree.with(&format!("drive{number}"), node)
        })
    }
}

/// Saved state of [`Fdc`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FdcV1 {
    state: State,
}

impl Schema for FdcV1 {
    const NAME: &'static str = "fdc";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests;
