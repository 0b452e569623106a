//! xsave
use crate::decode::Dec;
use crate::decode::Select;
use crate::insn::DInsn;

pub(crate) fn select(_x: &Dec<'_>, _d: &mut DInsn) -> Select {
    None
}
