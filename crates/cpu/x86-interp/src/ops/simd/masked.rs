//! VMASKMOV, VPMASKMOV, MASKMOVQ, MASKMOVDQU, VGATHER and VPGATHER: only elements that the mask selects touch memory, and
//! only those can fault. Done element by element; a gather that faults keeps the elements it has.
//!
//! Spec: SDM vol. 2 "VMASKMOV", "VPMASKMOV", "MASKMOVDQU", "VGATHERDPS"; vol. 2A §2.4.12 (exception type 12).

use std::sync::OnceLock;

use iced_x86::Mnemonic;
use iced_x86::OpKind;
use iced_x86::Register;

use crate::cpu::Cpu;
use crate::cpu::RDI;
use crate::decode::Dec;
use crate::decode::Select;
use crate::insn::DInsn;
use crate::insn::Exec;
use crate::insn::R;
use crate::int::Int;
use crate::native::FAULT_MF;
use crate::native::Form;
use crate::native::form_of;
use crate::ops::invalid;
use crate::ops::simd::Unit;

pub(super) fn select(x: &Dec<'_>, d: &mut DInsn, unit: Unit) -> Select {
    use Mnemonic as M;
    Some(match x.mnemonic() {
        M::Vmaskmovps | M::Vpmaskmovd => masked_move::<u32>(x, d),
        M::Vmaskmovpd | M::Vpmaskmovq => masked_move::<u64>(x, d),
        M::Vgatherdps | M::Vpgatherdd => gather_form(x, d, gather::<u32, u32>),
        M::Vgatherdpd | M::Vpgatherdq => gather_form(x, d, gather::<u32, u64>),
        M::Vgatherqps | M::Vpgatherqd => gather_form(x, d, gather::<u64, u32>),
        M::Vgatherqpd | M::Vpgatherqq => gather_form(x, d, gather::<u64, u64>),
        M::Maskmovdqu | M::Vmaskmovdqu => {
            string_operand(x, d);
            (d.dst, d.src) = (x.ins.op1_register().number() as u8, x.ins.op2_register().number() as u8);
            if unit == Unit::Avx {
                maskmovdqu::<true>
            } else {
                maskmovdqu::<false>
            }
        }
        M::Maskmovq => {
            string_operand(x, d);
            // The registers come out by way of the stubs of two stores. One decoded instruction has room for one
            // pointer, so the pair is made of it and kept: there are 64.
            d.imm = std::ptr::from_ref(mmx_pair(x.ins.op1_register(), x.ins.op2_register())?) as u64;
            maskmovq
        }
        _ => return None,
    })
}

/// DS:RDI in the address size, with its segment override.
fn string_operand(x: &Dec<'_>, d: &mut DInsn) {
    let bytes = match x.ins.op0_kind() {
        OpKind::MemorySegDI => 2,
        OpKind::MemorySegEDI => 4,
        _ => 8,
    };
    d.seg = crate::decode::seg(x.ins.memory_segment());
    d.cut = crate::decode::cut(bytes);
    d.base = RDI as u8;
}

/// How to read the data and the mask of MASKMOVQ.
struct MmxPair {
    data: &'static Form,
    mask: &'static Form,
}

fn mmx_pair(data: Register, mask: Register) -> Option<&'static MmxPair> {
    static PAIRS: [OnceLock<Option<MmxPair>>; 64] = [const { OnceLock::new() }; 64];
    let place = &PAIRS[data.number() * 8 + mask.number()];
    place
        .get_or_init(|| {
            Some(MmxPair {
                data: mmx_store(data)?,
                mask: mmx_store(mask)?,
            })
        })
        .as_ref()
}

/// The form of MOVQ to memory from an MMX register.
fn mmx_store(register: Register) -> Option<&'static Form> {
    use iced_x86::Code;
    use iced_x86::Instruction;
    use iced_x86::MemoryOperand;
    let place = MemoryOperand::with_base(Register::RDI);
    let store = Instruction::with2(Code::Movq_mmm64_mm, place, register).ok()?;
    Some(form_of(&store)?.0)
}

impl Cpu {
    /// Element `i` of a vector register.
    #[inline(always)]
    fn element<T: Int>(&self, n: u8, i: usize) -> T {
        debug_assert!(n < 16 && (i + 1) * T::BYTES as usize <= 32);
        // SAFETY: the element lies inside the register.
        unsafe {
            T::load(
                self.fpu
                    .ymm
                    .as_ptr()
                    .add(n.into())
                    .cast::<u8>()
                    .add(i * T::BYTES as usize),
            )
        }
    }

    #[inline(always)]
    fn set_element<T: Int>(&mut self, n: u8, i: usize, value: T) {
        debug_assert!(n < 16 && (i + 1) * T::BYTES as usize <= 32);
        let register = self.fpu.ymm.as_mut_ptr();
        // SAFETY: as above.
        unsafe { T::store_mem(register.add(n.into()).cast::<u8>().add(i * T::BYTES as usize), value) };
    }

    /// Writes the bytes of `data` whose mask byte has its top bit set; all of them or none.
    fn store_bytes(&mut self, d: &DInsn, data: &[u8], mask: &[u8]) -> R {
        let start = self.ea(d);
        let chosen = |i: usize| mask[i] & 0x80 != 0;
        for i in (0..data.len()).filter(|&i| chosen(i)) {
            let lin = self.lin_write(d.seg, start.wrapping_add(i as u64), 1)?;
            self.probe_write(d.seg, lin, 1)?;
        }
        for i in (0..data.len()).filter(|&i| chosen(i)) {
            self.write_seg(d.seg.into(), start.wrapping_add(i as u64), data[i])?;
        }
        Ok(())
    }
}

/// VMASKMOV and VPMASKMOV with elements of `T`; `size` is the number of elements.
fn masked_move<T: Int>(x: &Dec<'_>, d: &mut DInsn) -> Exec {
    let number = |n| x.ins.op_register(n).number() as u8;
    d.size = (x.ins.op1_register().size() as u64 / T::BYTES) as u8;
    d.src = number(1);
    if x.ins.op0_kind() == OpKind::Memory {
        d.dst = number(2);
        masked_store::<T>
    } else {
        d.dst = number(0);
        masked_load::<T>
    }
}

fn masked_load<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.ask_avx()?;
    let start = cpu.ea(d);
    let mut value = [0u64; 4];
    for i in 0..usize::from(d.size) {
        if cpu.element::<T>(d.src, i).u64() & T::SIGN == 0 {
            continue;
        }
        let word = cpu.read_seg::<T>(d.seg.into(), start.wrapping_add(i as u64 * T::BYTES))?;
        let bit = i as u64 * u64::from(T::BITS);
        value[(bit / 64) as usize] |= word.u64() << (bit % 64);
    }
    cpu.fpu.ymm[usize::from(d.dst)] = value;
    Ok(())
}

fn masked_store<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.ask_avx()?;
    let start = cpu.ea(d);
    for probe in [true, false] {
        for i in 0..usize::from(d.size) {
            if cpu.element::<T>(d.src, i).u64() & T::SIGN == 0 {
                continue;
            }
            let off = start.wrapping_add(i as u64 * T::BYTES);
            if probe {
                let lin = cpu.lin_write(d.seg, off, T::BYTES)?;
                cpu.probe_write(d.seg, lin, T::BYTES)?;
            } else {
                let value = cpu.element::<T>(d.dst, i);
                cpu.write_seg(d.seg.into(), off, value)?;
            }
        }
    }
    Ok(())
}

/// `aux` is the register of the indices, `src` the mask, `size` the number of elements, `imm` log2 of the scale.
fn gather_form(x: &Dec<'_>, d: &mut DInsn, exec: Exec) -> Exec {
    let ins = x.ins;
    let index = ins.memory_index();
    (d.dst, d.src, d.aux) = (
        ins.op0_register().number() as u8,
        ins.op2_register().number() as u8,
        index.number() as u8,
    );
    if d.dst == d.src || d.dst == d.aux || d.src == d.aux {
        return invalid;
    }
    use Mnemonic as M;
    let (index_bytes, element_bytes) = match ins.mnemonic() {
        M::Vgatherdps | M::Vpgatherdd => (4, 4),
        M::Vgatherdpd | M::Vpgatherdq => (4, 8),
        M::Vgatherqps | M::Vpgatherqd => (8, 4),
        _ => (8, 8),
    };
    d.size = (index.size() / index_bytes).min(ins.op0_register().size() / element_bytes) as u8;
    d.imm = u64::from(ins.memory_index_scale().trailing_zeros());
    exec
}

fn gather<I: Int, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.ask_avx()?;
    let start = cpu.ea(d);
    let count = usize::from(d.size);
    // What is left of the mask after a fault is all ones, not just the sign, in as many elements as the longer of the
    // two vectors has.
    let whole = count * I::BYTES.max(T::BYTES) as usize / T::BYTES as usize;
    for i in 0..32 / T::BYTES as usize {
        let sign = if i < whole {
            cpu.element::<T>(d.src, i).i64() >> 63
        } else {
            0
        };
        cpu.set_element(d.src, i, T::from_u64(sign as u64));
    }
    for i in 0..count {
        if cpu.element::<T>(d.src, i).u64() & T::SIGN != 0 {
            let index = cpu.element::<I>(d.aux, i).i64() as u64;
            let off = start.wrapping_add(index << d.imm) << d.cut >> d.cut;
            let value = cpu.read_seg::<T>(d.seg.into(), off)?;
            cpu.set_element(d.dst, i, value);
            cpu.clear_above(d.dst, whole as u64 * T::BYTES);
        }
        cpu.set_element(d.src, i, T::from_u64(0));
    }
    cpu.fpu.ymm[usize::from(d.src)] = [0; 4];
    cpu.clear_above(d.dst, count as u64 * T::BYTES);
    Ok(())
}

impl Cpu {
    /// Clears what is above the lowest `bytes` of a vector register, a multiple of eight.
    fn clear_above(&mut self, n: u8, bytes: u64) {
        for (i, word) in self.fpu.ymm[usize::from(n)].iter_mut().enumerate() {
            if i as u64 * 8 >= bytes {
                *word = 0;
            }
        }
    }
}

fn maskmovdqu<const VEX: bool>(cpu: &mut Cpu, d: &DInsn) -> R {
    if VEX {
        cpu.ask_avx()?;
    } else {
        cpu.ask_sse()?;
    }
    let data: [u8; 16] = std::array::from_fn(|i| cpu.element(d.dst, i));
    let mask: [u8; 16] = std::array::from_fn(|i| cpu.element(d.src, i));
    cpu.store_bytes(d, &data, &mask)
}

fn maskmovq(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.ask_mmx()?;
    // SAFETY: `imm` is the address of a pair, and pairs are never freed.
    let pair = unsafe { &*(d.imm as *const MmxPair) };
    let data = cpu.mmx_value(pair.data)?;
    let mask = cpu.mmx_value(pair.mask)?;
    cpu.store_bytes(d, &data, &mask)
}

impl Cpu {
    fn mmx_value(&mut self, store: &Form) -> R<[u8; 8]> {
        let mut value = [0; 8];
        let none = std::ptr::null_mut();
        let result = (store.entry)(value.as_mut_ptr(), none, none, none, none);
        if result >= FAULT_MF {
            self.stub_fault(result)?;
        }
        Ok(value)
    }
}
