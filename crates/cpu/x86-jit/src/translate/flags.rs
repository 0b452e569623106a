//! Which arithmetic flags are still wanted where: code between guest instructions may only change those that are not.

use iced_x86::Decoder;
use iced_x86::DecoderOptions;
use iced_x86::FlowControl;
use iced_x86::Instruction;
use iced_x86::Mnemonic;
use iced_x86::OpKind;
use iced_x86::RflagsBits;

/// The six arithmetic flags, in the terms of `iced-x86`.
pub(crate) const ALL: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// Instructions looked at beyond a jump.
const AHEAD: usize = 16;

/// Flags that an instruction needs, given those wanted after it.
pub(crate) fn before(ins: &Instruction, after: u32) -> u32 {
    let read = ins.rflags_read() & ALL;
    // A count of zero leaves all flags as they are.
    let repeated = ins.has_rep_prefix() || ins.has_repne_prefix();
    let conditional = repeated && ins.is_string_instruction()
        || matches!(
            ins.mnemonic(),
            Mnemonic::Shl
                | Mnemonic::Shr
                | Mnemonic::Sar
                | Mnemonic::Sal
                | Mnemonic::Rol
                | Mnemonic::Ror
                | Mnemonic::Rcl
                | Mnemonic::Rcr
                | Mnemonic::Shld
                | Mnemonic::Shrd
        ) && !constant_count(ins);
    let killed = if conditional { 0 } else { ins.rflags_modified() & ALL };
    read | after & !killed
}

fn constant_count(ins: &Instruction) -> bool {
    let last = ins.op_count() - 1;
    ins.op_kind(last) == iced_x86::OpKind::Immediate8 && ins.immediate8() & 31 != 0
}

/// Flags wanted at the start of `bytes`, which lie at `at` in their page; all of them where that cannot be told.
pub(crate) fn wanted_at(bits: u32, bytes: &[u8], at: u64) -> u32 {
    let mut decoder = Decoder::with_ip(bits, bytes, at, DecoderOptions::NONE);
    let mut ins = Instruction::default();
    let (mut wanted, mut unknown) = (0, ALL);
    for _ in 0..AHEAD {
        if unknown == 0 || !decoder.can_decode() {
            break;
        }
        decoder.decode_out(&mut ins);
        if ins.is_invalid() {
            break;
        }
        wanted |= ins.rflags_read() & unknown;
        unknown &= before(&ins, unknown) & !ins.rflags_read();
        match ins.flow_control() {
            FlowControl::Next => {
                // The interpreter may do it, and shows the flags to nobody.
            }
            FlowControl::UnconditionalBranch | FlowControl::Call
                if matches!(ins.op0_kind(), OpKind::NearBranch64 | OpKind::NearBranch32) =>
            {
                let target = ins.near_branch_target();
                let back = target.wrapping_sub(at) as usize;
                if back >= bytes.len() || decoder.set_position(back).is_err() {
                    break;
                }
                decoder.set_ip(target);
            }
            _ => break,
        }
    }
    wanted | unknown
}
