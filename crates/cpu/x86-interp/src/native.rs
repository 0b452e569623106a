//! stub
use cpu_model::EngineError;
pub(crate) struct Native;
impl Native { pub(crate) fn new() -> Result<Self, EngineError> { Ok(Self) } }
pub(crate) fn init() -> Result<(), EngineError> { Ok(()) }
impl crate::cpu::Cpu { pub(crate) fn sync_x87(&mut self) {} }
