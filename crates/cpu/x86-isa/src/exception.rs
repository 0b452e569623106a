//! Exceptions (SDM vol. 3 §6.3).

/// Exception vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Vector {
    /// #DE divide error.
    De = 0,
    /// #DB debug.
    Db = 1,
    /// Non-maskable interrupt.
    Nmi = 2,
    /// #BP breakpoint.
    Bp = 3,
    /// #OF overflow.
    Of = 4,
    /// #BR bound range exceeded.
    Br = 5,
    /// #UD invalid opcode.
    Ud = 6,
    /// #NM device not available.
    Nm = 7,
    /// #DF double fault.
    Df = 8,
    /// #TS invalid TSS.
    Ts = 10,
    /// #NP segment not present.
    Np = 11,
    /// #SS stack fault.
    Ss = 12,
    /// #GP general protection.
    Gp = 13,
    /// #PF page fault.
    Pf = 14,
    /// #MF x87 floating-point error.
    Mf = 16,
    /// #AC alignment check.
    Ac = 17,
    /// #MC machine check.
    Mc = 18,
    /// #XM SIMD floating-point error.
    Xm = 19,
}

impl Vector {
    /// Whether delivery pushes an error code in protected mode.
    #[must_use]
    pub const fn has_error_code(self) -> bool {
        matches!(
            self,
            Self::Df | Self::Ts | Self::Np | Self::Ss | Self::Gp | Self::Pf | Self::Ac
        )
    }

    /// The usual short name, such as `#GP`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::De => "#DE",
            Self::Db => "#DB",
            Self::Nmi => "NMI",
            Self::Bp => "#BP",
            Self::Of => "#OF",
            Self::Br => "#BR",
            Self::Ud => "#UD",
            Self::Nm => "#NM",
            Self::Df => "#DF",
            Self::Ts => "#TS",
            Self::Np => "#NP",
            Self::Ss => "#SS",
            Self::Gp => "#GP",
            Self::Pf => "#PF",
            Self::Mf => "#MF",
            Self::Ac => "#AC",
            Self::Mc => "#MC",
            Self::Xm => "#XM",
        }
    }
}

/// An exception about to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Which.
    pub vector: Vector,
    /// Error code, for those that have one.
    pub code: u32,
    /// #PF: the faulting linear address. #DB: the bits to set in DR6.
    pub info: u64,
}

impl Exception {
    /// An exception without an error code.
    #[must_use]
    pub const fn new(vector: Vector) -> Self {
        Self {
            vector,
            code: 0,
            info: 0,
        }
    }

    /// An exception with an error code.
    #[must_use]
    pub const fn with_code(vector: Vector, code: u32) -> Self {
        Self { vector, code, info: 0 }
    }

    /// #GP(0).
    #[must_use]
    pub const fn gp0() -> Self {
        Self::new(Vector::Gp)
    }

    /// #PF with its address.
    #[must_use]
    pub const fn page_fault(address: u64, code: u32) -> Self {
        Self {
            vector: Vector::Pf,
            code,
            info: address,
        }
    }
}
