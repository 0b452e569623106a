//! Reservations of a unit by its only initiator: persistent ones, with registered keys, and those of RESERVE (6).
//!
//! There is one I_T nexus, so nobody is ever kept out of a reserved unit; what is kept is who is registered and what is
//! reserved, as cluster software asks for it. Registrations survive resets and end with the power (no APTPL).
//!
//! Spec: SPC-4 §5.12 (reservations), §6.15 (PERSISTENT RESERVE IN), §6.16 (PERSISTENT RESERVE OUT); SPC-2 §7.21, §7.16
//! (RESERVE and RELEASE of six bytes).

use device_model::Node;
use device_model::RestoreError;
use serde::Deserialize;
use serde::Serialize;

use super::Action;
use crate::ata::Sense;
use crate::ata::sense;
use crate::bytes;
use crate::mode::LIST_LENGTH;

/// Bytes of the parameters of PERSISTENT RESERVE OUT.
const PARAMETERS: usize = 24;
/// INVALID RELEASE OF PERSISTENT RESERVATION.
const BAD_RELEASE: Sense = Sense(5, 0x26, 4);
/// No protocol that has a form of transport identifiers (SPC-4 §7.6.1).
const NO_PROTOCOL: u8 = 0x0F;

/// Service actions of PERSISTENT RESERVE IN (SPC-4 table 206).
mod ask {
    pub(super) const READ_KEYS: u8 = 0;
    pub(super) const READ_RESERVATION: u8 = 1;
    pub(super) const REPORT_CAPABILITIES: u8 = 2;
    pub(super) const READ_FULL_STATUS: u8 = 3;
}

/// Service actions of PERSISTENT RESERVE OUT (SPC-4 table 219).
mod act {
    pub(super) const REGISTER: u8 = 0;
    pub(super) const RESERVE: u8 = 1;
    pub(super) const RELEASE: u8 = 2;
    pub(super) const CLEAR: u8 = 3;
    pub(super) const PREEMPT: u8 = 4;
    pub(super) const PREEMPT_AND_ABORT: u8 = 5;
    pub(super) const REGISTER_AND_IGNORE: u8 = 6;
}

/// Types of reservations (SPC-4 table 214): the last two are held by all who are registered.
const TYPES: [u8; 6] = [1, 3, 5, 6, 7, 8];
const ALL_REGISTRANTS: [u8; 2] = [7, 8];

/// What is registered and reserved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reservations {
    /// Changes of registrations (PRGENERATION).
    generation: u32,
    /// The key of the initiator; zero while it is not registered.
    key: u64,
    /// The type of the persistent reservation, which the initiator holds; zero where there is none.
    held: u8,
    /// It has reserved the unit in the older way.
    reserved: bool,
}

fn key(data: &[u8], at: usize) -> u64 {
    u64::from(bytes::be32(data, at)) << 32 | u64::from(bytes::be32(data, at + 4))
}

impl Reservations {
    /// A reset ends what RESERVE (6) has reserved.
    pub(super) fn reset(&mut self) {
        self.reserved = false;
    }

    /// The power goes.
    pub(super) fn power_off(&mut self) {
        *self = Self::default();
    }

    pub(super) fn check(&self) -> Result<(), RestoreError> {
        let held = self.held == 0 || TYPES.contains(&self.held) && self.key != 0;
        if held && !(self.reserved && self.key != 0) {
            return Ok(());
        }
        Err(RestoreError::Invalid("reservations that cannot be".to_owned()))
    }

    pub(super) fn inspect(&self) -> Node {
        Node::tree()
            .with("generation", self.generation)
            .with("key", self.key)
            .with("held", self.held)
            .with("reserved", self.reserved)
    }

    /// RESERVE and RELEASE (6), without extents and third parties.
    pub(super) fn six(&mut self, cdb: &[u8]) -> Result<Action, Sense> {
        if bytes::at(cdb, 1) & 0x1F != 0 {
            return Err(sense::BAD_FIELD);
        }
        // The two kinds exclude one another (SPC-4 §5.12.3).
        if self.key != 0 {
            return Ok(Action::Conflict);
        }
        self.reserved = bytes::at(cdb, 0) == 0x16;
        Ok(Action::Good)
    }

    /// PERSISTENT RESERVE IN.
    pub(super) fn tell(&self, cdb: &[u8]) -> Result<Action, Sense> {
        if self.reserved {
            return Ok(Action::Conflict);
        }
        let holds = !ALL_REGISTRANTS.contains(&self.held);
        let list = match bytes::at(cdb, 1) & 0x1F {
            ask::READ_KEYS if self.key == 0 => Vec::new(),
            ask::READ_KEYS => self.key.to_be_bytes().to_vec(),
            ask::READ_RESERVATION if self.held == 0 => Vec::new(),
            ask::READ_RESERVATION => {
                let holder = if holds { self.key } else { 0 };
                [&holder.to_be_bytes()[..], &[0, 0, 0, 0, 0, self.held, 0, 0]].concat()
            }
            ask::REPORT_CAPABILITIES => return Ok(sent(capabilities(), cdb)),
            ask::READ_FULL_STATUS if self.key == 0 => Vec::new(),
            ask::READ_FULL_STATUS => self.full_status(),
            _ => return Err(sense::BAD_FIELD),
        };
        let mut data = self.generation.to_be_bytes().to_vec();
        data.extend(bytes::low32(list.len() as u64).to_be_bytes());
        data.extend(list);
        Ok(sent(data, cdb))
    }

    /// The initiator in full, at the only port.
    fn full_status(&self) -> Vec<u8> {
        let mut status = vec![0; 48];
        bytes::put(&mut status, 0, &self.key.to_be_bytes());
        bytes::put(&mut status, 12, &[u8::from(self.held != 0), self.held]);
        bytes::put(&mut status, 18, &[0, 1, 0, 0, 0, 24, NO_PROTOCOL]);
        status
    }

    /// PERSISTENT RESERVE OUT has come, without its parameters.
    pub(super) fn wants(&self, cdb: &[u8]) -> Result<Action, Sense> {
        let (action, scope) = (bytes::at(cdb, 1) & 0x1F, bytes::at(cdb, 2));
        let typed = matches!(
            action,
            act::RESERVE | act::RELEASE | act::PREEMPT | act::PREEMPT_AND_ABORT
        );
        // The scope is the unit, which is zero.
        if action > act::REGISTER_AND_IGNORE || typed && !TYPES.contains(&scope) {
            return Err(sense::BAD_FIELD);
        }
        if self.reserved {
            return Ok(Action::Conflict);
        }
        if bytes::be32(cdb, 5) as usize != PARAMETERS {
            return Err(LIST_LENGTH);
        }
        Ok(Action::Take(PARAMETERS))
    }

    /// The parameters of PERSISTENT RESERVE OUT are there.
    pub(super) fn change(&mut self, cdb: &[u8], given: &[u8]) -> Result<Action, Sense> {
        let (own, other, flags) = (key(given, 0), key(given, 8), bytes::at(given, 20));
        let (action, kind) = (bytes::at(cdb, 1) & 0x1F, bytes::at(cdb, 2));
        // Other initiators and ports, and registrations that outlive the power, are not there.
        let registers = matches!(action, act::REGISTER | act::REGISTER_AND_IGNORE);
        if registers && flags & 0x0D != 0 {
            return Err(sense::BAD_LIST);
        }
        match action {
            act::REGISTER if own != self.key => return Ok(Action::Conflict),
            act::REGISTER | act::REGISTER_AND_IGNORE => self.register(other),
            _ if self.key == 0 || own != self.key => return Ok(Action::Conflict),
            act::RESERVE if self.held != 0 && self.held != kind => return Ok(Action::Conflict),
            act::RESERVE => self.held = kind,
            act::RELEASE if self.held != 0 && self.held != kind => return Err(BAD_RELEASE),
            act::RELEASE => self.held = 0,
            act::CLEAR => self.register(0),
            _ => return self.preempt(other, kind),
        }
        Ok(Action::Good)
    }

    /// Registers the initiator with another key; zero ends its registration, and so its reservation.
    fn register(&mut self, key: u64) {
        if self.key == 0 && key == 0 {
            return;
        }
        self.generation = self.generation.wrapping_add(1);
        self.key = key;
        if key == 0 {
            self.held = 0;
        }
    }

    /// Ends registrations with the key `other`, and takes the reservation of who held it (SPC-4 §5.12.11.4).
    fn preempt(&mut self, other: u64, kind: u8) -> Result<Action, Sense> {
        let for_all = ALL_REGISTRANTS.contains(&self.held);
        match (other, self.held != 0) {
            // Zero names all others where all hold it.
            (0, true) if for_all => self.held = kind,
            (0, _) => return Err(sense::BAD_LIST),
            (other, _) if other != self.key => return Ok(Action::Conflict),
            // It takes its own reservation over, and stays registered.
            (_, true) if !for_all => self.held = kind,
            (_, _) => {
                self.register(0);
                return Ok(Action::Good);
            }
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(Action::Good)
    }
}

/// One port, one initiator; nothing outlives the power. The types that there are.
fn capabilities() -> Vec<u8> {
    vec![0, 8, 0, 0x80, 0xEA, 0x01, 0, 0]
}

fn sent(mut data: Vec<u8>, cdb: &[u8]) -> Action {
    data.truncate(bytes::be16(cdb, 7).into());
    Action::Send(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(it: &mut Reservations, action: u8, kind: u8, own: u64, other: u64) -> Result<Action, Sense> {
        let cdb = [0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0];
        match it.wants(&cdb)? {
            Action::Take(24) => {}
            other => return Ok(other),
        }
        let mut given = [0; 24];
        given[..8].copy_from_slice(&own.to_be_bytes());
        given[8..16].copy_from_slice(&other.to_be_bytes());
        it.change(&cdb, &given)
    }

    fn told(it: &Reservations, action: u8) -> Vec<u8> {
        match it.tell(&[0x5E, action, 0, 0, 0, 0, 0, 0, 255, 0]).unwrap() {
            Action::Send(data) => data,
            other => panic!("{other:?}"),
        }
    }

    const GOOD: Result<Action, Sense> = Ok(Action::Good);
    const CONFLICT: Result<Action, Sense> = Ok(Action::Conflict);

    #[test]
    fn registration_has_a_key_and_counts_generations() {
        let mut it = Reservations::default();
        assert_eq!(told(&it, 0), [0; 8]);
        assert_eq!(out(&mut it, act::REGISTER, 0, 0, 0), GOOD);
        assert_eq!(told(&it, 0), [0; 8], "nothing was registered");
        assert_eq!(out(&mut it, act::REGISTER, 0, 7, 1), CONFLICT);
        assert_eq!(out(&mut it, act::REGISTER, 0, 0, 0x1234), GOOD);
        assert_eq!(told(&it, 0), [0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0x12, 0x34]);
        assert_eq!(out(&mut it, act::REGISTER, 0, 0, 5), CONFLICT);
        assert_eq!(out(&mut it, act::REGISTER, 0, 0x1234, 5), GOOD);
        assert_eq!(out(&mut it, act::REGISTER_AND_IGNORE, 0, 99, 6), GOOD);
        assert_eq!((told(&it, 0)[3], told(&it, 0)[15]), (3, 6));
        assert_eq!(out(&mut it, act::REGISTER, 0, 6, 0), GOOD);
        assert_eq!(told(&it, 0), [0, 0, 0, 4, 0, 0, 0, 0]);
    }

    #[test]
    fn reservation_is_held_until_it_is_released() {
        let mut it = Reservations::default();
        assert_eq!(out(&mut it, act::RESERVE, 1, 0, 0), CONFLICT, "it is not registered");
        out(&mut it, act::REGISTER, 0, 0, 9).unwrap();
        assert_eq!(out(&mut it, act::RESERVE, 1, 8, 0), CONFLICT);
        assert_eq!(out(&mut it, act::RESERVE, 2, 9, 0), Err(sense::BAD_FIELD));
        assert_eq!(out(&mut it, act::RESERVE, 0x11, 9, 0), Err(sense::BAD_FIELD));
        assert_eq!(told(&it, 1)[4..], [0; 4]);
        assert_eq!(out(&mut it, act::RESERVE, 3, 9, 0), GOOD);
        assert_eq!(out(&mut it, act::RESERVE, 3, 9, 0), GOOD);
        assert_eq!(out(&mut it, act::RESERVE, 1, 9, 0), CONFLICT);
        assert_eq!(
            told(&it, 1)[4..],
            [0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 3, 0, 0]
        );
        let full = told(&it, 3);
        assert_eq!(
            (full.len(), full[8 + 7], &full[20..22], full[8 + 23]),
            (56, 9, &[1, 3][..], 24)
        );
        assert_eq!(out(&mut it, act::RELEASE, 1, 9, 0), Err(BAD_RELEASE));
        assert_eq!(out(&mut it, act::RELEASE, 3, 9, 0), GOOD);
        assert_eq!(out(&mut it, act::RELEASE, 3, 9, 0), GOOD, "there is none");
        out(&mut it, act::RESERVE, 7, 9, 0).unwrap();
        assert_eq!(told(&it, 1)[8..16], [0; 8], "all who are registered hold it");
        it.reset();
        assert_eq!(told(&it, 1)[21], 7);
        assert_eq!(out(&mut it, act::REGISTER, 0, 9, 0), GOOD);
        assert_eq!(told(&it, 1)[4..], [0; 4]);
    }

    #[test]
    fn clear_and_preempt_end_registrations() {
        let mut it = Reservations::default();
        out(&mut it, act::REGISTER, 0, 0, 9).unwrap();
        out(&mut it, act::RESERVE, 5, 9, 0).unwrap();
        assert_eq!(out(&mut it, act::PREEMPT, 6, 9, 8), CONFLICT, "nobody has that key");
        assert_eq!(out(&mut it, act::PREEMPT, 6, 9, 0), Err(sense::BAD_LIST));
        assert_eq!(out(&mut it, act::PREEMPT, 6, 9, 9), GOOD);
        assert_eq!((it.key, it.held, it.generation), (9, 6, 2));
        out(&mut it, act::RELEASE, 6, 9, 0).unwrap();
        out(&mut it, act::RESERVE, 8, 9, 0).unwrap();
        assert_eq!(out(&mut it, act::PREEMPT_AND_ABORT, 1, 9, 0), GOOD);
        assert_eq!((it.key, it.held, it.generation), (9, 1, 3));
        out(&mut it, act::RELEASE, 1, 9, 0).unwrap();
        assert_eq!(out(&mut it, act::PREEMPT, 1, 9, 9), GOOD);
        assert_eq!((it.key, it.held, it.generation), (0, 0, 4));
        out(&mut it, act::REGISTER, 0, 0, 9).unwrap();
        out(&mut it, act::RESERVE, 1, 9, 0).unwrap();
        assert_eq!(out(&mut it, act::CLEAR, 0, 8, 0), CONFLICT);
        assert_eq!(out(&mut it, act::CLEAR, 0, 9, 0), GOOD);
        assert_eq!((it.key, it.held, it.generation), (0, 0, 6));
        it.power_off();
        assert_eq!(it, Reservations::default());
    }

    #[test]
    fn older_reservations_and_persistent_ones_exclude_one_another() {
        let mut it = Reservations::default();
        let (reserve, release) = ([0x16, 0, 0, 0, 0, 0], [0x17, 0, 0, 0, 0, 0]);
        assert_eq!(it.six(&[0x16, 1, 0, 0, 0, 0]), Err(sense::BAD_FIELD));
        assert_eq!(it.six(&release), GOOD, "there is none");
        assert_eq!(it.six(&reserve), GOOD);
        assert_eq!(it.tell(&[0x5E, 0, 0, 0, 0, 0, 0, 0, 255, 0]), CONFLICT);
        assert_eq!(out(&mut it, act::REGISTER, 0, 0, 9), CONFLICT);
        it.reset();
        assert_eq!(out(&mut it, act::REGISTER, 0, 0, 9), GOOD);
        assert_eq!(it.six(&reserve), CONFLICT);
        assert_eq!(it.six(&release), CONFLICT);
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let mut it = Reservations::default();
        assert_eq!(told(&it, 2), [0, 8, 0, 0x80, 0xEA, 1, 0, 0]);
        assert_eq!(it.tell(&[0x5E, 4, 0, 0, 0, 0, 0, 0, 255, 0]), Err(sense::BAD_FIELD));
        assert_eq!(it.wants(&[0x5F, 7, 0, 0, 0, 0, 0, 0, 24, 0]), Err(sense::BAD_FIELD));
        assert_eq!(it.wants(&[0x5F, 0, 0, 0, 0, 0, 0, 0, 20, 0]), Err(LIST_LENGTH));
        let cdb = [0x5F, 0, 0, 0, 0, 0, 0, 0, 24, 0];
        for flag in [1, 4, 8] {
            let mut given = [0; 24];
            (given[15], given[20]) = (1, flag);
            assert_eq!(it.change(&cdb, &given), Err(sense::BAD_LIST));
        }
        let state = |key, held, reserved| Reservations {
            generation: 0,
            key,
            held,
            reserved,
        };
        assert!(state(1, 8, false).check().is_ok() && state(0, 0, true).check().is_ok());
        for bad in [state(0, 1, false), state(1, 2, false), state(1, 0, true)] {
            assert!(bad.check().is_err());
        }
    }
}
