//! Dates as people write them: `2026-01-01`, `2026-01-01T12:30:00`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A moment in UTC, in whole seconds, from 1970 to 2099: what every guest's clock can show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Date(u64);

/// A text that is no date.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DateError {
    /// Not of the form that is understood.
    #[error("`{0}` is not a date: write one such as 2026-01-31 or 2026-01-31T12:30:00 (UTC)")]
    NotADate(String),
    /// A month, day, hour, minute or second that doesn't exist.
    #[error("`{0}` is a date that doesn't exist")]
    NoSuchDay(String),
    /// A year that a guest's clock may not know.
    #[error("`{0}` is not from 1970 to 2099")]
    OutOfRange(String),
}

const SECONDS_OF_DAY: u64 = 86_400;
const DAYS_OF_MONTHS: [u64; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

impl Date {
    /// The beginning of 2026: the date when none is said.
    pub const DEFAULT: Self = Self(1_767_225_600);

    /// Time since 1970-01-01 00:00:00 UTC.
    pub const fn since_1970(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

/// In this range every fourth year is a leap year.
const fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4)
}

fn days_of(year: u64, month: usize) -> Option<u64> {
    let days = *DAYS_OF_MONTHS.get(month.checked_sub(1)?)?;
    Some(if month == 2 && is_leap(year) { 29 } else { days })
}

/// Digits and nothing else, exactly `N` of them.
fn number<const N: usize>(text: &str) -> Option<u64> {
    (text.len() == N && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

/// Three numbers between `separator`s, the first with `N` digits and the others with two.
fn three<const N: usize>(text: &str, separator: char) -> Option<[u64; 3]> {
    let mut parts = text.split(separator);
    let three = [
        number::<N>(parts.next()?)?,
        number::<2>(parts.next()?)?,
        number::<2>(parts.next()?)?,
    ];
    parts.next().is_none().then_some(three)
}

impl FromStr for Date {
    type Err = DateError;

    fn from_str(text: &str) -> Result<Self, DateError> {
        let text = text.trim();
        let not_a_date = || DateError::NotADate(text.to_owned());
        let plain = text.strip_suffix('Z').unwrap_or(text);
        let (date, time) = plain.split_once(['T', ' ']).unwrap_or((plain, "00:00:00"));
        let [year, month, day] = three::<4>(date, '-').ok_or_else(not_a_date)?;
        let [hour, minute, second] = three::<2>(time, ':').ok_or_else(not_a_date)?;
        if !(1970..2100).contains(&year) {
            return Err(DateError::OutOfRange(text.to_owned()));
        }
        let no_such_day = || DateError::NoSuchDay(text.to_owned());
        let month = usize::try_from(month).map_err(|_| no_such_day())?;
        let in_month = days_of(year, month).ok_or_else(no_such_day)?;
        if !(1..=in_month).contains(&day) || hour > 23 || minute > 59 || second > 59 {
            return Err(no_such_day());
        }
        let years: u64 = (1970..year).map(|year| if is_leap(year) { 366 } else { 365 }).sum();
        let months: u64 = (1..month).filter_map(|month| days_of(year, month)).sum();
        let days = years + months + day - 1;
        Ok(Self(days * SECONDS_OF_DAY + hour * 3600 + minute * 60 + second))
    }
}

impl Default for Date {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut days, time) = (self.0 / SECONDS_OF_DAY, self.0 % SECONDS_OF_DAY);
        let mut year = 1970;
        while days >= if is_leap(year) { 366 } else { 365 } {
            days -= if is_leap(year) { 366 } else { 365 };
            year += 1;
        }
        let mut month = 1;
        while let Some(in_month) = days_of(year, month).filter(|in_month| days >= *in_month) {
            days -= in_month;
            month += 1;
        }
        let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
        write!(
            f,
            "{year}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z",
            days + 1
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_and_written_alike() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T23:59:59Z", 951_868_799),
            ("2026-01-01T00:00:00Z", 1_767_225_600),
            ("2099-12-31T23:59:59Z", 4_102_444_799),
        ] {
            let date: Date = text.parse().unwrap();
            assert_eq!(
                (date.since_1970().as_secs(), date.to_string()),
                (seconds, text.to_owned())
            );
        }
        assert_eq!("2026-01-01".parse(), Ok(Date::DEFAULT));
        assert_eq!("2026-01-01 00:00:00".parse(), Ok(Date::DEFAULT));
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for text in [
            "",
            "now",
            "2026",
            "2026-1-1",
            "01-01-2026",
            "2026-01-01T1:00:00",
            "+026-01-01",
            "2026-01-01-01",
        ] {
            assert!(matches!(text.parse::<Date>(), Err(DateError::NotADate(_))), "{text}");
        }
        for text in [
            "2026-13-01",
            "2026-00-01",
            "2026-02-29",
            "2026-04-31",
            "2026-01-01T24:00:00",
            "2026-01-01T00:00:60",
        ] {
            assert!(matches!(text.parse::<Date>(), Err(DateError::NoSuchDay(_))), "{text}");
        }
        for text in ["1969-12-31", "2100-01-01"] {
            assert!(matches!(text.parse::<Date>(), Err(DateError::OutOfRange(_))), "{text}");
        }
    }
}
