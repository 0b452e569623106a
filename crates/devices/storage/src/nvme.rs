//! An NVM Express controller: admin and I/O queues, several namespaces, MSI-X.
//!
//! Queues lie in guest memory and are physically contiguous; data are described by PRPs; pages and sectors are those of
//! 4096 and 512 bytes. Namespaces cannot be made, formatted or protected; there are no SGLs, no firmware slots to write.
//!
//! Spec: NVMe base 1.4 §3 (registers), §4 (queues, PRPs), §5 (admin commands), §6 (I/O commands), §7.6 (resets).

mod admin;
mod identify;
mod io;
mod queue;

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
use device_model::Space;
use device_model::VmTime;
use device_model::Width;
use device_model::Widths;
use device_model::pci::Bar;
use device_model::pci::BarKind;
use device_model::pci::command::BUS_MASTER;
use device_model::pci::reg::BAR0;
use guest_memory::GuestMemory;
use pci::Class;
use pci::Function;
use pci::Interrupter;
use pci::Msix;
use pci::MsixState;
use serde::Deserialize;
use serde::Serialize;

use crate::Executor;
use crate::Medium;
use crate::Waker;
use crate::bytes;
use crate::work::Channel;
use queue::Completion;
use queue::CompletionQueue;
use queue::Pending;
use queue::SubmissionQueue;

/// VirtualBox's controller, which every driver takes by its class.
const ID: (u16, u16) = (0x80EE, 0x4E56);
/// Namespaces at most.
pub const NAMESPACES: usize = 16;
/// Queue pairs, that of the administrator included.
const QUEUES: usize = 17;
const VECTORS: u16 = 17;
/// Entries of a queue at most.
const ENTRIES: u32 = 1024;
/// Requests that are being worked at, and completions that wait for room, together.
const BUSY: usize = 256;

const CONTROL: usize = 0;
const TABLE: usize = 1;
const CONTROL_LEN: u64 = 0x4000;
const DOORBELLS: u64 = 0x1000;

/// Offsets of the registers (§3.1).
mod reg {
    pub(super) const CAP: u64 = 0x00;
    pub(super) const VS: u64 = 0x08;
    pub(super) const INTMS: u64 = 0x0C;
    pub(super) const INTMC: u64 = 0x10;
    pub(super) const CC: u64 = 0x14;
    pub(super) const CSTS: u64 = 0x1C;
    pub(super) const AQA: u64 = 0x24;
    pub(super) const ASQ: u64 = 0x28;
    pub(super) const ACQ: u64 = 0x30;
}

/// Queues of so many entries, contiguous; ready within ten seconds; the NVM command set; pages of 4 KiB.
const CAP: u64 = (ENTRIES as u64 - 1) | 1 << 16 | 20 << 24 | 1 << 37;
const VS: u32 = 0x0001_0400;
/// CC: enable; command set, page size and arbitration, which have one value each; shutdown notification.
const EN: u32 = 1 << 0;
const CC_FIXED: u32 = 0x3FF0;
const SHN: u32 = 3 << 14;
const CC_KEPT: u32 = 0x00FF_FFF1;
/// CSTS: ready, fatal, shutdown occurring and complete.
const RDY: u32 = 1 << 0;
const CFS: u32 = 1 << 1;
const SHST_BUSY: u32 = 1 << 2;
const SHST_DONE: u32 = 2 << 2;

/// What the controller says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmeIdentity {
    /// Model number, at most 40 characters.
    pub model: String,
    /// Serial number, at most 20 characters.
    pub serial: String,
    /// Firmware revision, at most 8 characters.
    pub firmware: String,
}

/// What was read and written, for the SMART log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Counters {
    reads: u64,
    writes: u64,
    read_bytes: u64,
    written_bytes: u64,
}

/// The controller's own state, as it is saved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    masked: u32,
    cc: u32,
    csts: u32,
    aqa: u32,
    asq: u64,
    acq: u64,
    submissions: Vec<Option<SubmissionQueue>>,
    completions: Vec<Option<CompletionQueue>>,
    pending: Vec<Pending>,
    /// Completions that wait for room in their queues.
    ready: Vec<Completion>,
    /// Identifiers of asynchronous event requests, which wait for what never comes.
    events: Vec<u16>,
    /// Values of features by identifier.
    features: Vec<u32>,
    next_token: u64,
    counters: Counters,
}

impl State {
    fn new() -> Self {
        Self {
            submissions: vec![None; QUEUES],
            completions: vec![None; QUEUES],
            features: admin::default_features(),
            ..Self::default()
        }
    }
}

const REGIONS: [Region; 2] = [
    Region {
        name: "registers",
        space: Space::Mmio,
        len: CONTROL_LEN,
        widths: Widths {
            min: Width::Dword,
            max: Width::Qword,
        },
    },
    Region {
        name: "msix",
        space: Space::Mmio,
        len: 0x1000,
        widths: Widths {
            min: Width::Dword,
            max: Width::Qword,
        },
    },
];

/// The controller.
pub struct Nvme {
    // Wiring, and state in the header and the table
    interrupter: Interrupter,
    work: Channel,
    namespaces: Vec<Arc<dyn Medium>>,
    // Configuration
    identity: NvmeIdentity,
    // State
    header: PciHeader,
    state: State,
}

impl Nvme {
    /// A controller whose namespaces are on `namespaces`, that interrupts through `pin` or by messages to `sink`.
    pub fn new(
        (pin, sink): (IrqLine, Arc<dyn MsiSink>),
        identity: NvmeIdentity,
        mut namespaces: Vec<Arc<dyn Medium>>,
        memory: &Arc<GuestMemory>,
        executor: &Arc<dyn Executor>,
        waker: &Waker,
    ) -> Self {
        let mut function = Function::new(ID.0, ID.1, Class(0x01, 0x08, 0x02));
        function.pin = 1;
        let mut header = function.header();
        let bar = |at, kind, region: usize| Bar {
            at,
            kind,
            len: REGIONS.get(region).map_or(0x1000, |region| region.len),
            region,
        };
        header.add_bar(bar(BAR0, BarKind::Memory64, CONTROL));
        header.add_bar(bar(BAR0 + 16, BarKind::Memory32, TABLE));
        let msix = Msix::add(&mut header, 4, VECTORS);
        namespaces.truncate(NAMESPACES);
        Self {
            interrupter: Interrupter::new(pin, sink).with_msix(msix),
            work: Channel::new(Arc::clone(executor), Arc::clone(memory), Arc::clone(waker)),
            namespaces,
            identity,
            header,
            state: State::new(),
        }
    }

    fn medium(&self, namespace: u32) -> Option<&Arc<dyn Medium>> {
        let index = usize::try_from(namespace).ok()?.checked_sub(1)?;
        self.namespaces.get(index)
    }

    fn is_ready(&self) -> bool {
        self.state.csts & (RDY | CFS) == RDY && self.header.commanded(BUS_MASTER)
    }

    /// Drives the pin, where messages are not in use.
    fn update_pin(&mut self) {
        let by_message = self.interrupter.by_message(&self.header);
        let open = |queue: &CompletionQueue| queue.interrupts() && self.state.masked >> (queue.vector() & 31) & 1 == 0;
        let asked = self.state.completions.iter().flatten().any(open);
        self.interrupter.set(&mut self.header, asked && !by_message);
    }

    /// Queues and what is in them are forgotten.
    fn reset_controller(&mut self) {
        self.work.abandon();
        let State {
            aqa,
            asq,
            acq,
            counters,
            ..
        } = self.state;
        self.state = State {
            aqa,
            asq,
            acq,
            counters,
            ..State::new()
        };
    }

    fn write_cc(&mut self, value: u32) {
        let was = self.state.cc;
        let value = value & CC_KEPT;
        if was & EN != 0 && value & EN == 0 {
            self.reset_controller();
            self.state.cc = value;
            return;
        }
        self.state.cc = value;
        if was & EN == 0 && value & EN != 0 {
            self.enable();
        }
        if was & SHN == 0 && value & SHN != 0 && self.state.csts & SHST_DONE == 0 {
            self.shut_down();
        }
    }

    fn enable(&mut self) {
        let size = |field: u32| (field & 0xFFF) + 1;
        let (entries, aqa) = ((size(self.state.aqa), size(self.state.aqa >> 16)), self.state.aqa);
        let usable = self.state.cc & CC_FIXED == 0 && aqa & 0xFFF != 0 && aqa >> 16 & 0xFFF != 0;
        if !usable || entries.0 > 4096 || entries.1 > 4096 {
            self.state.csts |= CFS;
            return;
        }
        let submission = SubmissionQueue::new(self.state.asq & !0xFFF, entries.0, 0);
        let completion = CompletionQueue::new(self.state.acq & !0xFFF, entries.1, Some(0));
        if let (Some(sq), Some(cq)) = (self.state.submissions.first_mut(), self.state.completions.first_mut()) {
            (*sq, *cq) = (Some(submission), Some(completion));
        }
        self.state.csts = RDY;
    }

    fn read_register(&self, offset: u64) -> u32 {
        let State {
            masked,
            cc,
            csts,
            aqa,
            asq,
            acq,
            ..
        } = self.state;
        match offset {
            reg::CAP => bytes::low32(CAP),
            0x04 => bytes::low32(CAP >> 32),
            reg::VS => VS,
            reg::INTMS | reg::INTMC => masked,
            reg::CC => cc,
            reg::CSTS => csts,
            reg::AQA => aqa,
            reg::ASQ => bytes::low32(asq),
            0x2C => bytes::low32(asq >> 32),
            reg::ACQ => bytes::low32(acq),
            0x34 => bytes::low32(acq >> 32),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        let low = |old: u64| old & !0xFFFF_FFFF | u64::from(value);
        let high = |old: u64| old & 0xFFFF_FFFF | u64::from(value) << 32;
        let state = &mut self.state;
        match offset {
            reg::INTMS => state.masked |= value,
            reg::INTMC => state.masked &= !value,
            reg::CC => self.write_cc(value),
            reg::AQA => state.aqa = value & 0x0FFF_0FFF,
            reg::ASQ => state.asq = low(state.asq),
            0x2C => state.asq = high(state.asq),
            reg::ACQ => state.acq = low(state.acq),
            0x34 => state.acq = high(state.acq),
            DOORBELLS.. => self.ring(offset - DOORBELLS, value),
            _ => {}
        }
    }
}

fn check(at: At, width: Width) -> Result<(), IoError> {
    let region = REGIONS.get(at.region).ok_or(IoError::NoRegister)?;
    let end = at.offset.checked_add(width.bytes()).ok_or(IoError::NoRegister)?;
    if end > region.len {
        return Err(IoError::NoRegister);
    }
    let whole = width >= Width::Dword && at.offset.is_multiple_of(4);
    if whole { Ok(()) } else { Err(IoError::Width) }
}

impl Registers for Nvme {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        check(at, width)?;
        if at.region == TABLE {
            return Ok(self.interrupter.read_table(at.offset, width));
        }
        let low = u64::from(self.read_register(at.offset));
        let high = match width {
            Width::Qword => u64::from(self.read_register(at.offset + 4)) << 32,
            _ => 0,
        };
        Ok(low | high)
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        check(at, width)?;
        if at.region == TABLE {
            self.interrupter.write_table(&self.header, at.offset, width, value);
            return Ok(());
        }
        self.write_register(at.offset, bytes::low32(value));
        if width == Width::Qword {
            self.write_register(at.offset + 4, bytes::low32(value >> 32));
        }
        self.update_pin();
        Ok(())
    }
}

impl PciFunction for Nvme {
    fn header(&self) -> &PciHeader {
        &self.header
    }

    fn header_mut(&mut self) -> &mut PciHeader {
        &mut self.header
    }

    fn config_write(&mut self, at: u16, width: Width, value: u32) {
        self.header.write(at, width, value);
        self.interrupter.written(&mut self.header, at, width);
        self.update_pin();
    }
}

impl Device for Nvme {
    fn reset(&mut self, _kind: Reset) {
        self.header.reset();
        if let Some(msix) = self.interrupter.msix_mut() {
            msix.reset();
        }
        self.work.abandon();
        self.state = State::new();
        self.update_pin();
    }

    fn poll(&mut self, _now: VmTime) -> Option<VmTime> {
        self.work.hold(false);
        self.go();
        self.update_pin();
        None
    }

    fn quiesce(&mut self) -> bool {
        self.work.hold(true);
        self.go();
        self.update_pin();
        self.work.in_flight() == 0
    }

    fn as_pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }
}

impl Snapshot for Nvme {
    type State = NvmeV1;

    fn save(&self) -> NvmeV1 {
        let Self {
            interrupter,
            work: _,
            namespaces: _,
            identity: _,
            header,
            state,
        } = self;
        NvmeV1 {
            header: header.save(),
            msix: interrupter.msix().map(Msix::save),
            state: state.clone(),
        }
    }

    fn restore(&mut self, saved: NvmeV1) -> Result<(), RestoreError> {
        let NvmeV1 {
            header,
            msix,
            mut state,
        } = saved;
        let invalid = || RestoreError::Invalid("nvme state that cannot be".to_owned());
        let sizes = state.submissions.len() == QUEUES
            && state.completions.len() == QUEUES
            && state.features.len() == admin::FEATURES
            && state.pending.len() + state.ready.len() <= BUSY + NAMESPACES
            && state.events.len() <= admin::EVENTS;
        let queues = state.submissions.iter().flatten().all(SubmissionQueue::is_sound)
            && state.completions.iter().flatten().all(CompletionQueue::is_sound);
        if !sizes || !queues {
            return Err(invalid());
        }
        for pending in &mut state.pending {
            pending.check()?;
        }
        match (self.interrupter.msix_mut(), msix) {
            (Some(own), Some(saved)) => own.restore(&saved)?,
            (None, None) => {}
            _ => return Err(invalid()),
        }
        self.header.restore(&header)?;
        self.work.abandon();
        self.state = state;
        self.update_pin();
        Ok(())
    }
}

impl Inspect for Nvme {
    fn inspect(&self) -> Node {
        let state = &self.state;
        let queues = state.submissions.iter().flatten().count();
        Node::tree()
            .with("cc", state.cc)
            .with("csts", state.csts)
            .with("queues", queues as u64)
            .with("pending", state.pending.len() as u64)
            .with("namespaces", self.namespaces.len() as u64)
            .with("reads", state.counters.reads)
            .with("writes", state.counters.writes)
    }
}

/// Saved state of [`Nvme`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NvmeV1 {
    header: Vec<u8>,
    msix: Option<MsixState>,
    state: State,
}

impl Schema for NvmeV1 {
    const NAME: &'static str = "nvme";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests;
