//! KVM's hypercalls.
//!
//! VMCALL (and AMD's VMMCALL) with the number in RAX and arguments in RBX, RCX, RDX and RSI; 32 bits of each outside 64-bit
//! mode. The result is in RAX.
//!
//! Spec: KVM hypercalls.rst; `linux/kvm_para.h` (errors).

use cpu_model::CpuBoard;
use cpu_model::CpuPolicy;
use cpu_model::Feature;

use crate::cpu::Cpu;
use crate::cpu::RAX;
use crate::cpu::RBX;
use crate::cpu::RCX;
use crate::cpu::RDX;
use crate::cpu::RSI;
use crate::insn::DInsn;
use crate::insn::R;

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

/// A hypercall, as the registers have it.
struct Hypercall {
    /// The vCPU that makes it.
    cpu: u32,
    /// Its privilege level.
    cpl: u8,
    /// It is in 64-bit mode.
    long: bool,
    /// RAX.
    number: u64,
    /// RBX, RCX, RDX and RSI.
    arguments: [u64; 4],
}

/// VMCALL and VMMCALL: of either vendor's instruction, as KVM makes the one of the other.
pub(super) fn hypercall(cpu: &mut Cpu, _d: &DInsn) -> R {
    let call = Hypercall {
        cpu: cpu.id,
        cpl: cpu.cpl,
        long: cpu.is64(),
        number: cpu.gpr(RAX),
        arguments: [RBX, RCX, RDX, RSI].map(|register| cpu.gpr(register)),
    };
    let result = call.call(&cpu.policy, cpu.board());
    cpu.set_gpr(RAX, result);
    cpu.end_block();
    Ok(())
}

impl Hypercall {
    /// Carries it out; RAX after it.
    fn call(&self, policy: &CpuPolicy, board: &dyn CpuBoard) -> u64 {
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
    use cpu_model::Model;
    use cpu_model::Paravirt;

    use super::*;
    use crate::testing::Board;

    fn policy() -> CpuPolicy {
        CpuPolicy::new(Model::Host).unwrap().with_cpus(4)
    }

    /// RAX after a call, and what the board was told: IPIs, and who is taken out of HLT, with a sender that there is none of.
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
        let mut told = board.ipis.into_inner().unwrap();
        let unhalted = board.unhalted.into_inner().unwrap();
        told.extend(unhalted.into_iter().map(|id| (u32::MAX, id, 0, 0)));
        (result, told)
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
