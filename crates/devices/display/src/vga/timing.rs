//! When the beam is where: dot clock and CRT controller counts as guest time.
//!
//! Spec: IBM Personal System/2 Hardware Interface Technical Reference (1990), "Video Subsystem", "CRT Controller".

use device_model::VmTime;

use super::regs::Regs;

/// 640 by 480 dots at 60 Hz: total, shown and retrace counts.
const USUAL: Timing = Timing {
    line_ns: 31_778,
    shown_ns: 25_422,
    lines: 525,
    shown: 480,
    retrace: 490,
    retrace_lines: 2,
};

/// Frames below and above which counts make no picture; no monitor would follow.
const FRAME_NS: std::ops::RangeInclusive<u64> = 4_000_000..=100_000_000;

/// A frame's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timing {
    line_ns: u64,
    shown_ns: u64,
    lines: u64,
    shown: u64,
    retrace: u64,
    retrace_lines: u64,
}

impl Timing {
    /// The timing that the registers ask for, or a usual one where they ask for the impossible.
    pub(crate) fn of(regs: &Regs) -> Self {
        let clocking = regs.clocking();
        let hz: u64 = match regs.misc().clock() {
            1 => 28_322_000,
            _ => 25_175_000,
        };
        let dots = if clocking.eight_dots() { 8 } else { 9 } << u32::from(clocking.half_dot_clock());
        let ns = |chars: u64| chars * dots * 1_000_000_000 / hz;
        let lines = u64::from(regs.vertical_total()) << u32::from(regs.crtc_mode().half_vertical());
        let shown = u64::from(regs.display_end()) << u32::from(regs.crtc_mode().half_vertical());
        let retrace = u64::from(regs.retrace_start()) << u32::from(regs.crtc_mode().half_vertical());
        let end = u64::from(regs.crtc[0x11] & 0x0F);
        let timing = Self {
            line_ns: ns(u64::from(regs.crtc[0]) + 5),
            shown_ns: ns(regs.columns().into()),
            lines,
            shown,
            retrace,
            // The retrace ends when the low four bits of the line count are those of CR11.
            retrace_lines: match end.wrapping_sub(retrace) & 0x0F {
                0 => 16,
                lines => lines,
            },
        };
        let sound = FRAME_NS.contains(&timing.frame_ns())
            && timing.shown_ns < timing.line_ns
            && timing.shown <= timing.retrace
            && timing.retrace < timing.lines;
        if sound { timing } else { USUAL }
    }

    /// Nanoseconds of a frame; never zero.
    pub(crate) fn frame_ns(&self) -> u64 {
        self.line_ns * self.lines
    }

    /// Frames begun before `now`.
    pub(crate) fn frame(&self, now: VmTime) -> u64 {
        now.as_ns() / self.frame_ns()
    }

    /// Vertical retraces begun before `now`.
    pub(crate) fn retraces(&self, now: VmTime) -> u64 {
        let start = self.retrace * self.line_ns;
        (now.as_ns() + self.frame_ns() - start) / self.frame_ns()
    }

    /// Whether the beam is on its way back up.
    pub(crate) fn in_vertical_retrace(&self, now: VmTime) -> bool {
        let line = now.as_ns() % self.frame_ns() / self.line_ns;
        (self.retrace..self.retrace + self.retrace_lines).contains(&line)
    }

    /// Whether the beam shows nothing, in either direction.
    pub(crate) fn is_blank(&self, now: VmTime) -> bool {
        let inside = now.as_ns() % self.frame_ns();
        inside / self.line_ns >= self.shown || inside % self.line_ns >= self.shown_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_text_mode_has_seventy_frames_a_second() {
        let mut regs = Regs::new();
        regs.set_misc(0x67);
        for (at, value) in [
            (0, 0x5F),
            (1, 0x4F),
            (6, 0xBF),
            (7, 0x1F),
            (0x10, 0x9C),
            (0x11, 0x8E),
            (0x12, 0x8F),
        ] {
            regs.crtc[at] = value;
        }
        let timing = Timing::of(&regs);
        assert_ne!(timing, USUAL);
        let hz = 1e9 / timing.frame_ns() as f64;
        assert!((70.0..70.2).contains(&hz), "{hz}");
        assert_eq!(
            (timing.lines, timing.shown, timing.retrace, timing.retrace_lines),
            (449, 400, 412, 2)
        );
    }

    #[test]
    fn no_registers_make_no_division_by_zero() {
        let timing = Timing::of(&Regs::new());
        assert_eq!(timing, USUAL);
        assert!(timing.frame(VmTime::from_ns(1_000_000_000)) >= 59);
    }

    #[test]
    fn retrace_comes_once_a_frame() {
        let timing = USUAL;
        let start = VmTime::from_ns(timing.retrace * timing.line_ns);
        assert!(timing.in_vertical_retrace(start) && timing.is_blank(start));
        assert!(!timing.in_vertical_retrace(VmTime::ZERO) && !timing.is_blank(VmTime::ZERO));
        assert_eq!((timing.retraces(VmTime::ZERO), timing.retraces(start)), (0, 1));
        assert_eq!(timing.retraces(start + timing.frame_ns()), 2);
    }
}
