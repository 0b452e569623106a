//! An ATA hard disk: its commands and what they change in it.
//!
//! All reads and writes by PIO, DMA and under tags, with 28 and 48 address bits or by cylinder; caches, SMART, logs,
//! TRIM, modes and power states. Security, HPA and DCO are not modelled; the disk says so.
//!
//! Spec: ACS-3 §7 (commands), §9 (logs); ATA/ATAPI-5 §8 (cylinder addresses).

use std::sync::Arc;

use device_model::Node;
use device_model::RestoreError;
use serde::Deserialize;
use serde::Serialize;

use super::Identity;
use super::Protocol;
use super::SECTOR;
use super::Step;
use super::Taskfile;
use super::Transfer;
use super::error;
use super::identify;
use super::identify::Shown;
use super::smart;
use crate::bytes;
use crate::medium::Medium;
use crate::medium::MediumError;
use crate::work::Data;
use crate::work::Fault;
use crate::work::Op;
use crate::work::Request;

/// Sectors of a DRQ block in READ MULTIPLE at most.
const MULTIPLE_MAX: u8 = 16;
const LBA28_END: u64 = 1 << 28;
/// LBA mode, in the device register.
const LBA: u8 = 1 << 6;

/// SMART's key in LBA mid and high.
const SMART_KEY: (u8, u8) = (0x4F, 0xC2);

/// How a command names its sectors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// 28 bits or cylinders; a count of 0 is 256.
    Short,
    /// 48 bits; a count of 0 is 65536.
    Long,
    /// 48 bits, the count in the features.
    Tagged,
}

/// A disk.
pub struct Disk {
    // Wiring
    medium: Arc<dyn Medium>,
    // Configuration
    identity: Identity,
    sectors: u64,
    // State
    state: DiskState,
}

/// Saved state of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskState {
    multiple: u8,
    write_cache: bool,
    look_ahead: bool,
    smart: bool,
    mode: u8,
    geometry: (u16, u8, u8),
    standby: bool,
    self_test: u8,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk")
            .field("identity", &self.identity)
            .field("sectors", &self.sectors)
            .finish_non_exhaustive()
    }
}

impl Disk {
    pub(super) fn new(medium: Arc<dyn Medium>, identity: Identity) -> Self {
        // 48 bits of address.
        let sectors = (medium.size() / SECTOR).min(1 << 48);
        Self {
            medium,
            identity,
            sectors,
            state: DiskState {
                multiple: MULTIPLE_MAX,
                write_cache: true,
                look_ahead: true,
                smart: true,
                mode: 0x45,
                geometry: identify::default_geometry(sectors),
                standby: false,
                self_test: 0,
            },
        }
    }

    pub(super) fn medium(&self) -> &Arc<dyn Medium> {
        &self.medium
    }

    pub(super) fn reset(&mut self) {
        // A fresh state from what does not change.
        self.state = Self::new(Arc::clone(&self.medium), self.identity.clone()).state;
    }

    pub(super) fn fault(&self, fault: Fault) -> u8 {
        match fault {
            Fault::Medium(MediumError::Protected) => error::ABRT,
            Fault::Medium(MediumError::Beyond) => error::IDNF,
            Fault::Medium(MediumError::Failed) => error::UNC,
            Fault::Memory | Fault::Differs => error::ICRC | error::ABRT,
        }
    }

    pub(super) fn command(&mut self, code: u8, task: &mut Taskfile, sata: bool) -> Step {
        self.state.standby =
            matches!(code, 0xE0 | 0xE2 | 0x94 | 0x96 | 0xE6 | 0x99) || self.state.standby && code == 0xE5;
        let multiple = u32::from(self.state.multiple) * 512;
        let pio = |block| Protocol::Pio { block };
        match code {
            0x10..=0x1F | 0x70..=0x7F => Step::End,
            0x20 | 0x21 => self.transfer(task, Form::Short, false, pio(512)),
            0x24 => self.transfer(task, Form::Long, false, pio(512)),
            0x30 | 0x31 => self.transfer(task, Form::Short, true, pio(512)),
            0x34 => self.transfer(task, Form::Long, true, pio(512)),
            0xC4 | 0xC5 if multiple > 0 => self.transfer(task, Form::Short, code == 0xC5, pio(multiple)),
            0x29 | 0x39 | 0xCE if multiple > 0 => self
                .transfer(task, Form::Long, code != 0x29, pio(multiple))
                .through(code == 0xCE),
            0xC8 | 0xC9 => self.transfer(task, Form::Short, false, Protocol::Dma),
            0xCA | 0xCB => self.transfer(task, Form::Short, true, Protocol::Dma),
            0x25 => self.transfer(task, Form::Long, false, Protocol::Dma),
            0x35 | 0x3D => self
                .transfer(task, Form::Long, true, Protocol::Dma)
                .through(code == 0x3D),
            0x60 | 0x61 if sata => {
                let through = task.device & 0x80 != 0;
                self.transfer(task, Form::Tagged, code == 0x61, Protocol::Queued)
                    .through(through)
            }
            0x40 | 0x41 => self.verify(task, Form::Short),
            0x42 => self.verify(task, Form::Long),
            0x06 if task.features[0] & 1 != 0 && !self.medium.is_read_only() => self.take_ranges(task),
            0x2F | 0x47 => self.read_log(task),
            0xB0 => self.smart(task),
            0xE7 | 0xEA if self.medium.is_read_only() => Step::End,
            0xE7 | 0xEA => Step::Ask(Request::flush()),
            0xEC => Step::Send(self.identify(sata)),
            0xEF => self.set_features(task),
            0x91 => self.set_geometry(task),
            0xC6 => self.set_multiple(task),
            // Standby and idle, at once and with a timer; sleep.
            0xE0..=0xE3 | 0xE6 | 0x94..=0x97 | 0x99 => Step::End,
            0xE5 | 0x98 => {
                task.count[0] = if self.state.standby { 0 } else { 0xFF };
                Step::End
            }
            0x27 | 0xF8 => self.native_max(task, code == 0x27),
            _ => Step::Fail(error::ABRT),
        }
    }

    fn identify(&self, sata: bool) -> Vec<u8> {
        let state = &self.state;
        let shown = Shown {
            sectors: self.sectors,
            sata,
            multiple: state.multiple,
            write_cache: state.write_cache,
            look_ahead: state.look_ahead,
            smart: state.smart,
            mode: state.mode,
            geometry: state.geometry,
            can_discard: !self.medium.is_read_only(),
        };
        identify::disk(&self.identity, &shown)
    }

    /// First sector and number of sectors; none when a cylinder address is no address.
    fn place(&self, task: &Taskfile, form: Form) -> Option<(u64, u64)> {
        let count = |bytes: [u8; 2]| match u16::from_le_bytes(bytes) {
            0 => 65_536,
            count => u64::from(count),
        };
        match form {
            Form::Long => Some((task.lba48(), count(task.count))),
            Form::Tagged => Some((task.lba48(), count(task.features))),
            Form::Short => {
                let count = match task.count[0] {
                    0 => 256,
                    count => u64::from(count),
                };
                let first = if task.device & LBA != 0 {
                    Some(task.lba28())
                } else {
                    self.by_cylinder(task)
                };
                Some((first?, count))
            }
        }
    }

    fn by_cylinder(&self, task: &Taskfile) -> Option<u64> {
        let (cylinders, heads, track) = self.state.geometry;
        let cylinder = u16::from_le_bytes([task.mid[0], task.high[0]]);
        let (head, sector) = (task.device & 0x0F, task.low[0]);
        if cylinder >= cylinders || head >= heads || sector == 0 || sector > track {
            return None;
        }
        let track_number = u64::from(cylinder) * u64::from(heads) + u64::from(head);
        Some(track_number * u64::from(track) + u64::from(sector) - 1)
    }

    fn range(&self, task: &Taskfile, form: Form) -> Option<(u64, u64)> {
        let (first, count) = self.place(task, form)?;
        (first.checked_add(count)? <= self.sectors).then_some((first * SECTOR, count * SECTOR))
    }

    fn transfer(&self, task: &Taskfile, form: Form, write: bool, protocol: Protocol) -> Step {
        let Some((offset, len)) = self.range(task, form) else {
            return Step::Fail(error::IDNF);
        };
        if write && self.medium.is_read_only() {
            return Step::Fail(error::ABRT);
        }
        Step::Move(Transfer {
            write,
            offset,
            len,
            protocol,
            through: write && !self.state.write_cache,
        })
    }

    fn verify(&self, task: &Taskfile, form: Form) -> Step {
        match self.range(task, form) {
            Some((offset, len)) => Step::Ask(Request::new(Op::Verify, offset, len, Data::None)),
            None => Step::Fail(error::IDNF),
        }
    }

    /// DATA SET MANAGEMENT: the ranges come in blocks of a sector.
    fn take_ranges(&self, task: &Taskfile) -> Step {
        match u16::from_le_bytes(task.count) {
            blocks @ 1..=8 => Step::Take(usize::from(blocks) * 512),
            _ => Step::Fail(error::ABRT),
        }
    }

    pub(super) fn receive(&mut self, code: u8, task: &Taskfile, given: &[u8]) -> Step {
        if code != 0x06 {
            // A log of the host's own, which nobody reads.
            let _ = task;
            return Step::End;
        }
        let mut ranges = Vec::new();
        for entry in given.chunks_exact(8) {
            let (first, count) = (
                bytes::le64(entry, 0) & 0xFFFF_FFFF_FFFF,
                u64::from(bytes::le16(entry, 6)),
            );
            if count == 0 {
                continue;
            }
            if first + count > self.sectors {
                return Step::Fail(error::IDNF);
            }
            ranges.push((first * SECTOR, count * SECTOR));
        }
        Step::Ask(Request::new(Op::Discard { through: false }, 0, 0, Data::Ranges(ranges)))
    }

    fn read_log(&self, task: &Taskfile) -> Step {
        let first = u16::from_le_bytes([task.mid[0], task.mid[1]]);
        let count = u16::from_le_bytes(task.count);
        match smart::log(task.low[0], first, count, true) {
            Some(page) => Step::Send(page),
            None => Step::Fail(error::ABRT),
        }
    }

    fn smart(&mut self, task: &mut Taskfile) -> Step {
        let key = (task.mid[0], task.high[0]);
        let feature = task.features[0];
        if key != SMART_KEY || !self.state.smart && feature != 0xD8 {
            return Step::Fail(error::ABRT);
        }
        match feature {
            0xD0 => Step::Send(smart::data(self.state.self_test)),
            0xD1 => Step::Send(smart::thresholds()),
            // Autosave, save, automatic off-line collection.
            0xD2 | 0xD3 | 0xDB => Step::End,
            0xD4 => match task.low[0] {
                0..=4 | 0x7F | 0x81..=0x84 => {
                    self.state.self_test = 0;
                    Step::End
                }
                _ => Step::Fail(error::ABRT),
            },
            0xD5 => match smart::log(task.low[0], 0, task.count[0].into(), false) {
                Some(page) => Step::Send(page),
                None => Step::Fail(error::ABRT),
            },
            0xD8 | 0xD9 => {
                self.state.smart = feature == 0xD8;
                Step::End
            }
            // The drive is in good health: the key stays as it is.
            0xDA => Step::End,
            _ => Step::Fail(error::ABRT),
        }
    }

    fn set_features(&mut self, task: &Taskfile) -> Step {
        match task.features[0] {
            // The cache is left by way of a flush.
            0x82 if self.medium.is_read_only() => self.state.write_cache = false,
            0x82 => {
                self.state.write_cache = false;
                return Step::Ask(Request::flush());
            }
            0x02 => self.state.write_cache = true,
            0x55 => self.state.look_ahead = false,
            0xAA => self.state.look_ahead = true,
            0x03 => match task.count[0] {
                mode @ (0x00 | 0x01 | 0x08..=0x0C | 0x20..=0x22 | 0x40..=0x45) => self.state.mode = mode,
                _ => return Step::Fail(error::ABRT),
            },
            // Power-up in standby, advanced power management, acoustic management, reverting to defaults: none is there
            // to be changed; SATA features are taken as they come.
            0x10 | 0x90 | 0x66 | 0xCC => {}
            _ => return Step::Fail(error::ABRT),
        }
        Step::End
    }

    fn set_geometry(&mut self, task: &Taskfile) -> Step {
        let (heads, track) = ((task.device & 0x0F) + 1, task.count[0]);
        if track == 0 {
            return Step::Fail(error::ABRT);
        }
        let per_cylinder = u64::from(heads) * u64::from(track);
        let cylinders = (self.sectors.min(LBA28_END) / per_cylinder).clamp(1, 65_535);
        self.state.geometry = (bytes::low16(cylinders), heads, track);
        Step::End
    }

    fn set_multiple(&mut self, task: &Taskfile) -> Step {
        match task.count[0] {
            count if count == 0 || count <= MULTIPLE_MAX && count.is_power_of_two() => {
                self.state.multiple = count;
                Step::End
            }
            _ => Step::Fail(error::ABRT),
        }
    }

    fn native_max(&self, task: &mut Taskfile, long: bool) -> Step {
        let last = self.sectors.saturating_sub(1);
        if long {
            task.set_lba48(last);
        } else {
            task.set_lba28(last.min(LBA28_END - 1));
        }
        Step::End
    }

    pub(super) fn save(&self) -> DiskState {
        self.state.clone()
    }

    pub(super) fn restore(&mut self, state: DiskState) -> Result<(), RestoreError> {
        let (cylinders, heads, track) = state.geometry;
        let sound = state.multiple <= MULTIPLE_MAX && cylinders > 0 && (1..=16).contains(&heads) && track > 0;
        if !sound {
            return Err(RestoreError::Invalid("disk state that cannot be".to_owned()));
        }
        self.state = state;
        Ok(())
    }

    pub(super) fn inspect(&self) -> Node {
        Node::tree()
            .with("model", self.identity.model.as_str())
            .with("serial", self.identity.serial.as_str())
            .with("sectors", self.sectors)
            .with("write_cache", self.state.write_cache)
            .with("mode", self.state.mode)
            .with("standby", self.state.standby)
    }
}

impl Step {
    /// A transfer whose data are safe before the command ends, if `through`.
    fn through(mut self, through: bool) -> Self {
        if let Self::Move(transfer) = &mut self {
            transfer.through |= through;
        }
        self
    }
}
