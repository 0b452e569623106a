//! The MC146818's calendar: time registers in BCD or binary, 12 or 24 hours, to seconds since 1970 and back.
//!
//! The Gregorian calendar is kept for all years; the chip's own leap rule (every fourth year) agrees until 2099.
//!
//! Spec: Motorola MC146818A (1984), "Time, calendar and alarm locations", table 3.

use super::spec;
use super::spec::RegB;

const DAY: i64 = 86_400;
const PM: u8 = 0x80;

/// The eight time registers as the guest reads and writes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct TimeRegisters {
    pub(super) seconds: u8,
    pub(super) minutes: u8,
    pub(super) hours: u8,
    pub(super) day_of_week: u8,
    pub(super) day_of_month: u8,
    pub(super) month: u8,
    pub(super) year: u8,
    pub(super) century: u8,
}

impl TimeRegisters {
    /// The registers at `time` seconds since 1970, with the weekday ahead of the calendar's by `weekday_shift`.
    pub(super) fn encode(time: i64, weekday_shift: u8, format: RegB) -> Self {
        let days = time.div_euclid(DAY);
        let second = time.rem_euclid(DAY);
        let (year, month, day) = civil_from_days(days);
        // 1 January 1970 was a Thursday, the fifth day of a week that starts on Sunday.
        let weekday = (days + 4 + i64::from(weekday_shift)).rem_euclid(7) + 1;
        Self {
            seconds: number(second % 60, format),
            minutes: number(second / 60 % 60, format),
            hours: hours(second / 3600, format),
            day_of_week: number(weekday, format),
            day_of_month: number(day, format),
            month: number(month, format),
            year: number(year.rem_euclid(100), format),
            century: number(year.div_euclid(100).rem_euclid(100), format),
        }
    }

    /// Seconds since 1970. Values that are no time are taken to the nearest that are.
    pub(super) fn decode(self, format: RegB) -> i64 {
        let value = |raw| i64::from(from_number(raw, format));
        let year = value(self.century) * 100 + value(self.year);
        let days = days_from_civil(
            year,
            value(self.month).clamp(1, 12),
            value(self.day_of_month).clamp(1, 31),
        );
        let hour = i64::from(from_hours(self.hours, format)).min(23);
        days * DAY + hour * 3600 + value(self.minutes).min(59) * 60 + value(self.seconds).min(59)
    }

    /// How far the weekday is ahead of the calendar's.
    pub(super) fn weekday_shift(self, format: RegB) -> u8 {
        let calendar = Self::encode(self.decode(format), 0, format).day_of_week;
        let [is, should] = [self.day_of_week, calendar].map(|raw| i64::from(from_number(raw, format)));
        u8::try_from((is - should).rem_euclid(7)).unwrap_or(0)
    }

    /// The register at CMOS address `index`, where it is one of these.
    pub(super) fn register(&mut self, index: u8) -> Option<&mut u8> {
        Some(match index {
            spec::SECONDS => &mut self.seconds,
            spec::MINUTES => &mut self.minutes,
            spec::HOURS => &mut self.hours,
            spec::DAY_OF_WEEK => &mut self.day_of_week,
            spec::DAY_OF_MONTH => &mut self.day_of_month,
            spec::MONTH => &mut self.month,
            spec::YEAR => &mut self.year,
            spec::CENTURY => &mut self.century,
            _ => return None,
        })
    }
}

/// When the alarm goes off: each part fixed, or any.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alarm {
    seconds: Option<i64>,
    minutes: Option<i64>,
    hours: Option<i64>,
}

impl Alarm {
    /// The alarm of the three alarm registers.
    pub(super) fn new(seconds: u8, minutes: u8, hours: u8, format: RegB) -> Self {
        // MC146818A "Time, calendar and alarm locations": the two top bits set mean any.
        let part = |raw: u8, value: u8| (raw & 0xC0 != 0xC0).then_some(i64::from(value));
        Self {
            seconds: part(seconds, from_number(seconds, format)),
            minutes: part(minutes, from_number(minutes, format)),
            hours: part(hours, from_hours(hours, format)),
        }
    }

    /// The first time after `time` at which it goes off; none where its registers hold no time of day.
    pub(super) fn next_after(self, time: i64) -> Option<i64> {
        let from = time.checked_add(1)?;
        let day = from.div_euclid(DAY);
        if let Some(second) = self.next_of_day(from.rem_euclid(DAY)) {
            return Some(day * DAY + second);
        }
        Some((day + 1) * DAY + self.next_of_day(0)?)
    }

    /// The first second of a day from `from` on.
    fn next_of_day(self, from: i64) -> Option<i64> {
        let (hour, minute, second) = (from / 3600, from / 60 % 60, from % 60);
        if first(self.hours, hour, 24) == Some(hour) {
            if first(self.minutes, minute, 60) == Some(minute)
                && let Some(second) = first(self.seconds, second, 60)
            {
                return Some(hour * 3600 + minute * 60 + second);
            }
            if let Some(minute) = first(self.minutes, minute + 1, 60) {
                return Some(hour * 3600 + minute * 60 + first(self.seconds, 0, 60)?);
            }
        }
        let hour = first(self.hours, hour + 1, 24)?;
        Some(hour * 3600 + first(self.minutes, 0, 60)? * 60 + first(self.seconds, 0, 60)?)
    }
}

/// The first value from `from` on, below `limit`, that `part` allows.
fn first(part: Option<i64>, from: i64, limit: i64) -> Option<i64> {
    let value = part.unwrap_or(from);
    (value >= from && value < limit).then_some(value)
}

/// A number below 100 as a register.
fn number(value: i64, format: RegB) -> u8 {
    let value = u8::try_from(value.clamp(0, 99)).unwrap_or(0);
    if format.dm() {
        value
    } else {
        ((value / 10) << 4) | (value % 10)
    }
}

fn from_number(raw: u8, format: RegB) -> u8 {
    if format.dm() {
        raw
    } else {
        (raw >> 4) * 10 + (raw & 0x0F)
    }
}

fn hours(hour: i64, format: RegB) -> u8 {
    if format.h24() {
        return number(hour, format);
    }
    let of_twelve = match hour % 12 {
        0 => 12,
        hour => hour,
    };
    number(of_twelve, format) | if hour >= 12 { PM } else { 0 }
}

fn from_hours(raw: u8, format: RegB) -> u8 {
    if format.h24() {
        return from_number(raw, format);
    }
    let hour = from_number(raw & !PM, format) % 12;
    hour + if raw & PM != 0 { 12 } else { 0 }
}

/// Days since 1970 of a date, by years that start in March.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Year, month and day of days since 1970.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BINARY_24: u8 = 0x06;

    #[test]
    fn known_dates_encode() {
        // 29 February 2024, a Thursday, 23:59:58.
        let t = TimeRegisters::encode(1_709_251_198, 0, RegB::from_bits(0x02));
        let TimeRegisters {
            seconds,
            minutes,
            hours,
            day_of_week,
            day_of_month,
            month,
            year,
            century,
        } = t;
        assert_eq!((century, year, month, day_of_month), (0x20, 0x24, 0x02, 0x29));
        assert_eq!((day_of_week, hours, minutes, seconds), (5, 0x23, 0x59, 0x58));
    }

    #[test]
    fn twelve_hour_clock_has_no_hour_zero() {
        let hour = |h: i64, bits| TimeRegisters::encode(h * 3600, 0, RegB::from_bits(bits)).hours;
        assert_eq!(
            [0, 1, 11, 12, 13, 23].map(|h| hour(h, 0x00)),
            [0x12, 0x01, 0x11, 0x92, 0x81, 0x91]
        );
        assert_eq!([0, 12, 22].map(|h| hour(h, 0x04)), [12, 0x8C, 0x8A]);
    }

    #[test]
    fn alarm_finds_the_next_match() {
        let format = RegB::from_bits(BINARY_24);
        let every_minute = Alarm::new(30, 0xFF, 0xC0, format);
        assert_eq!(every_minute.next_after(29), Some(30));
        assert_eq!(every_minute.next_after(30), Some(90));
        assert_eq!(every_minute.next_after(86_399), Some(86_430));
        let daily = Alarm::new(0, 30, 6, format);
        assert_eq!(daily.next_after(23_400), Some(86_400 + 23_400));
        assert_eq!(daily.next_after(-1), Some(23_400));
        let hourly_any_second = Alarm::new(0xFF, 5, 0xFF, format);
        assert_eq!(hourly_any_second.next_after(359), Some(3900));
        assert_eq!(Alarm::new(60, 0xFF, 0xFF, format).next_after(0), None);
    }

    proptest! {
        #[test]
        fn decode_undoes_encode(time in -62_135_596_800i64..253_402_300_800, bits in 0u8..8, shift in 0u8..7) {
            let format = RegB::from_bits(bits & 0x06);
            let registers = TimeRegisters::encode(time, shift, format);
            prop_assert_eq!(registers.decode(format), time);
            prop_assert_eq!(registers.weekday_shift(format), shift);
        }

        #[test]
        fn alarm_agrees_with_search(raw in any::<[u8; 3]>(), start in 0i64..200_000) {
            let format = RegB::from_bits(BINARY_24);
            let [s, m, h] = raw.map(|b| if b < 128 { b % 64 } else { 0xFF });
            let alarm = Alarm::new(s, m, h, format);
            let matches = |t: &i64| {
                let is = |raw: u8, now: i64| raw == 0xFF || i64::from(raw) == now;
                is(s, t % 60) && is(m, t / 60 % 60) && is(h, t / 3600 % 24)
            };
            prop_assert_eq!(alarm.next_after(start), (start + 1..=start + 86_400).find(matches));
        }
    }
}
