//! Model-specific register numbers (SDM vol. 4, KVM msr.rst).

/// IA32_TIME_STAMP_COUNTER.
pub const TSC: u32 = 0x10;
/// MSR_KVM_WALL_CLOCK.
pub const KVM_WALL_CLOCK_OLD: u32 = 0x11;
/// MSR_KVM_SYSTEM_TIME.
pub const KVM_SYSTEM_TIME_OLD: u32 = 0x12;
/// IA32_PLATFORM_ID.
pub const PLATFORM_ID: u32 = 0x17;
/// IA32_APIC_BASE.
pub const APIC_BASE: u32 = 0x1b;
/// IA32_FEATURE_CONTROL.
pub const FEATURE_CONTROL: u32 = 0x3a;
/// IA32_TSC_ADJUST.
pub const TSC_ADJUST: u32 = 0x3b;
/// IA32_SPEC_CTRL.
pub const SPEC_CTRL: u32 = 0x48;
/// IA32_PRED_CMD.
pub const PRED_CMD: u32 = 0x49;
/// IA32_BIOS_UPDT_TRIG.
pub const BIOS_UPDT_TRIG: u32 = 0x79;
/// IA32_BIOS_SIGN_ID: microcode revision.
pub const BIOS_SIGN_ID: u32 = 0x8b;
/// IA32_MTRRCAP.
pub const MTRRCAP: u32 = 0xfe;
/// IA32_ARCH_CAPABILITIES.
pub const ARCH_CAPABILITIES: u32 = 0x10a;
/// IA32_FLUSH_CMD.
pub const FLUSH_CMD: u32 = 0x10b;
/// IA32_SYSENTER_CS.
pub const SYSENTER_CS: u32 = 0x174;
/// IA32_SYSENTER_ESP.
pub const SYSENTER_ESP: u32 = 0x175;
/// IA32_SYSENTER_EIP.
pub const SYSENTER_EIP: u32 = 0x176;
/// IA32_MCG_CAP.
pub const MCG_CAP: u32 = 0x179;
/// IA32_MCG_STATUS.
pub const MCG_STATUS: u32 = 0x17a;
/// IA32_PERF_STATUS.
pub const PERF_STATUS: u32 = 0x198;
/// IA32_MISC_ENABLE.
pub const MISC_ENABLE: u32 = 0x1a0;
/// IA32_DEBUGCTL.
pub const DEBUGCTL: u32 = 0x1d9;
/// First variable-range MTRR; base and mask alternate.
pub const MTRR_PHYSBASE0: u32 = 0x200;
/// IA32_MTRR_FIX64K_00000.
pub const MTRR_FIX64K: u32 = 0x250;
/// First of two 16K fixed-range MTRRs.
pub const MTRR_FIX16K: u32 = 0x258;
/// First of eight 4K fixed-range MTRRs.
pub const MTRR_FIX4K: u32 = 0x268;
/// IA32_PAT.
pub const PAT: u32 = 0x277;
/// IA32_MTRR_DEF_TYPE.
pub const MTRR_DEF_TYPE: u32 = 0x2ff;
/// First machine-check bank register.
pub const MC0_CTL: u32 = 0x400;
/// IA32_TSC_DEADLINE.
pub const TSC_DEADLINE: u32 = 0x6e0;
/// IA32_PKRS.
pub const PKRS: u32 = 0x6e1;
/// First x2APIC register.
pub const X2APIC_FIRST: u32 = 0x800;
/// Last x2APIC register.
pub const X2APIC_LAST: u32 = 0x8ff;
/// MSR_KVM_WALL_CLOCK_NEW.
pub const KVM_WALL_CLOCK: u32 = 0x4b56_4d00;
/// MSR_KVM_SYSTEM_TIME_NEW.
pub const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;
/// MSR_KVM_STEAL_TIME.
pub const KVM_STEAL_TIME: u32 = 0x4b56_4d03;
/// MSR_KVM_PV_EOI_EN.
pub const KVM_PV_EOI: u32 = 0x4b56_4d04;
/// IA32_EFER.
pub const EFER: u32 = 0xc000_0080;
/// IA32_STAR.
pub const STAR: u32 = 0xc000_0081;
/// IA32_LSTAR.
pub const LSTAR: u32 = 0xc000_0082;
/// IA32_CSTAR.
pub const CSTAR: u32 = 0xc000_0083;
/// IA32_FMASK.
pub const FMASK: u32 = 0xc000_0084;
/// IA32_FS_BASE.
pub const FS_BASE: u32 = 0xc000_0100;
/// IA32_GS_BASE.
pub const GS_BASE: u32 = 0xc000_0101;
/// IA32_KERNEL_GS_BASE.
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// IA32_TSC_AUX.
pub const TSC_AUX: u32 = 0xc000_0103;
