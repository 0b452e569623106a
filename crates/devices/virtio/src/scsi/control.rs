//! Task management, and asynchronous notifications, of which there are none.
//!
//! Spec: virtio 1.2 §5.6.6.2 (control queue); SAM-5 §7 (task management functions).

use device_model::RestoreError;
use serde::Deserialize;
use serde::Serialize;

use super::CONTROL;
use super::Scsi;
use super::wire;
use super::wire::response;
use crate::Chain;
use crate::RingError;
use crate::Rings;

/// Types of requests.
const TMF: u32 = 0;
const AN_QUERY: u32 = 1;
const AN_SUBSCRIBE: u32 = 2;

/// Task management functions.
mod function {
    pub(super) const ABORT_TASK: u32 = 0;
    pub(super) const ABORT_TASK_SET: u32 = 1;
    pub(super) const CLEAR_ACA: u32 = 2;
    pub(super) const CLEAR_TASK_SET: u32 = 3;
    pub(super) const NEXUS_RESET: u32 = 4;
    pub(super) const UNIT_RESET: u32 = 5;
    pub(super) const QUERY_TASK: u32 = 6;
    pub(super) const QUERY_TASK_SET: u32 = 7;
}

/// A function that waits for the commands that it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Deferred {
    answer: Chain,
    /// The commands, by their tokens.
    waits: Vec<u64>,
    /// The unit that is reset then.
    resets: Option<u8>,
}

impl Deferred {
    pub(super) fn check(&self) -> Result<(), RestoreError> {
        if self.waits.len() > super::BUSY {
            return Err(RestoreError::Invalid(
                "a task management function that cannot be".to_owned(),
            ));
        }
        self.answer.check()
    }
}

impl Scsi {
    /// Takes what the control queue asks for, and ends what has waited long enough.
    pub(super) fn manage(&mut self, rings: &mut Rings<'_>) -> Result<(), RingError> {
        while !self.work.is_held() {
            let Some(mut chain) = rings.pop(CONTROL) else { break };
            let kind: u32 = chain.take_obj(rings.memory())?;
            match kind {
                TMF => self.function(chain, rings)?,
                AN_QUERY | AN_SUBSCRIBE => notifications(chain, rings)?,
                _ => return Err(RingError::Shape),
            }
        }
        let under_way: Vec<u64> = self.state.pending.iter().map(|pending| pending.token).collect();
        for deferred in std::mem::take(&mut self.state.deferred) {
            if deferred.waits.iter().any(|token| under_way.contains(token)) {
                self.state.deferred.push(deferred);
                continue;
            }
            if let Some(unit) = deferred.resets.and_then(|target| self.unit_mut(target)) {
                unit.reset();
            }
            reply(deferred.answer, &[response::OK], rings)?;
        }
        Ok(())
    }

    fn function(&mut self, mut chain: Chain, rings: &mut Rings<'_>) -> Result<(), RingError> {
        let function: u32 = chain.take_obj(rings.memory())?;
        let lun: [u8; 8] = chain.take_obj(rings.memory())?;
        let tag: u64 = chain.take_obj(rings.memory())?;
        let known = wire::address(lun).filter(|address| self.unit(address.target).is_some());
        let Some(address) = known else {
            return reply(chain, &[response::BAD_TARGET], rings);
        };
        if address.unit != 0 {
            return reply(chain, &[response::INCORRECT_LUN], rings);
        }
        let here = self
            .state
            .pending
            .iter()
            .filter(|pending| pending.target == address.target);
        let tasks: Vec<(u64, u64)> = here.map(|pending| (pending.tag, pending.token)).collect();
        let of_tag = || tasks.iter().filter(|(other, _)| *other == tag);
        let all = || tasks.iter().map(|(_, token)| *token).collect();
        let (waits, resets) = match function {
            function::ABORT_TASK => (of_tag().map(|(_, token)| *token).collect(), None),
            function::ABORT_TASK_SET | function::CLEAR_TASK_SET => (all(), None),
            function::UNIT_RESET | function::NEXUS_RESET => (all(), Some(address.target)),
            function::CLEAR_ACA => (Vec::new(), None),
            function::QUERY_TASK | function::QUERY_TASK_SET => {
                let found = match function {
                    function::QUERY_TASK => of_tag().next().is_some(),
                    _ => !tasks.is_empty(),
                };
                let answer = if found {
                    response::FUNCTION_SUCCEEDED
                } else {
                    response::OK
                };
                return reply(chain, &[answer], rings);
            }
            _ => return reply(chain, &[response::FUNCTION_REJECTED], rings),
        };
        self.state.deferred.push(Deferred {
            answer: chain,
            waits,
            resets,
        });
        Ok(())
    }
}

/// Asks which notifications there are, or for some of them: none.
fn notifications(mut chain: Chain, rings: &mut Rings<'_>) -> Result<(), RingError> {
    let _: [u8; 12] = chain.take_obj(rings.memory())?;
    let mut answer = [0; 5];
    answer[4] = response::OK;
    reply(chain, &answer, rings)
}

fn reply(mut chain: Chain, bytes: &[u8], rings: &mut Rings<'_>) -> Result<(), RingError> {
    if chain.writable_len() < bytes.len() as u64 {
        return Err(RingError::Shape);
    }
    let put = chain.put(rings.memory(), bytes)?;
    rings.push(CONTROL, chain.head, u32::try_from(put).unwrap_or(0));
    Ok(())
}
