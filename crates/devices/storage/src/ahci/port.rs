//! One port: its registers, its link to a drive, and the slots that are being worked at.
//!
//! Spec: AHCI 1.3.1 §3.3 (registers), §5.3 (port states), §10.4 (resets).
use device_model::Node;
use device_model::RestoreError;
use serde::Deserialize;
use serde::Serialize;

use super::fis;
use crate::Drive;
use crate::ata::DriveState;
use crate::ata::Taskfile;
use crate::ata::status;
use crate::bytes;
use crate::work::Channel;

/// Register offsets.
mod reg {
    pub(super) const CLB: u64 = 0x00;
    pub(super) const CLBU: u64 = 0x04;
    pub(super) const FB: u64 = 0x08;
    pub(super) const FBU: u64 = 0x0C;
    pub(super) const IS: u64 = 0x10;
    pub(super) const IE: u64 = 0x14;
    pub(super) const CMD: u64 = 0x18;
    pub(super) const TFD: u64 = 0x20;
    pub(super) const SIG: u64 = 0x24;
    pub(super) const SSTS: u64 = 0x28;
    pub(super) const SCTL: u64 = 0x2C;
    pub(super) const SERR: u64 = 0x30;
    pub(super) const SACT: u64 = 0x34;
    pub(super) const CI: u64 = 0x38;
}

/// Bits of PxCMD.
pub(super) mod cmd {
    pub(crate) const ST: u32 = 1 << 0;
    pub(crate) const SUD: u32 = 1 << 1;
    pub(crate) const POD: u32 = 1 << 2;
    pub(crate) const CLO: u32 = 1 << 3;
    pub(crate) const FRE: u32 = 1 << 4;
    pub(crate) const FR: u32 = 1 << 14;
    pub(crate) const CR: u32 = 1 << 15;
    pub(crate) const HPCP: u32 = 1 << 18;
    pub(crate) const ATAPI: u32 = 1 << 24;
    pub(crate) const KEPT: u32 = ST | FRE | ATAPI;
}

/// Bits of PxIS and PxIE.
pub(super) mod is {
    pub(crate) const DHRS: u32 = 1 << 0;
    pub(crate) const PSS: u32 = 1 << 1;
    pub(crate) const SDBS: u32 = 1 << 3;
    pub(crate) const PCS: u32 = 1 << 6;
    pub(crate) const PRCS: u32 = 1 << 22;
    pub(crate) const OFS: u32 = 1 << 24;
    pub(crate) const HBFS: u32 = 1 << 29;
    pub(crate) const TFES: u32 = 1 << 30;
    pub(crate) const ALL: u32 = 0xFDC0_007F | OFS | PRCS;
}

/// SERR.DIAG: the link changed, and the wires were exchanged.
const SERR_N: u32 = 1 << 16;
const SERR_X: u32 = 1 << 26;
/// SCTL.DET: reset the link; turn the port off.
const DET: u32 = 0xF;
const DET_RESET: u32 = 1;
const DET_OFF: u32 = 4;
/// SSTS: a drive is there, generation 3, active.
const LINKED: u32 = 0x133;

/// Registers, as they are saved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    clb: u64,
    fb: u64,
    pub(super) is: u32,
    ie: u32,
    pub(super) cmd: u32,
    sctl: u32,
    serr: u32,
    pub(super) sact: u32,
    pub(super) ci: u32,
    /// Queued commands that the drive has accepted.
    pub(super) tagged: u32,
    pub(super) task: Taskfile,
    /// Signature: the drive's, from its first register FIS.
    sig: u32,
    /// A command failed: none is begun until the host stops the port.
    pub(super) failed: bool,
    /// The tag that failed, for the log of errors.
    pub(super) failed_tag: Option<u8>,
    /// The drive is held in a software reset.
    pub(super) held: bool,
}

/// A port.
pub(super) struct Port {
    // Wiring
    pub(super) work: Channel,
    // State
    pub(super) drive: Option<Drive>,
    pub(super) state: State,
    // Derived
    /// Slots whose requests were handed over, and what they are.
    pub(super) begun: Vec<super::command::Begun>,
    pub(super) may_master: bool,
}

impl Port {
    pub(super) fn new(work: Channel, drive: Option<Drive>) -> Self {
        let mut this = Self {
            work,
            drive,
            state: State::default(),
            begun: Vec::new(),
            may_master: false,
        };
        this.reset();
        this
    }

    pub(super) fn drive_mut(&mut self) -> Option<&mut Drive> {
        self.drive.as_mut()
    }

    pub(super) fn set_master(&mut self, may: bool) {
        self.may_master = may;
    }

    pub(super) fn interrupts(&self) -> bool {
        self.pending() & self.state.ie != 0
    }

    /// PxIS with the bits that follow SERR.
    fn pending(&self) -> u32 {
        let follow = |bit, serr| if self.state.serr & serr != 0 { bit } else { 0 };
        self.state.is | follow(is::PCS, SERR_X) | follow(is::PRCS, SERR_N)
    }

    /// Gives up what is being worked at.
    pub(super) fn abandon(&mut self) {
        self.work.abandon();
        self.begun.clear();
        self.state.tagged = 0;
    }

    pub(super) fn reset(&mut self) {
        self.abandon();
        let task = Taskfile {
            status: 0x7F,
            ..Taskfile::default()
        };
        self.state = State {
            task,
            sig: u32::MAX,
            ..State::default()
        };
        if let Some(drive) = &mut self.drive {
            drive.reset();
        }
        self.link_up();
    }

    /// The drive says after a reset what it is.
    pub(super) fn sign(&mut self) {
        let Some(packet) = self.drive.as_ref().map(Drive::is_packet) else {
            return;
        };
        let task = &mut self.state.task;
        task.set_signature(packet);
        task.error = 1;
        task.status = if packet { 0 } else { status::READY };
        self.state.sig = if packet { 0xEB14_0101 } else { 0x0000_0101 };
        let fis = fis::to_host(&self.state.task, false);
        self.post(fis::REGISTERS_AT, &fis);
    }

    fn link_up(&mut self) {
        if self.drive.is_some() && self.state.sctl & DET != DET_OFF {
            self.sign();
            self.state.serr |= SERR_X | SERR_N;
        }
    }

    /// A drive is plugged in, pulled out, or exchanged (§6.2.2, §7.3). What the old one was asked for stays in PxCI and PxSACT, and
    /// never ends: the host learns of the change by the link, and stops the port.
    pub(super) fn plug(&mut self, drive: Option<Drive>) {
        let changes = self.drive.is_some() || drive.is_some();
        self.abandon();
        // The new drive must not get what was meant for the old one.
        self.state.failed |= self.state.ci | self.state.sact != 0;
        self.state.failed_tag = None;
        self.state.held = false;
        self.drive = drive;
        self.state.task = Taskfile {
            status: 0x7F,
            ..Taskfile::default()
        };
        self.state.sig = u32::MAX;
        if changes && self.state.sctl & DET != DET_OFF {
            self.state.serr |= SERR_N;
        }
        if let Some(drive) = &mut self.drive {
            drive.reset();
        }
        self.link_up();
    }

    /// Writes a FIS to where the host wants them.
    pub(super) fn post(&self, at: u64, fis: &[u8]) {
        if self.state.cmd & cmd::FRE != 0 && self.may_master {
            // Without memory there, nobody reads it.
            let _ = self.work.memory().write(self.state.fb.wrapping_add(at), fis);
        }
    }

    /// Where slot `slot` of the command list is.
    pub(super) fn slot_at(&self, slot: u8) -> u64 {
        self.state.clb.wrapping_add(u64::from(slot) * 32)
    }

    pub(super) fn read(&mut self, offset: u64) -> u32 {
        if matches!(offset, reg::CI | reg::SACT | reg::TFD | reg::IS) {
            // The answer may be there before the device is polled.
            self.go();
        }
        let state = &self.state;
        match offset {
            reg::CLB => bytes::low32(state.clb),
            reg::CLBU => bytes::low32(state.clb >> 32),
            reg::FB => bytes::low32(state.fb),
            reg::FBU => bytes::low32(state.fb >> 32),
            reg::IS => self.pending(),
            reg::IE => state.ie,
            reg::CMD => self.command_register(),
            reg::TFD => self.task_file_data(),
            reg::SIG => state.sig,
            reg::SSTS => self.status_register(),
            reg::SCTL => state.sctl,
            reg::SERR => state.serr,
            reg::SACT => state.sact,
            reg::CI => state.ci,
            _ => 0,
        }
    }

    fn command_register(&self) -> u32 {
        let on = |bit: u32, running: u32| if self.state.cmd & bit != 0 { running } else { 0 };
        self.state.cmd | on(cmd::ST, cmd::CR) | on(cmd::FRE, cmd::FR) | cmd::SUD | cmd::POD | cmd::HPCP
    }

    fn task_file_data(&self) -> u32 {
        let busy = self.begun.iter().any(super::command::Begun::keeps_busy) || self.state.held;
        let status = if busy {
            status::BSY | self.state.task.status & !status::DRQ
        } else {
            self.state.task.status
        };
        u32::from(status) | u32::from(self.state.task.error) << 8
    }

    fn status_register(&self) -> u32 {
        match (&self.drive, self.state.sctl & DET) {
            (_, DET_OFF) => 4,
            (None, _) => 0,
            (Some(_), DET_RESET) => 1,
            (Some(_), _) => LINKED,
        }
    }

    pub(super) fn write(&mut self, offset: u64, value: u32) {
        let low = |old: u64, mask: u32| old & !0xFFFF_FFFF | u64::from(value & mask);
        let high = |old: u64| old & 0xFFFF_FFFF | u64::from(value) << 32;
        let state = &mut self.state;
        match offset {
            reg::CLB => state.clb = low(state.clb, !0x3FF),
            reg::CLBU => state.clb = high(state.clb),
            reg::FB => state.fb = low(state.fb, !0xFF),
            reg::FBU => state.fb = high(state.fb),
            reg::IS => state.is &= !value,
            reg::IE => state.ie = value & is::ALL,
            reg::CMD => self.write_command(value),
            reg::SCTL => self.write_control(value),
            reg::SERR => state.serr &= !value,
            reg::SACT if state.cmd & cmd::ST != 0 => state.sact |= value,
            reg::CI if state.cmd & cmd::ST != 0 => {
                state.ci |= value;
                self.go();
            }
            _ => {}
        }
    }

    fn write_command(&mut self, value: u32) {
        let was = self.state.cmd;
        self.state.cmd = value & cmd::KEPT;
        if value & cmd::CLO != 0 {
            self.state.task.status &= !(status::BSY | status::DRQ);
        }
        if was & cmd::ST != 0 && value & cmd::ST == 0 {
            self.abandon();
            (self.state.ci, self.state.sact) = (0, 0);
            self.state.failed = false;
        }
        // The first register FIS is kept until it can be received (§10.1.2).
        if was & cmd::FRE == 0 && value & cmd::FRE != 0 && self.drive.is_some() {
            let fis = fis::to_host(&self.state.task, false);
            self.post(fis::REGISTERS_AT, &fis);
        }
        self.go();
    }

    fn write_control(&mut self, value: u32) {
        let was = self.state.sctl & DET;
        self.state.sctl = value & 0xFFF;
        let now = value & DET;
        if now == DET_RESET || now == DET_OFF {
            self.abandon();
            (self.state.ci, self.state.sact) = (0, 0);
            self.state.task.status = 0x7F;
            self.state.held = false;
        } else if was == DET_RESET || was == DET_OFF {
            if let Some(drive) = &mut self.drive {
                drive.reset();
            }
            self.link_up();
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
}

/// Saved state of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PortV1 {
    state: State,
    drive: Option<DriveState>,
}

impl Port {
    pub(super) fn save(&self) -> PortV1 {
        let Self {
            work: _,
            drive,
            state,
            begun: _,
            may_master: _,
        } = self;
        PortV1 {
            state: state.clone(),
            drive: drive.as_ref().map(Drive::save),
        }
    }

    pub(super) fn restore(&mut self, saved: PortV1) -> Result<(), RestoreError> {
        let PortV1 { state, drive } = saved;
        let invalid = |what: &str| Err(RestoreError::Invalid(what.to_owned()));
        let running = state.cmd & cmd::ST != 0 || (state.ci, state.sact, state.tagged) == (0, 0, 0);
        let tags = state.failed_tag.is_none_or(|tag| tag < 32);
        if !running || !tags || state.cmd & !cmd::KEPT != 0 || state.sctl > 0xFFF {
            return invalid("ahci port that cannot be");
        }
        match (&mut self.drive, drive) {
            (Some(drive), Some(saved)) => drive.restore(saved)?,
            (None, None) => {}
            _ => return invalid("the ahci port has another drive"),
        }
        self.abandon();
        // What was begun is begun again, as its slot says.
        self.state = state;
        Ok(())
    }

    pub(super) fn inspect(&self) -> Node {
        let state = &self.state;
        let tree = Node::tree()
            .with("cmd", state.cmd)
            .with("is", self.pending())
            .with("ie", state.ie)
            .with("tfd", self.task_file_data())
            .with("ssts", self.status_register())
            .with("serr", state.serr)
            .with("sact", state.sact)
            .with("ci", state.ci)
            .with("clb", state.clb)
            .with("fb", state.fb);
        match &self.drive {
            Some(drive) => tree.with("drive", drive.inspect()),
            None => tree,
        }
    }
}
