//! The architectural state of a vCPU: one plain struct for every engine.

use serde::Deserialize;
use serde::Serialize;
use x86_isa::cr0;
use x86_isa::flags;

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentState {
    /// Visible selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes, granularity applied.
    pub limit: u32,
    /// Attributes in the layout of [`x86_isa::attr`]: bits 7-0 are byte 5 of the descriptor, bits 11-8 are AVL, L, D/B and
    /// G; bit 12 set means unusable (null).
    pub attr: u16,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// x87, MMX, SSE and AVX state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FpuState {
    /// x87 control word.
    pub fcw: u16,
    /// x87 status word, TOP included.
    pub fsw: u16,
    /// x87 tags in the abridged form of FXSAVE: bit set = register R*n* not empty.
    pub ftw: u8,
    /// Last x87 opcode (11 bits).
    pub fop: u16,
    /// Last x87 instruction pointer: offset.
    pub fip: u64,
    /// Last x87 instruction pointer: selector.
    pub fcs: u16,
    /// Last x87 operand pointer: offset.
    pub fdp: u64,
    /// Last x87 operand pointer: selector.
    pub fds: u16,
    /// ST(0) to ST(7), 80 bits each.
    pub st: [[u8; 10]; 8],
    /// MXCSR.
    pub mxcsr: u32,
    /// YMM0 to YMM15, low lane first.
    pub ymm: [[u64; 4]; 16],
}

impl Default for FpuState {
    fn default() -> Self {
        Self {
            fcw: 0x37f,
            fsw: 0,
            ftw: 0,
            fop: 0,
            fip: 0,
            fcs: 0,
            fdp: 0,
            fds: 0,
            st: [[0; 10]; 8],
            mxcsr: 0x1f80,
            ymm: [[0; 4]; 16],
        }
    }
}

/// Model-specific registers that the CPU itself holds. Those of the local APIC belong to its device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msrs {
    /// IA32_EFER.
    pub efer: u64,
    /// IA32_STAR.
    pub star: u64,
    /// IA32_LSTAR.
    pub lstar: u64,
    /// IA32_CSTAR.
    pub cstar: u64,
    /// IA32_FMASK.
    pub fmask: u64,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// IA32_TSC_AUX.
    pub tsc_aux: u64,
    /// TSC minus guest time in ticks.
    pub tsc_offset: u64,
    /// IA32_TSC_ADJUST.
    pub tsc_adjust: u64,
    /// IA32_SYSENTER_CS.
    pub sysenter_cs: u64,
    /// IA32_SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// IA32_SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// IA32_PAT.
    pub pat: u64,
    /// IA32_MISC_ENABLE.
    pub misc_enable: u64,
    /// IA32_SPEC_CTRL.
    pub spec_ctrl: u64,
    /// IA32_MTRR_DEF_TYPE.
    pub mtrr_def_type: u64,
    /// Variable-range MTRRs: base and mask.
    pub mtrr_var: [(u64, u64); 8],
    /// Fixed-range MTRRs in the order of their addresses.
    pub mtrr_fixed: [u64; 11],
    /// IA32_DEBUGCTL.
    pub debugctl: u64,
    /// IA32_MCG_STATUS.
    pub mcg_status: u64,
    /// IA32_PKRS.
    pub pkrs: u64,
    /// MSR_KVM_WALL_CLOCK: where the date of power-on was last asked for.
    pub kvm_wall_clock: u64,
    /// MSR_KVM_SYSTEM_TIME: where the paravirtual clock's page is; bit 0 enables it.
    pub kvm_system_time: u64,
    /// MSR_KVM_STEAL_TIME: where `kvm_steal_time` is; bit 0 enables it.
    pub kvm_steal_time: u64,
    /// Others that are plain storage, by number.
    pub other: Vec<(u32, u64)>,
}

/// What the vCPU does between instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    /// Executes.
    #[default]
    Active,
    /// In HLT.
    Halted,
    /// Waits for a start-up IPI.
    WaitSipi,
    /// After a triple fault.
    Shutdown,
}

/// Events that are pending at the instruction boundary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingEvent {
    /// An NMI has arrived and is not yet delivered.
    pub nmi: bool,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// Maskable interrupts are inhibited for one instruction (STI).
    pub sti_shadow: bool,
    /// Interrupts and debug traps are inhibited for one instruction (MOV SS, POP SS).
    pub mov_ss_shadow: bool,
    /// DR6 bits of a debug trap that has arisen and is not yet delivered.
    pub debug_trap: u64,
    /// Vector of a maskable interrupt that was acknowledged and is not yet delivered. RFLAGS.IF is set then, and nothing
    /// inhibits interrupts.
    pub interrupt: Option<u8>,
    /// Another vCPU has taken this one out of HLT (KVM_HC_KICK_CPU), perhaps before it came there: the next HLT ends at once.
    pub unhalted: bool,
}

/// The architectural state of a vCPU at an instruction boundary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS: the hardware's numbering.
    pub segments: [SegmentState; 6],
    /// LDTR.
    pub ldtr: SegmentState,
    /// TR.
    pub tr: SegmentState,
    /// GDTR.
    pub gdtr: DescriptorTable,
    /// IDTR.
    pub idtr: DescriptorTable,
    /// Control registers.
    pub cr0: u64,
    /// Page-fault address.
    pub cr2: u64,
    /// Page-table root and PCID.
    pub cr3: u64,
    /// Feature enables.
    pub cr4: u64,
    /// Extended control register 0: XSAVE components.
    pub xcr0: u64,
    /// PAE page-directory pointers that were loaded with CR3.
    pub pdptr: [u64; 4],
    /// DR0 to DR3, DR6, DR7.
    pub dr: [u64; 6],
    /// Protection keys for user pages.
    pub pkru: u32,
    /// Floating point and vectors.
    pub fpu: FpuState,
    /// Model-specific registers.
    pub msrs: Msrs,
    /// Running or not.
    pub activity: Activity,
    /// Events between instructions.
    pub pending: PendingEvent,
}

impl CpuState {
    /// The state after power-on (SDM vol. 3 table 9-1), of the boot processor or another, which waits for its SIPI. EDX
    /// holds the processor's signature.
    #[must_use]
    pub fn after_reset(bsp: bool, signature: u32) -> Self {
        let mut state = Self::default();
        state.gpr[2] = u64::from(signature);
        state.rip = 0xfff0;
        state.rflags = flags::FIXED;
        for segment in &mut state.segments {
            *segment = SegmentState {
                selector: 0,
                base: 0,
                limit: 0xffff,
                attr: 0x93,
            };
        }
        state.segments[1] = SegmentState {
            selector: 0xf000,
            base: 0xffff_0000,
            limit: 0xffff,
            attr: 0x9b,
        };
        state.ldtr = SegmentState {
            selector: 0,
            base: 0,
            limit: 0xffff,
            attr: 0x82,
        };
        state.tr = SegmentState {
            selector: 0,
            base: 0,
            limit: 0xffff,
            attr: 0x8b,
        };
        state.gdtr.limit = 0xffff;
        state.idtr.limit = 0xffff;
        state.cr0 = cr0::CD | cr0::NW | cr0::ET;
        state.xcr0 = 1;
        state.dr[4] = 0xffff_0ff0;
        state.dr[5] = 0x400;
        state.fpu.fcw = 0x40;
        state.msrs.pat = 0x0007_0406_0007_0406;
        state.msrs.misc_enable = 1;
        state.activity = if bsp { Activity::Active } else { Activity::WaitSipi };
        state
    }

    /// What differs from `other`, one line per register: `name: ours theirs`.
    #[must_use]
    pub fn diff(&self, other: &Self) -> Vec<String> {
        const GPR: [&str; 16] = [
            "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
            "r15",
        ];
        const SEGMENT: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];
        let mut out = Vec::new();
        let mut number = |name: &str, a: u64, b: u64| {
            if a != b {
                out.push(format!("{name}: {a:#x} {b:#x}"));
            }
        };
        for (i, name) in GPR.iter().enumerate() {
            number(name, self.gpr[i], other.gpr[i]);
        }
        number("rip", self.rip, other.rip);
        number("rflags", self.rflags, other.rflags);
        number("cr0", self.cr0, other.cr0);
        number("cr2", self.cr2, other.cr2);
        number("cr3", self.cr3, other.cr3);
        number("cr4", self.cr4, other.cr4);
        number("xcr0", self.xcr0, other.xcr0);
        number("pkru", self.pkru.into(), other.pkru.into());
        for (i, (a, b)) in self.dr.iter().zip(&other.dr).enumerate() {
            number(["dr0", "dr1", "dr2", "dr3", "dr6", "dr7"][i], *a, *b);
        }
        let mut debug = |name: &str, a: &dyn std::fmt::Debug, b: &dyn std::fmt::Debug, same: bool| {
            if !same {
                out.push(format!("{name}: {a:x?} {b:x?}"));
            }
        };
        for (i, name) in SEGMENT.iter().enumerate() {
            let (a, b) = (&self.segments[i], &other.segments[i]);
            debug(name, a, b, a == b);
        }
        debug("ldtr", &self.ldtr, &other.ldtr, self.ldtr == other.ldtr);
        debug("tr", &self.tr, &other.tr, self.tr == other.tr);
        debug("gdtr", &self.gdtr, &other.gdtr, self.gdtr == other.gdtr);
        debug("idtr", &self.idtr, &other.idtr, self.idtr == other.idtr);
        debug("fpu", &self.fpu, &other.fpu, self.fpu == other.fpu);
        debug("msrs", &self.msrs, &other.msrs, self.msrs == other.msrs);
        debug(
            "activity",
            &self.activity,
            &other.activity,
            self.activity == other.activity,
        );
        debug("pending", &self.pending, &other.pending, self.pending == other.pending);
        out
    }
}
