//! stub
use crate::cpu::Cpu;
use crate::insn::R;
use x86_isa::Exception;
pub(crate) enum Source { External, Nmi }
impl Cpu {
    pub(crate) fn interrupt(&mut self, _vector: u8, _source: Source, _code: Option<u32>) -> R { Ok(()) }
    pub(crate) fn deliver(&mut self, _exc: Exception) {}
}
