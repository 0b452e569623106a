//! KVM's hypercalls, the same for every engine.
//!
//! VMCALL (and AMD's VMMCALL) with the number in RAX and arguments in RBX, RCX, RDX and RSI; 32 bits of each outside 64-bit
//! mode. The result is in RAX.
//!
//! Spec: KVM hypercalls.rst; `linux/kvm_para.h` (errors).

use crate::CpuBoard;
use crate::CpuPolicy;
use crate::Feature;

/// A hypercall, as the registers have it.
#[derive(Clone, Copy, Debug)]
pub struct Hypercall {
    /// The vCPU that makes it.
    pub cpu: u32,
    /// Its privilege level.
    pub cpl: u8,
    /// It is in 64-bit mode.
    pub long: bool,
    /// RAX.
    pub number: u64,
    /// RBX, RCX, RDX and RSI.
    pub arguments: [u64; 4],
}

/// KVM_HC_VAPIC_POLL_IRQ: asks for interrupts; leaving the guest has done that already.
const VAPIC_POLL_IRQ: u64 = 1;
/// KVM_HC_KICK_CPU: flags, APIC id.
const KICK_CPU: u64 = 5;
/// KVM_HC_SEND_IPI: low and high part of the set, first APIC id, ICR. Returns the number of processors.
const SEND_IPI: u64 = 10;
/// KVM_HC_SCHED_YIELD: APIC id.
const SCHED_YIELD: u64 = 11;

/// Results that are errors: KVM_EPERM, KVM_EINVAL, KVM_EOPNOTSUPP, KVM_ENOSYS.
const EPERM: i64 = -1;
const EINVAL: i64 = -22;
const EOPNOTSUPP: i64 = -95;
const ENOSYS: i64 = -1000;

/// ICR: logical destination, and shorthand. Neither goes with a set of processors.
const ICR_REFUSED: u64 = 0xc_0800;

impl Hypercall {
    /// Carries it out; RAX after it.
    #[must_use]
    pub fn call(&self, policy: &CpuPolicy, board: &dyn CpuBoard) -> u64 {
        let width = if self.long { u64::MAX } else { 0xffff_ffff };
        let result = if self.cpl == 0 {
            self.carry_out(policy, board, width)
        } else {
            EPERM
        };
        result as u64 & width
    }

    fn carry_out(&self, policy: &CpuPolicy, board: &dyn CpuBoard, width: u64) -> i64 {
        let [a, b, c, d] = self.arguments.map(|argument| argument & width);
        match self.number & width {
            VAPIC_POLL_IRQ => 0,
            KICK_CPU if policy.has(Feature::KvmPvUnhalt) => {
                // APIC ids have 32 bits, of which all ones are nobody's.
                board.unhalt(u32::try_from(b).unwrap_or(u32::MAX));
                0
            }
            SEND_IPI if policy.has(Feature::KvmPvSendIpi) => {
                if d & ICR_REFUSED != 0 {
                    return EINVAL;
                }
                let bits = if self.long { 64 } else { 32 };
                let set = u128::from(b) << bits | u128::from(a);
                let sent = board.send_ipis(self.cpu, c as u32, set, d as u32);
                sent.map_or(EOPNOTSUPP, i64::from)
            }
            SCHED_YIELD if policy.has(Feature::KvmPvSchedYield) => {
                // Nobody can be let go first by name; on a busy host it is a vCPU that waits, mostly.
                std::thread::yield_now();
                0
            }
            _ => ENOSYS,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use device_model::VmTime;
    use device_model::Width;

    use super::*;
    use crate::Model;
    use crate::MsrFault;
    use crate::Paravirt;

    /// Notes what it is asked for.
    #[derive(Default)]
    struct Board(Mutex<Vec<(u32, u32, u128, u32)>>);

    impl CpuBoard for Board {
        fn pio_read(&self, _: u32, _: u16, _: Width) -> u32 {
            0
        }
        fn pio_write(&self, _: u32, _: u16, _: Width, _: u32) {}
        fn mmio_read(&self, _: u32, _: u64, _: Width) -> u64 {
            0
        }
        fn mmio_write(&self, _: u32, _: u64, _: Width, _: u64) {}
        fn take_interrupt(&self, _: u32) -> Option<u8> {
            None
        }
        fn apic_read_msr(&self, _: u32, _: u32) -> Result<u64, MsrFault> {
            Err(MsrFault)
        }
        fn apic_write_msr(&self, _: u32, _: u32, _: u64) -> Result<(), MsrFault> {
            Err(MsrFault)
        }
        fn apic_cr8(&self, _: u32) -> u8 {
            0
        }
        fn set_apic_cr8(&self, _: u32, _: u8) {}
        fn now(&self) -> VmTime {
            VmTime::ZERO
        }
        fn send_ipis(&self, cpu: u32, first: u32, set: u128, icr: u32) -> Option<u32> {
            self.0.lock().unwrap().push((cpu, first, set, icr));
            Some(set.count_ones())
        }
        fn unhalt(&self, apic_id: u32) {
            self.0.lock().unwrap().push((u32::MAX, apic_id, 0, 0));
        }
    }

    fn policy() -> CpuPolicy {
        CpuPolicy::new(Model::Host).unwrap().with_cpus(4)
    }

    fn call(
        policy: &CpuPolicy,
        cpl: u8,
        long: bool,
        number: u64,
        arguments: [u64; 4],
    ) -> (u64, Vec<(u32, u32, u128, u32)>) {
        let board = Board::default();
        let call = Hypercall {
            cpu: 3,
            cpl,
            long,
            number,
            arguments,
        };
        let result = call.call(policy, &board);
        (result, board.0.into_inner().unwrap())
    }

    #[test]
    fn ipis_go_to_the_set_in_the_width_of_the_mode() {
        let arguments = [5, 1 << 40 | 2, 7, 0xfd];
        let (sent, told) = call(&policy(), 0, true, SEND_IPI, arguments);
        assert_eq!((sent, told), (4, vec![(3, 7, (1 << 40 | 2) << 64 | 5, 0xfd)]));
        let (sent, told) = call(&policy(), 0, false, 0xffff_ffff << 32 | SEND_IPI, arguments);
        assert_eq!((sent, told), (3, vec![(3, 7, 2 << 32 | 5, 0xfd)]));
        for icr in [0x800, 1 << 18, 1 << 19] {
            let (result, told) = call(&policy(), 0, true, SEND_IPI, [1, 0, 0, icr]);
            assert_eq!((result as i64, told), (EINVAL, vec![]));
        }
    }

    #[test]
    fn kick_names_one_processor() {
        let (result, told) = call(&policy(), 0, true, KICK_CPU, [0, 2, 0, 0]);
        assert_eq!((result, told), (0, vec![(u32::MAX, 2, 0, 0)]));
        let (_, told) = call(&policy(), 0, true, KICK_CPU, [0, 1 << 40, 0, 0]);
        assert_eq!(told, [(u32::MAX, u32::MAX, 0, 0)], "not processor 0");
    }

    #[test]
    fn user_programs_and_unknown_calls_are_refused() {
        for number in [KICK_CPU, SEND_IPI, SCHED_YIELD, 99] {
            let (result, told) = call(&policy(), 3, true, number, [1; 4]);
            assert_eq!((result as i64, told), (EPERM, vec![]));
        }
        assert_eq!(call(&policy(), 0, true, 99, [0; 4]).0 as i64, ENOSYS);
        assert_eq!(call(&policy(), 0, false, 99, [0; 4]).0, u64::from(ENOSYS as u32));
        assert_eq!(call(&policy(), 0, true, VAPIC_POLL_IRQ, [0; 4]).0, 0);
    }

    #[test]
    fn calls_are_there_with_their_features() {
        let bare = policy().with_paravirt(Paravirt::Minimal);
        for number in [KICK_CPU, SEND_IPI, SCHED_YIELD] {
            let (result, told) = call(&bare, 0, true, number, [1, 0, 0, 0x40]);
            assert_eq!((result as i64, told), (ENOSYS, vec![]));
            assert_ne!(call(&policy(), 0, true, number, [1, 0, 0, 0x40]).0 as i64, ENOSYS);
        }
    }
}
