//! cmos_rtc
