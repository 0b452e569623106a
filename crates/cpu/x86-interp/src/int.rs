//! The four operand sizes of the integer instructions.

/// An operand size. Values travel as themselves; registers are slots of eight bytes.
pub(crate) trait Int: Copy + Eq + std::fmt::Debug + 'static {
    const BITS: u32;
    const BYTES: u64;
    const SIGN: u64;
    fn from_u64(value: u64) -> Self;
    fn u64(self) -> u64;
    /// Sign-extended.
    fn i64(self) -> i64;
    /// Reads a register at byte `offset` of the register file.
    ///
    /// # Safety
    /// `at` must be valid for `Self`.
    unsafe fn load(at: *const u8) -> Self;
    /// Writes a register: 32-bit results clear the upper half, narrower ones leave the rest alone.
    ///
    /// # Safety
    /// `at` must be valid for eight bytes (one or two for the narrow sizes).
    unsafe fn store_reg(at: *mut u8, value: Self);
    /// Reads guest memory.
    ///
    /// # Safety
    /// `at` must be valid for `Self`, aligned or not.
    unsafe fn load_mem(at: *const u8) -> Self;
    /// Writes guest memory.
    ///
    /// # Safety
    /// `at` must be valid for `Self`, aligned or not.
    unsafe fn store_mem(at: *mut u8, value: Self);
    /// Atomic compare and exchange in guest memory; true when `at` held `old`.
    ///
    /// # Safety
    /// `at` must be valid for `Self`, aligned or not.
    unsafe fn cas(at: *mut u8, old: Self, new: Self) -> bool;
}

/// Guest memory at any alignment.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Unaligned<T>(T);

macro_rules! int {
    ($t:ty, $signed:ty, $slot:ty, $asm:literal, $acc:tt, $class:ident) => {
        impl Int for $t {
            const BITS: u32 = <$t>::BITS;
            const BYTES: u64 = (<$t>::BITS / 8) as u64;
            const SIGN: u64 = 1 << (<$t>::BITS - 1);
            #[inline(always)]
            fn from_u64(value: u64) -> Self {
                value as $t
            }
            #[inline(always)]
            fn u64(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn i64(self) -> i64 {
                self as $signed as i64
            }
            #[inline(always)]
            unsafe fn load(at: *const u8) -> Self {
                // SAFETY: the caller vouches for `at`.
                unsafe { at.cast::<$t>().read_unaligned() }
            }
            #[inline(always)]
            unsafe fn store_reg(at: *mut u8, value: Self) {
                // SAFETY: the caller vouches for `at`.
                unsafe { at.cast::<$slot>().write_unaligned(value as $slot) }
            }
            #[inline(always)]
            unsafe fn load_mem(at: *const u8) -> Self {
                // SAFETY: the caller vouches for `at`; the packed type asks for no alignment, and volatile keeps the
                // access single, so that other vCPUs see whole values as on hardware.
                unsafe { at.cast::<Unaligned<$t>>().read_volatile().0 }
            }
            #[inline(always)]
            unsafe fn store_mem(at: *mut u8, value: Self) {
                // SAFETY: as for `load_mem`.
                unsafe { at.cast::<Unaligned<$t>>().write_volatile(Unaligned(value)) }
            }
            #[inline(always)]
            #[cfg(not(miri))]
            unsafe fn cas(at: *mut u8, old: Self, new: Self) -> bool {
                let ok: u8;
                // SAFETY: the caller vouches for `at`; the locked instruction takes any alignment, which Rust's atomics
                // do not.
                unsafe {
                    std::arch::asm!(
                        $asm,
                        "sete {ok}",
                        at = in(reg) at,
                        new = in($class) new,
                        ok = out(reg_byte) ok,
                        inout($acc) old => _,
                        options(nostack),
                    );
                }
                ok != 0
            }
            #[cfg(miri)]
            unsafe fn cas(at: *mut u8, old: Self, new: Self) -> bool {
                // SAFETY: one thread under Miri.
                unsafe {
                    let same = Self::load_mem(at) == old;
                    if same {
                        Self::store_mem(at, new);
                    }
                    same
                }
            }
        }
    };
}

int!(u8, i8, u8, "lock cmpxchg byte ptr [{at}], {new}", "al", reg_byte);
int!(u16, i16, u16, "lock cmpxchg word ptr [{at}], {new:x}", "ax", reg);
int!(u32, i32, u64, "lock cmpxchg dword ptr [{at}], {new:e}", "eax", reg);
int!(u64, i64, u64, "lock cmpxchg qword ptr [{at}], {new:r}", "rax", reg);
