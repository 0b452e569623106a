//! The six arithmetic flags, kept as the last result and the carries that it took, and only computed when read.
//!
//! `res` is the result, sign-extended: ZF is `res == 0`, SF its sign, PF the parity of its low byte. `aux` holds what
//! the result does not tell:
//!
//! ```text
//!  63      62                    15..8                    3        0
//!  CF      CF ^ OF               flips of the PF byte     AF       flip of SF
//! ```
//!
//! The first two are the carries out of the top two bits, so that one shift of the carry vector sets both.

use x86_isa::flags;

use crate::int::Int;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LazyFlags {
    pub(crate) res: u64,
    pub(crate) aux: u64,
}

const TOP: u64 = 3 << 62;

impl LazyFlags {
    #[inline(always)]
    fn set_carries<T: Int>(&mut self, res: T, carries: u64) {
        self.res = res.i64() as u64;
        self.aux = (carries << (64 - T::BITS)) & TOP | carries & 8;
    }

    /// After `res = a + b (+ carry)`.
    #[inline(always)]
    pub(crate) fn add<T: Int>(&mut self, a: T, b: T, res: T) {
        let (x, y, r) = (a.u64(), b.u64(), res.u64());
        self.set_carries(res, x & y | (x | y) & !r);
    }

    /// After `res = a - b (- borrow)`.
    #[inline(always)]
    pub(crate) fn sub<T: Int>(&mut self, a: T, b: T, res: T) {
        let (x, y, r) = (a.u64(), b.u64(), res.u64());
        self.set_carries(res, !x & y | !(x ^ y) & r);
    }

    /// After a logical operation: CF, OF and AF clear.
    #[inline(always)]
    pub(crate) fn logic<T: Int>(&mut self, res: T) {
        self.res = res.i64() as u64;
        self.aux = 0;
    }

    /// ZF, SF, PF of `res`; the given CF and OF; AF clear.
    #[inline(always)]
    pub(crate) fn result_cf_of<T: Int>(&mut self, res: T, cf: bool, of: bool) {
        self.res = res.i64() as u64;
        self.aux = (cf as u64) << 63 | ((cf ^ of) as u64) << 62;
    }

    #[inline(always)]
    pub(crate) fn cf(self) -> bool {
        self.aux >> 63 != 0
    }

    #[inline(always)]
    pub(crate) fn zf(self) -> bool {
        self.res == 0
    }

    #[inline(always)]
    pub(crate) fn sf(self) -> bool {
        (self.res >> 63 ^ self.aux & 1) != 0
    }

    #[inline(always)]
    pub(crate) fn of(self) -> bool {
        (self.aux >> 63 ^ self.aux >> 62 & 1) != 0
    }

    #[inline(always)]
    pub(crate) fn pf(self) -> bool {
        ((self.res ^ self.aux >> 8) as u8).count_ones() & 1 == 0
    }

    #[inline(always)]
    pub(crate) fn af(self) -> bool {
        self.aux & 8 != 0
    }

    /// Changes CF and leaves the others.
    #[inline(always)]
    pub(crate) fn set_cf(&mut self, cf: bool) {
        let of = self.of();
        self.set_cf_of(cf, of);
    }

    /// Changes CF and OF and leaves the others.
    #[inline(always)]
    pub(crate) fn set_cf_of(&mut self, cf: bool, of: bool) {
        self.aux = self.aux & !TOP | (cf as u64) << 63 | ((cf ^ of) as u64) << 62;
    }

    /// Changes ZF and leaves the others.
    pub(crate) fn set_zf(&mut self, zf: bool) {
        let bits = self.bits() & !flags::ZF | if zf { flags::ZF } else { 0 };
        self.set_bits(bits);
    }

    /// The six flags at their places in RFLAGS.
    #[inline]
    pub(crate) fn bits(self) -> u64 {
        let (res, aux) = (self.res, self.aux);
        let (cf, of) = (aux >> 63, (aux >> 63 ^ aux >> 62) & 1);
        // Bit n of the constant is the parity of n.
        let low = res ^ aux >> 8;
        let pf = 0x9669 >> ((low ^ low >> 4) & 15) & 1;
        let zf = u64::from(res == 0);
        let sf = (res >> 63 ^ aux) & 1;
        cf | pf << 2 | (aux & 8) << 1 | zf << 6 | sf << 7 | of << 11
    }

    /// Sets the six flags from their places in RFLAGS.
    #[inline]
    pub(crate) fn set_bits(&mut self, bits: u64) {
        let on = |n: u32| bits >> n & 1;
        // A zero result has PF set and SF clear, a result of one has both clear; the flips make up the rest.
        let (cf, pf, af, zf, sf, of) = (on(0), on(2), on(4), on(6), on(7), on(11));
        self.res = zf ^ 1;
        self.aux = cf << 63 | (cf ^ of) << 62 | (pf ^ zf) << 8 | af << 3 | sf;
    }

    /// Condition `code` of Jcc, SETcc and CMOVcc (the low nibble of the opcode).
    #[inline(always)]
    pub(crate) fn condition(self, code: u8) -> bool {
        let value = match code >> 1 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() || self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => self.zf() || self.sf() != self.of(),
        };
        value != (code & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_bits_then_bits_is_the_same_for_all_combinations() {
        let all = [flags::CF, flags::PF, flags::AF, flags::ZF, flags::SF, flags::OF];
        for combination in 0..64u32 {
            let bits = (0..6).filter(|i| combination >> i & 1 != 0).map(|i| all[i]).sum();
            let mut lazy = LazyFlags::default();
            lazy.set_bits(bits);
            assert_eq!(lazy.bits(), bits);
            lazy.set_cf(true);
            assert_eq!(lazy.bits(), bits | flags::CF);
        }
    }

    #[test]
    fn add_and_sub_of_all_bytes_follow_the_definition() {
        for a in 0..=255u8 {
            for b in 0..=255u8 {
                let mut lazy = LazyFlags::default();
                let sum = a.wrapping_add(b);
                lazy.add(a, b, sum);
                assert_eq!(lazy.cf(), a.checked_add(b).is_none());
                assert_eq!(lazy.of(), (a as i8).checked_add(b as i8).is_none());
                assert_eq!(lazy.af(), (a & 15) + (b & 15) > 15);
                assert_eq!((lazy.zf(), lazy.sf()), (sum == 0, sum > 127));
                let difference = a.wrapping_sub(b);
                lazy.sub(a, b, difference);
                assert_eq!(lazy.cf(), a < b);
                assert_eq!(lazy.of(), (a as i8).checked_sub(b as i8).is_none());
                assert_eq!(lazy.af(), a & 15 < b & 15);
                assert_eq!(lazy.pf(), difference.count_ones() % 2 == 0);
            }
        }
    }
}
