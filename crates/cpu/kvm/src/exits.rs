//! What the guest comes out for: ports, memory without a slot, MSRs, HLT, shutdown.
//!
//! What is answered here takes effect with the next entry, at whose beginning the kernel ends the instruction.

use cpu_model::Activity;
use cpu_model::CpuBoard;
use cpu_model::EngineError;
use device_model::Width;
use kvm_bindings::KVM_EXIT_DEBUG;
use kvm_bindings::KVM_EXIT_FAIL_ENTRY;
use kvm_bindings::KVM_EXIT_HLT;
use kvm_bindings::KVM_EXIT_INTERNAL_ERROR;
use kvm_bindings::KVM_EXIT_INTR;
use kvm_bindings::KVM_EXIT_IO;
use kvm_bindings::KVM_EXIT_IO_IN;
use kvm_bindings::KVM_EXIT_IRQ_WINDOW_OPEN;
use kvm_bindings::KVM_EXIT_MMIO;
use kvm_bindings::KVM_EXIT_SET_TPR;
use kvm_bindings::KVM_EXIT_SHUTDOWN;
use kvm_bindings::KVM_EXIT_X86_RDMSR;
use kvm_bindings::KVM_EXIT_X86_WRMSR;
use kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;

use crate::engine::host_error;
use crate::vcpu::KvmVcpu;

/// What an exit means for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Nothing: go on.
    Done,
    /// A single step has ended.
    Step,
}

/// Little-endian bytes as a number, and back.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn put(bytes: &mut [u8], value: u64) {
    bytes
        .iter_mut()
        .zip(value.to_le_bytes())
        .for_each(|(byte, from)| *byte = from);
}

impl KvmVcpu {
    /// Does what the guest came out for.
    pub(crate) fn exit(&mut self, board: &dyn CpuBoard) -> Result<Exit, EngineError> {
        match self.kvm_run().exit_reason {
            KVM_EXIT_IO => self.port(board),
            KVM_EXIT_MMIO => self.memory(board),
            KVM_EXIT_X86_RDMSR | KVM_EXIT_X86_WRMSR => self.msr(board)?,
            KVM_EXIT_IRQ_WINDOW_OPEN => self.counters.windows += 1,
            KVM_EXIT_SET_TPR | KVM_EXIT_INTR => {}
            KVM_EXIT_DEBUG => return Ok(Exit::Step),
            KVM_EXIT_HLT => {
                self.activity = Activity::Halted;
                return Ok(Exit::Step);
            }
            KVM_EXIT_SHUTDOWN => self.activity = Activity::Shutdown,
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: the kernel says by the reason which member it has filled in.
                let why = unsafe { self.kvm_run().__bindgen_anon_1.fail_entry.hardware_entry_failure_reason };
                return Err(self.stuck(&format!("the processor refuses the guest's state ({why:#x})")));
            }
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: as above.
                let why = unsafe { self.kvm_run().__bindgen_anon_1.internal.suberror };
                if why == KVM_INTERNAL_ERROR_EMULATION {
                    return self.rescue(board);
                }
                return Err(self.stuck(&format!("the kernel cannot execute an instruction (suberror {why})")));
            }
            reason => return Err(self.stuck(&format!("exit of unknown kind {reason}"))),
        }
        Ok(Exit::Done)
    }

    fn stuck(&self, what: &str) -> EngineError {
        host_error(format!("{what} at {}", self.place()))
    }

    /// Where the guest is: address and code.
    pub(crate) fn place(&self) -> String {
        let (rip, cs) = (
            self.fd.get_regs().map_or(0, |r| r.rip),
            self.fd.get_sregs().map_or(0, |s| s.cs.base),
        );
        let mut code = [0; 15];
        // Without paging that is where it is; with it, often enough.
        let known = self.shared.memory().read(cs.wrapping_add(rip), &mut code).is_ok();
        let bytes = if known {
            format!(", code {code:02x?}")
        } else {
            String::new()
        };
        format!("{cs:#x}+{rip:#x}{bytes}")
    }

    fn port(&mut self, board: &dyn CpuBoard) {
        let cpu = self.id;
        self.counters.pio += 1;
        let run = self.kvm_run();
        // SAFETY: the kernel says by the reason which member it has filled in.
        let io = unsafe { run.__bindgen_anon_1.io };
        let Some(width) = Width::from_bytes(io.size.into()) else {
            return;
        };
        let len = usize::from(io.size) * io.count as usize;
        let start = std::ptr::from_mut(run).cast::<u8>();
        // SAFETY: the kernel puts the data into the pages that are mapped together with `kvm_run`, and says where.
        let data = unsafe { std::slice::from_raw_parts_mut(start.add(io.data_offset as usize), len) };
        for item in data.chunks_exact_mut(io.size.into()) {
            if u32::from(io.direction) == KVM_EXIT_IO_IN {
                put(item, board.pio_read(cpu, io.port, width).into());
            } else {
                board.pio_write(cpu, io.port, width, number(item) as u32);
            }
        }
    }

    fn memory(&mut self, board: &dyn CpuBoard) {
        self.counters.mmio += 1;
        let cpu = self.id;
        let memory = std::sync::Arc::clone(self.shared.memory());
        // SAFETY: the kernel says by the reason which member it has filled in.
        let mmio = unsafe { &mut self.kvm_run().__bindgen_anon_1.mmio };
        let (gpa, write) = (mmio.phys_addr, mmio.is_write != 0);
        let len = (mmio.len as usize).min(mmio.data.len());
        let data = &mut mmio.data[..len];
        // Writes to ROM come here, and what another vCPU's change of the map has overtaken.
        if memory.page(gpa).is_some() {
            let _ = if write {
                memory.write(gpa, data)
            } else {
                memory.read(gpa, data)
            };
            return;
        }
        // An access across pages comes in two parts of any length.
        let step = Width::from_bytes(len as u64).map_or(1, |width| width.bytes() as usize);
        let width = Width::from_bytes(step as u64).unwrap_or(Width::Byte);
        for (item, at) in data.chunks_exact_mut(step).zip((gpa..).step_by(step)) {
            if write {
                board.mmio_write(cpu, at, width, number(item));
            } else {
                put(item, board.mmio_read(cpu, at, width));
            }
        }
    }

    fn msr(&mut self, board: &dyn CpuBoard) -> Result<(), EngineError> {
        self.counters.msrs += 1;
        let write = self.kvm_run().exit_reason == KVM_EXIT_X86_WRMSR;
        // SAFETY: the kernel says by the reason which member it has filled in.
        let (index, data) = unsafe {
            let msr = &self.kvm_run().__bindgen_anon_1.msr;
            (msr.index, msr.data)
        };
        let answer = if write {
            self.write_msr(board, index, data)?.map(|()| data)
        } else {
            self.read_msr(board, index)
        };
        // SAFETY: as above; any value of these is one.
        let msr = unsafe { &mut self.kvm_run().__bindgen_anon_1.msr };
        msr.error = answer.is_none().into();
        msr.data = answer.unwrap_or(0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_little_endian_of_any_length() {
        assert_eq!(number(&[1, 2, 3]), 0x03_0201);
        let mut bytes = [0; 3];
        put(&mut bytes, 0xaabb_ccdd);
        assert_eq!(bytes, [0xdd, 0xcc, 0xbb]);
    }
}
