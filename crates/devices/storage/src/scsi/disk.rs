//! A direct-access block device: what its commands mean.
//!
//! Spec: SBC-3 §5 (commands), §6.4 (mode pages); SPC-4 §6.4 (INQUIRY), §6.11 to §6.14 (MODE SELECT and SENSE), §6.39 (REQUEST
//! SENSE).

use std::sync::Arc;

use device_model::Node;
use device_model::RestoreError;
use serde::Deserialize;
use serde::Serialize;

use super::Action;
use super::fixed;
use super::reserve::Reservations;
use crate::ata::Identity;
use crate::ata::SECTOR;
use crate::ata::Sense;
use crate::ata::sense;
use crate::bytes;
use crate::medium::Medium;
use crate::medium::MediumError;
use crate::mode;
use crate::mode::LIST_LENGTH;
use crate::work::Data;
use crate::work::Fault;
use crate::work::MOST;
use crate::work::Op;
use crate::work::Request;

/// Blocks of one descriptor of UNMAP and of one WRITE SAME at most, and descriptors of one UNMAP.
pub(super) const UNMAP_BLOCKS: u32 = 0x3f_ffff;
pub(super) const UNMAP_RANGES: u32 = 256;
pub(super) const SAME_BLOCKS: u64 = 8192;

const PROTECTED: Sense = Sense(7, 0x27, 0);
/// The mode page of the cache, and its bit that lets writes end in it.
const CACHING: u8 = 0x08;
const WCE: u8 = 1 << 2;

/// Saved state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DiskState {
    /// Unit attention that the initiator has not been told.
    attention: Option<Sense>,
    /// The write cache is off: what is written is safe when the command ends.
    through: bool,
    reservations: Reservations,
}

/// A disk.
pub(super) struct Disk {
    // Wiring
    medium: Arc<dyn Medium>,
    // Configuration
    identity: Identity,
    // State
    state: DiskState,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// Why a request failed.
pub(super) fn sense_of(fault: Fault) -> Sense {
    match fault {
        Fault::Medium(MediumError::Protected) => PROTECTED,
        Fault::Medium(MediumError::Beyond) => sense::OUT_OF_RANGE,
        Fault::Medium(MediumError::Failed) => sense::UNREADABLE,
        // MISCOMPARE DURING VERIFY OPERATION.
        Fault::Differs => Sense(0xE, 0x1D, 0),
        Fault::Memory => sense::HARDWARE,
    }
}

/// Where a command begins, and how many blocks it concerns.
fn range(cdb: &[u8]) -> (u64, u64) {
    let quad = |at| u64::from(bytes::be32(cdb, at)) << 32 | u64::from(bytes::be32(cdb, at + 4));
    match bytes::at(cdb, 0) >> 5 {
        0 => {
            let first = bytes::be32(cdb, 0) & 0x1F_FFFF;
            // Zero blocks are 256 here (SBC-3 §5.10).
            let count = match bytes::at(cdb, 4) {
                0 => 256,
                count => count.into(),
            };
            (first.into(), count)
        }
        4 => (quad(2), bytes::be32(cdb, 10).into()),
        5 => (bytes::be32(cdb, 2).into(), bytes::be32(cdb, 6).into()),
        _ => (bytes::be32(cdb, 2).into(), bytes::be16(cdb, 7).into()),
    }
}

/// MODE SELECT has come, without its parameters: pages in the standard's format (PF), none of which is saved (SP).
fn mode_select(cdb: &[u8]) -> Result<Action, Sense> {
    let len = mode::list_len(cdb)?;
    match (bytes::at(cdb, 1) & 0x11, len) {
        (0x01 | 0x11, _) => Err(sense::BAD_FIELD),
        (_, 0) => Ok(Action::Good),
        (0x10, len) => Ok(Action::Take(len)),
        _ => Err(sense::BAD_FIELD),
    }
}

impl Disk {
    pub(super) fn new(medium: Arc<dyn Medium>, identity: Identity) -> Self {
        Self {
            medium,
            identity,
            state: DiskState {
                attention: Some(sense::RESET),
                through: false,
                reservations: Reservations::default(),
            },
        }
    }

    pub(super) fn medium(&self) -> &Arc<dyn Medium> {
        &self.medium
    }

    /// Whether space can be given back.
    pub(super) fn is_thin(&self) -> bool {
        !self.medium.is_read_only()
    }

    pub(super) fn reset(&mut self) {
        self.state.attention = Some(sense::RESET);
        // Nothing of the mode pages is saved (SPC-4 §5.8).
        self.state.through = false;
        self.state.reservations.reset();
    }

    pub(super) fn power_off(&mut self) {
        self.reset();
        self.state.reservations.power_off();
    }

    pub(super) fn save(&self) -> DiskState {
        self.state
    }

    pub(super) fn restore(&mut self, state: DiskState) -> Result<(), RestoreError> {
        state.reservations.check()?;
        self.state = state;
        Ok(())
    }

    pub(super) fn inspect(&self) -> Node {
        Node::tree()
            .with("model", self.identity.model.as_str())
            .with("serial", self.identity.serial.as_str())
            .with("blocks", self.blocks())
            .with("attention", format!("{:?}", self.state.attention))
            .with("write_cache", !self.state.through)
            .with("reservations", self.state.reservations.inspect())
    }

    fn blocks(&self) -> u64 {
        self.medium.size() / SECTOR
    }

    #[rustfmt::skip]
    pub(super) fn command(&mut self, cdb: &[u8]) -> Result<Action, Sense> {
        let code = bytes::at(cdb, 0);
        // INQUIRY and REQUEST SENSE go before a unit attention (SAM-5 §5.14).
        if !matches!(code, 0x03 | 0x12)
            && let Some(attention) = self.state.attention.take()
        {
            return Err(attention);
        }
        match code {
            // TEST UNIT READY, START STOP UNIT, PREVENT ALLOW MEDIUM REMOVAL.
            0x00 | 0x1B | 0x1E               => Ok(Action::Good),
            0x03                             => Ok(self.request_sense(cdb)),
            0x12                             => Ok(self.inquiry(cdb)),
            0x1A | 0x5A                      => self.mode_sense(cdb),
            0x15 | 0x55                      => mode_select(cdb),
            0x16 | 0x17                      => self.state.reservations.six(cdb),
            0x5E                             => self.state.reservations.tell(cdb),
            0x5F                             => self.state.reservations.wants(cdb),
            0x25                             => Ok(self.capacity()),
            0x9E if bytes::at(cdb, 1) & 0x1F == 0x10 => Ok(self.long_capacity(cdb)),
            0x08 | 0x28 | 0xA8 | 0x88        => self.transfer(cdb, Op::Read),
            0x0A                             => self.transfer(cdb, self.write(false)),
            0x2A | 0xAA | 0x8A               => self.transfer(cdb, self.write(bytes::at(cdb, 1) & 8 != 0)),
            // WRITE AND VERIFY.
            0x2E | 0xAE | 0x8E               => self.transfer(cdb, self.write(true)),
            0x2F | 0xAF | 0x8F               => self.verify(cdb),
            // SYNCHRONIZE CACHE.
            0x35 | 0x91                      => Ok(Action::Ask(Request::flush())),
            0x41 | 0x93                      => self.write_same(cdb),
            0x42                             => self.unmap(cdb),
            _                                => Err(sense::NO_SUCH_COMMAND),
        }
    }

    /// The parameters of a command are there.
    pub(super) fn receive(&mut self, cdb: &[u8], given: &[u8]) -> Result<Action, Sense> {
        match bytes::at(cdb, 0) {
            0x15 | 0x55 => self.select(cdb, given),
            0x5F => self.state.reservations.change(cdb, given),
            0x41 | 0x93 => self.same(cdb, given),
            _ => self.descriptors(given),
        }
    }

    fn request_sense(&mut self, cdb: &[u8]) -> Action {
        // Sense data of failed commands went with them: what is left is an attention.
        let mut data = fixed(self.state.attention.take().unwrap_or(sense::NONE)).to_vec();
        data.truncate(bytes::at(cdb, 4).into());
        Action::Send(data)
    }

    fn inquiry(&self, cdb: &[u8]) -> Action {
        let mut data = vec![0; 36];
        // Direct access, SPC-4, response format 2; command queueing.
        bytes::put(&mut data, 0, &[0x00, 0x00, 0x06, 0x02, 31, 0, 0, 0x02]);
        let model = self.identity.model.as_str();
        let (vendor, product) = model.split_once(' ').unwrap_or(("", model));
        bytes::put(&mut data, 8, &bytes::text(vendor, 8));
        bytes::put(&mut data, 16, &bytes::text(product, 16));
        bytes::put(&mut data, 32, &bytes::text(&self.identity.firmware, 4));
        data.truncate(bytes::be16(cdb, 3).into());
        Action::Send(data)
    }

    /// A write, which is `safe` when it ends, or when the write cache is off.
    fn write(&self, safe: bool) -> Op {
        Op::Write {
            through: safe || self.state.through,
        }
    }

    /// Mode pages: read-write error recovery, caching, control.
    fn mode_pages(&self) -> [mode::Page; 3] {
        let caching = |byte: u8| [vec![byte], vec![0; 17]].concat();
        [
            mode::Page::fixed(0x01, vec![0; 10]),
            mode::Page {
                code: CACHING,
                current: caching(if self.state.through { 0 } else { WCE }),
                default: caching(WCE),
                changeable: caching(WCE),
            },
            mode::Page::fixed(0x0A, vec![0; 10]),
        ]
    }

    /// The block descriptor of mode parameters.
    fn descriptor(&self) -> [u8; 8] {
        let blocks = bytes::low32(self.blocks().min(u32::MAX.into()));
        let ([a, b, c, d], [_, e, f, g]) = (blocks.to_be_bytes(), bytes::low32(SECTOR).to_be_bytes());
        [a, b, c, d, 0, e, f, g]
    }

    fn mode_sense(&self, cdb: &[u8]) -> Result<Action, Sense> {
        let header = mode::Header {
            medium: 0,
            // Write protection; DPO and FUA are there.
            specific: if self.medium.is_read_only() { 0x90 } else { 0x10 },
            descriptor: &self.descriptor(),
        };
        mode::sense(cdb, header, &self.mode_pages()).map(Action::Send)
    }

    /// The parameters of MODE SELECT are there.
    fn select(&mut self, cdb: &[u8], given: &[u8]) -> Result<Action, Sense> {
        let changes = mode::select(cdb, given, &self.descriptor(), &self.mode_pages())?;
        let was = self.state.through;
        for (_, page) in changes.iter().filter(|(code, _)| *code == CACHING) {
            self.state.through = bytes::at(page, 0) & WCE == 0;
        }
        // What is in the cache becomes safe before writes that do not go there.
        Ok(match self.state.through && !was {
            true => Action::Ask(Request::flush()),
            false => Action::Good,
        })
    }

    fn capacity(&self) -> Action {
        let last = bytes::low32(self.blocks().saturating_sub(1).min(u32::MAX.into()));
        Action::Send([last.to_be_bytes(), bytes::low32(SECTOR).to_be_bytes()].concat())
    }

    fn long_capacity(&self, cdb: &[u8]) -> Action {
        let mut data = vec![0; 32];
        bytes::put(&mut data, 0, &self.blocks().saturating_sub(1).to_be_bytes());
        bytes::put(&mut data, 8, &bytes::low32(SECTOR).to_be_bytes());
        // Eight blocks are one of the host's; space can be given back, and reads as zeros then.
        bytes::put(&mut data, 13, &[3, if self.is_thin() { 0xC0 } else { 0 }]);
        data.truncate(bytes::index(bytes::be32(cdb, 10).into()));
        Action::Send(data)
    }

    /// The bytes that a command concerns; none where it asks for nothing.
    fn bytes_of(&self, cdb: &[u8]) -> Result<Option<(u64, u64)>, Sense> {
        let (first, count) = range(cdb);
        if first.checked_add(count).is_none_or(|end| end > self.blocks()) {
            return Err(sense::OUT_OF_RANGE);
        }
        Ok((count > 0).then_some((first * SECTOR, count * SECTOR)))
    }

    fn writable(&self) -> Result<(), Sense> {
        if self.medium.is_read_only() {
            return Err(PROTECTED);
        }
        Ok(())
    }

    fn transfer(&self, cdb: &[u8], op: Op) -> Result<Action, Sense> {
        if op != Op::Read {
            self.writable()?;
        }
        // Protection information is not there.
        let long = bytes::at(cdb, 0) >> 5 != 0;
        if long && bytes::at(cdb, 1) & 0xE0 != 0 {
            return Err(sense::BAD_FIELD);
        }
        let Some((offset, len)) = self.bytes_of(cdb)? else {
            return Ok(Action::Good);
        };
        if len > MOST {
            return Err(sense::BAD_FIELD);
        }
        Ok(Action::Move(Request::new(op, offset, len, Data::None)))
    }

    fn verify(&self, cdb: &[u8]) -> Result<Action, Sense> {
        // Comparing with what the initiator sends is not there (BYTCHK).
        if bytes::at(cdb, 1) & 0x06 != 0 {
            return Err(sense::BAD_FIELD);
        }
        match self.bytes_of(cdb)? {
            None => Ok(Action::Good),
            Some((_, len)) if len > MOST => Err(sense::BAD_FIELD),
            Some((offset, len)) => Ok(Action::Ask(Request::new(Op::Verify, offset, len, Data::None))),
        }
    }

    fn write_same(&mut self, cdb: &[u8]) -> Result<Action, Sense> {
        self.writable()?;
        let (_, count) = range(cdb);
        // Anchors, protection; zero blocks mean the rest of the disk, which is not offered.
        if bytes::at(cdb, 1) & 0xF6 != 0 || count == 0 || count > SAME_BLOCKS {
            return Err(sense::BAD_FIELD);
        }
        self.bytes_of(cdb)?;
        // Without a block of data it is one of zeros (SBC-3 §5.51).
        if bytes::at(cdb, 0) == 0x93 && bytes::at(cdb, 1) & 1 != 0 {
            return self.same(cdb, &vec![0; bytes::index(SECTOR)]);
        }
        Ok(Action::Take(bytes::index(SECTOR)))
    }

    /// Writes a block over and over.
    fn same(&mut self, cdb: &[u8], block: &[u8]) -> Result<Action, Sense> {
        let Some((offset, len)) = self.bytes_of(cdb)? else {
            return Ok(Action::Good);
        };
        let (unmap, through) = (bytes::at(cdb, 1) & 8 != 0, self.state.through);
        let zeros = block.iter().all(|byte| *byte == 0);
        let request = match (zeros, unmap) {
            (true, true) => Request::new(Op::Discard { through }, offset, len, Data::None),
            (true, false) => Request::new(Op::WriteZeroes { through }, offset, len, Data::None),
            // What is not zeros cannot be given back; it is written (SBC-3 §4.7.3.4.5).
            (false, _) => {
                let count = bytes::index(len / SECTOR);
                Request::new(Op::Write { through }, offset, len, Data::Bytes(block.repeat(count)))
            }
        };
        Ok(Action::Ask(request))
    }

    fn unmap(&self, cdb: &[u8]) -> Result<Action, Sense> {
        self.writable()?;
        // Anchors are not there.
        if bytes::at(cdb, 1) & 1 != 0 {
            return Err(sense::BAD_FIELD);
        }
        let most = 8 + bytes::index(UNMAP_RANGES.into()) * 16;
        match usize::from(bytes::be16(cdb, 7)) {
            0 => Ok(Action::Good),
            len if len < 8 || len > most => Err(LIST_LENGTH),
            len => Ok(Action::Take(len)),
        }
    }

    /// The descriptors of UNMAP (SBC-3 §5.28.2).
    fn descriptors(&self, given: &[u8]) -> Result<Action, Sense> {
        let described = usize::from(bytes::be16(given, 2));
        let list = given.get(8..).unwrap_or_default();
        let list = list.get(..described.min(list.len())).unwrap_or_default();
        let mut ranges = Vec::new();
        for descriptor in list.as_chunks::<16>().0 {
            let first = u64::from(bytes::be32(descriptor, 0)) << 32 | u64::from(bytes::be32(descriptor, 4));
            let count = bytes::be32(descriptor, 8);
            let end = first.checked_add(count.into());
            if end.is_none_or(|end| end > self.blocks()) {
                return Err(sense::OUT_OF_RANGE);
            }
            if count > UNMAP_BLOCKS {
                return Err(sense::BAD_LIST);
            }
            if count > 0 {
                ranges.push((first * SECTOR, u64::from(count) * SECTOR));
            }
        }
        if ranges.is_empty() {
            return Ok(Action::Good);
        }
        let through = self.state.through;
        Ok(Action::Ask(Request::new(
            Op::Discard { through },
            0,
            0,
            Data::Ranges(ranges),
        )))
    }
}
