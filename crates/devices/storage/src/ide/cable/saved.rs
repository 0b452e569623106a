//! What is saved of an IDE channel, and shown of it.
//!
//! Spec: none; the states are those of [`Cable`].

use device_model::Node;
use device_model::RestoreError;
use serde::Deserialize;
use serde::Serialize;

use super::CHUNK;
use super::Cable;
use super::PACKET;
use super::Phase;
use super::State;
use crate::Drive;
use crate::ata::DriveState;
use crate::ata::Transfer;
use crate::bytes;

/// Saved state of a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::ide) struct CableV1 {
    state: State,
    drives: [Option<DriveState>; 2],
}

impl Cable {
    pub(in crate::ide) fn save(&self) -> CableV1 {
        let Self {
            irq: _,
            work: _,
            drives,
            state,
            asked: _,
            may_master: _,
        } = self;
        CableV1 {
            state: state.clone(),
            drives: drives.each_ref().map(|drive| drive.as_ref().map(Drive::save)),
        }
    }

    pub(in crate::ide) fn restore(&mut self, saved: CableV1) -> Result<(), RestoreError> {
        let CableV1 { state, drives } = saved;
        let invalid = |what: &str| RestoreError::Invalid(what.to_owned());
        let most = bytes::low32(CHUNK);
        let sizes = [state.passed, state.block_end, state.total, state.block];
        let fits = state.buffer.len() as u64 <= CHUNK && sizes.iter().all(|size| *size <= most);
        let moves = |transfer: Transfer| transfer.len > 0 && transfer.offset.checked_add(transfer.len).is_some();
        let in_order = state.passed <= state.block_end && state.block > 0;
        if !fits || !in_order || !state.transfer.is_none_or(moves) {
            return Err(invalid("IDE transfer that cannot be"));
        }
        let open = match &state.phase {
            Phase::Asked { request, .. } => request.check().map(|()| true)?,
            Phase::DataIn => u64::from(state.block_end) <= state.buffer.len() as u64 && state.passed < state.block_end,
            Phase::DataOut => {
                state.block_end <= state.total && (state.buffer.len() as u64) < u64::from(state.block_end)
            }
            Phase::Packet => state.buffer.len() < PACKET,
            Phase::Dma { take } => *take <= most,
            Phase::Idle => true,
        };
        if !open {
            return Err(invalid("IDE data phase that cannot be"));
        }
        for (drive, saved) in self.drives.iter_mut().zip(drives) {
            match (drive, saved) {
                (Some(drive), Some(saved)) => drive.restore(saved)?,
                (None, None) => {}
                _ => return Err(invalid("the IDE channel has other drives")),
            }
        }
        self.work.abandon();
        self.asked = false;
        self.state = state;
        self.update_irq();
        Ok(())
    }

    pub(in crate::ide) fn inspect(&self) -> Node {
        let phase = match self.state.phase {
            Phase::Idle => "idle",
            Phase::Asked { .. } => "asked",
            Phase::DataIn => "data in",
            Phase::DataOut => "data out",
            Phase::Packet => "packet",
            Phase::Dma { .. } => "dma",
        };
        let tree = Node::tree()
            .with("phase", phase)
            .with("command", self.state.code)
            .with("status", self.alternate_status())
            .with("interrupt", self.state.interrupt)
            .with("bus_master", self.state.master.inspect());
        let names = ["device0", "device1"];
        let drives = names.iter().zip(&self.drives);
        drives.fold(tree, |tree, (name, drive)| match drive {
            Some(drive) => tree.with(name, drive.inspect()),
            None => tree,
        })
    }
}
