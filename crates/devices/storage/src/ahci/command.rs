//! Commands of a port: from a slot of the command list to the FIS that ends it.
//!
//! Commands without a tag are executed one at a time; those with one side by side. After an error nothing is begun until
//! the host has stopped the port.
//!
//! Spec: AHCI 1.3.1 §4.2.2-4.2.3 (command list and table), §5.3, §6.2 (errors); ACS-3 §9.9 (queued error log).
use super::fis;
use super::port::Port;
use super::port::cmd;
use super::port::is;
use crate::ata;
use crate::ata::Protocol;
use crate::ata::Step;
use crate::ata::Taskfile;
use crate::ata::Transfer;
use crate::ata::code;
use crate::ata::error;
use crate::ata::status;
use crate::bytes;
use crate::work::Data;
use crate::work::Fault;
use crate::work::Outcome;
use crate::work::Request;
use crate::work::SEGMENTS;
use crate::work::Segment;

/// Parts of a command table.
const PACKET_AT: u64 = 0x40;
const REGIONS_AT: u64 = 0x80;
const REGION_LEN: u64 = 16;
/// In the second byte of a FIS: it writes the command register, not the control register.
const COMMAND: u8 = 1 << 7;
/// In the control register: software reset.
const SRST: u8 = 1 << 2;

/// A slot that waits for the medium.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    slot: u8,
    kind: Kind,
    /// Bytes that are moved.
    len: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Ends with a register FIS.
    Plain,
    /// Ends with a PIO setup FIS.
    PioRead,
    Queued,
}

impl Begun {
    pub(super) fn keeps_busy(&self) -> bool {
        self.kind != Kind::Queued
    }
}

/// A slot, read from memory.
#[derive(Clone, Copy, Debug)]
struct Slot {
    number: u8,
    regions: u32,
    table: u64,
    /// The command is a packet's.
    packet: bool,
}

impl Port {
    /// Begins what can be begun, and looks at answers.
    pub(super) fn go(&mut self) {
        while let Some((token, outcome)) = self.work.answer() {
            let at = self.begun.iter().position(|begun| u64::from(begun.slot) == token);
            if let Some(begun) = at.map(|at| self.begun.swap_remove(at)) {
                self.answered(begun, outcome);
            }
        }
        // Each slot once: one that ends at once can only be filled again by the host.
        for slot in 0..32 {
            if !self.may_begin() {
                return;
            }
            let bit = 1u32 << slot;
            let begun = self.begun.iter().any(|begun| begun.slot == slot);
            if (self.state.ci | self.state.tagged) & bit != 0 && !begun {
                self.begin(slot);
            }
            // Requests may be answered within the call.
            while let Some((token, outcome)) = self.work.answer() {
                let at = self.begun.iter().position(|begun| u64::from(begun.slot) == token);
                if let Some(begun) = at.map(|at| self.begun.swap_remove(at)) {
                    self.answered(begun, outcome);
                }
            }
        }
    }

    fn may_begin(&self) -> bool {
        let runs = self.state.cmd & cmd::ST != 0 && self.may_master && !self.work.is_held();
        runs && !self.state.failed && self.drive.is_some() && !self.begun.iter().any(Begun::keeps_busy)
    }

    /// The slot's entry of the command list.
    fn slot(&self, number: u8) -> Option<Slot> {
        let entry: [u8; 16] = self.work.memory().read_obj(self.slot_at(number)).ok()?;
        Some(Slot {
            number,
            regions: bytes::le32(&entry, 0) >> 16,
            table: bytes::le64(&entry, 8) & !0x7F,
            packet: false,
        })
    }

    fn begin(&mut self, number: u8) {
        let slot = self.slot(number);
        let table = slot.and_then(|slot| self.work.memory().read_obj::<[u8; 0x20]>(slot.table).ok());
        let (Some(mut slot), Some(fis)) = (slot, table) else {
            // There is no memory where the list or the table is said to be (§6.1.5).
            self.state.is |= is::HBFS;
            return self.fail(number, error::ABRT, None);
        };
        let [kind, flags, code, ..] = fis;
        if kind != fis::FROM_HOST {
            return self.fail(number, error::ABRT, None);
        }
        if flags & COMMAND == 0 {
            return self.control(slot, bytes::at(&fis, 15));
        }
        if code == ata::code::DEVICE_RESET || code == code::DIAGNOSTIC {
            // The register FIS says what the drive is.
            self.sign();
            self.state.ci &= !(1 << slot.number);
            self.state.is |= is::DHRS;
            return;
        }
        let mut task = fis::taskfile(&fis, &self.state.task);
        task.error = 0;
        slot.packet = code == code::PACKET;
        let queued = matches!(code, 0x60 | 0x61);
        if !queued && self.begun.iter().any(|begun| begun.kind == Kind::Queued) {
            // It waits until the queue is empty.
            return;
        }
        let asks_failed_tag = matches!(code, 0x2F | 0x47) && task.low[0] == 0x10;
        let failed_tag = self.state.failed_tag.filter(|_| asks_failed_tag);
        let step = match (&mut self.drive, failed_tag) {
            (_, Some(tag)) => Step::Send(self.error_log(tag)),
            (Some(drive), None) => drive.command(code, &mut task, true),
            (None, None) => Step::Fail(error::ABRT),
        };
        if queued {
            return self.begin_queued(slot, &task, step);
        }
        self.state.task = task;
        self.follow(slot, code, step);
    }

    /// A control register is written: the drive is reset by setting and clearing a bit.
    fn control(&mut self, slot: Slot, control: u8) {
        let reset = control & SRST != 0;
        self.state.ci &= !(1 << slot.number);
        if self.state.held && !reset {
            self.sign();
            self.state.is |= is::DHRS;
        }
        self.state.held = reset;
        self.state.failed_tag = None;
    }

    fn begin_queued(&mut self, slot: Slot, task: &Taskfile, step: Step) {
        let bit = 1 << slot.number;
        // The tag is the slot's number, in bits 7-3 of the count.
        let tag = task.count[0] >> 3;
        self.state.ci &= !bit;
        match step {
            Step::Move(transfer) if tag == slot.number => {
                self.state.tagged |= bit;
                self.state.sact |= bit;
                let Some(regions) = self.regions(slot, transfer.len) else {
                    self.state.is |= is::OFS;
                    return self.fail(slot.number, error::ABRT, Some(tag));
                };
                let request = ata::request(&transfer, transfer.offset, transfer.len, Data::Guest(regions));
                self.submit(slot.number, request, Kind::Queued);
            }
            Step::Fail(error) => self.fail(slot.number, error, Some(slot.number)),
            _ => self.fail(slot.number, error::ABRT, Some(slot.number)),
        }
    }

    fn submit(&mut self, slot: u8, request: Request, kind: Kind) {
        let medium = self.drive.as_ref().and_then(|drive| drive.medium()).cloned();
        let Some(medium) = medium else {
            return self.fault(slot, Fault::Medium(crate::MediumError::Failed), kind);
        };
        let len = request.len;
        self.begun.push(Begun { slot, kind, len });
        self.work.submit(&medium, slot.into(), request);
    }

    fn follow(&mut self, slot: Slot, code: u8, step: Step) {
        match step {
            Step::End => self.done(slot.number, 0, Kind::Plain),
            Step::Fail(error) => self.fail(slot.number, error, None),
            Step::Send(data) => self.send(slot, code, &data),
            Step::Take(len) => match self.gather(slot, len) {
                Some(given) => {
                    let task = self.state.task;
                    let drive = self.drive.as_mut();
                    let next = drive.map_or(Step::Fail(error::ABRT), |drive| drive.receive(code, &task, &given));
                    // What follows asks for nothing more from the host.
                    match next {
                        Step::Take(_) => self.fail(slot.number, error::ABRT, None),
                        next => self.follow(slot, code, next),
                    }
                }
                None => self.fail(slot.number, error::ABRT, None),
            },
            Step::Move(transfer) => self.move_sectors(slot, &transfer),
            Step::Ask(request) => self.submit(slot.number, request, Kind::Plain),
            Step::Packet => {
                let packet = self
                    .work
                    .memory()
                    .read_obj::<[u8; 12]>(slot.table.wrapping_add(PACKET_AT));
                let next = match (packet, &mut self.drive) {
                    (Ok(packet), Some(drive)) => drive.packet(&packet),
                    _ => Step::Fail(error::ABRT),
                };
                self.follow(slot, code, next);
            }
        }
    }

    fn move_sectors(&mut self, slot: Slot, transfer: &Transfer) {
        let Some(regions) = self.regions(slot, transfer.len) else {
            self.state.is |= is::OFS;
            return self.fail(slot.number, error::ABRT, None);
        };
        let by_pio = matches!(transfer.protocol, Protocol::Pio { .. }) && !slot.packet && !transfer.write;
        let kind = if by_pio { Kind::PioRead } else { Kind::Plain };
        let request = ata::request(transfer, transfer.offset, transfer.len, Data::Guest(regions));
        self.submit(slot.number, request, kind);
    }

    /// The first `need` bytes of the table's regions; none when they are fewer, or there is no table.
    fn regions(&self, slot: Slot, need: u64) -> Option<Vec<Segment>> {
        let (mut regions, mut left) = (Vec::new(), need);
        for index in 0..u64::from(slot.regions).min(SEGMENTS as u64) {
            let at = slot.table.wrapping_add(REGIONS_AT + index * REGION_LEN);
            let entry: [u8; 16] = self.work.memory().read_obj(at).ok()?;
            let len = u64::from(bytes::le32(&entry, 12) & 0x3F_FFFF) + 1;
            regions.push(Segment {
                gpa: bytes::le64(&entry, 0) & !1,
                len: bytes::low32(len.min(left)),
            });
            if len >= left {
                return Some(regions);
            }
            left -= len;
        }
        None
    }

    /// As many bytes as there is room for go to the host.
    fn send(&mut self, slot: Slot, code: u8, data: &[u8]) {
        let (mut rest, mut sent) = (data, 0u64);
        for index in 0..u64::from(slot.regions) {
            let Some(all) = self.region(slot, index).filter(|_| !rest.is_empty()) else {
                break;
            };
            let len = bytes::index(all.len.into()).min(rest.len());
            let (now, later) = rest.split_at_checked(len).unwrap_or_default();
            if self.work.memory().write(all.gpa, now).is_err() {
                self.state.is |= is::HBFS;
                return self.fail(slot.number, error::ABRT, None);
            }
            sent += len as u64;
            rest = later;
        }
        // READ LOG DMA and packets end with a register FIS.
        let kind = if slot.packet || code == 0x47 {
            Kind::Plain
        } else {
            Kind::PioRead
        };
        self.done(slot.number, sent, kind);
    }

    fn region(&self, slot: Slot, index: u64) -> Option<Segment> {
        let at = slot.table.wrapping_add(REGIONS_AT + index * REGION_LEN);
        let entry: [u8; 16] = self.work.memory().read_obj(at).ok()?;
        Some(Segment {
            gpa: bytes::le64(&entry, 0) & !1,
            len: (bytes::le32(&entry, 12) & 0x3F_FFFF) + 1,
        })
    }

    fn gather(&self, slot: Slot, len: usize) -> Option<Vec<u8>> {
        let regions = self.regions(slot, len as u64)?;
        let mut given = Vec::with_capacity(len);
        for region in regions {
            let mut part = vec![0; bytes::index(region.len.into())];
            self.work.memory().read(region.gpa, &mut part).ok()?;
            given.extend(part);
        }
        Some(given)
    }

    fn answered(&mut self, begun: Begun, outcome: Outcome) {
        match outcome {
            Ok(_) => self.done(begun.slot, begun.len, begun.kind),
            Err(fault) => self.fault(begun.slot, fault, begun.kind),
        }
    }

    fn fault(&mut self, slot: u8, fault: Fault, kind: Kind) {
        if fault == Fault::Memory {
            self.state.is |= is::HBFS;
        }
        let error = self.drive.as_mut().map_or(error::ABRT, |drive| drive.fault(fault));
        self.fail(slot, error, (kind == Kind::Queued).then_some(slot));
    }

    /// A command has ended well.
    fn done(&mut self, slot: u8, len: u64, kind: Kind) {
        let bit = 1 << slot;
        self.state.ci &= !bit;
        self.state.task.error = 0;
        self.state.task.status = status::READY;
        let task = self.state.task;
        match kind {
            Kind::Queued => {
                self.state.sact &= !bit;
                self.state.tagged &= !bit;
                self.post(fis::SET_BITS_AT, &fis::set_bits(&task, bit));
                self.state.is |= is::SDBS;
                return;
            }
            Kind::PioRead => {
                let fis = fis::pio_setup(&task, true, bytes::low16(len.min(8192)));
                self.post(fis::PIO_SETUP_AT, &fis);
                self.state.is |= is::PSS;
            }
            Kind::Plain => {
                let packet = self.drive.as_ref().is_some_and(|drive| drive.is_packet());
                if packet {
                    // The interrupt reason: done.
                    self.state.task.count[0] = 3;
                }
                self.post(fis::REGISTERS_AT, &fis::to_host(&self.state.task, true));
                self.state.is |= is::DHRS;
            }
        }
        // Bytes that were moved, in the slot's second word.
        let count = bytes::low32(len);
        let _ = self.work.memory().write_obj(self.slot_at(slot).wrapping_add(4), &count);
    }

    /// A command has failed: the port stands still until the host has stopped it.
    fn fail(&mut self, slot: u8, error: u8, tag: Option<u8>) {
        self.state.task.error = error;
        self.state.task.status = status::READY | status::ERR;
        self.state.failed = true;
        self.state.is |= is::TFES;
        let task = self.state.task;
        if tag.is_some() {
            // The others of the queue end too; the host asks again for those whose bits are left.
            let sact = self.state.sact;
            self.abandon();
            self.state.sact = sact | 1 << slot;
            self.state.failed_tag = tag;
            self.post(fis::SET_BITS_AT, &fis::set_bits(&task, 0));
            self.state.is |= is::SDBS;
        } else {
            self.state.failed_tag = None;
            self.state.ci |= 1 << slot;
            self.post(fis::REGISTERS_AT, &fis::to_host(&task, true));
            self.state.is |= is::DHRS;
        }
    }

    /// Log 10h: the queued command that failed.
    fn error_log(&self, tag: u8) -> Vec<u8> {
        let task = &self.state.task;
        let mut page = vec![0; 512];
        bytes::put(&mut page, 0, &[tag, 0, status::READY | status::ERR, error::ABRT]);
        bytes::put(&mut page, 7, &[task.device]);
        let sum = page.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
        bytes::put(&mut page, 511, &[sum]);
        page
    }
}
