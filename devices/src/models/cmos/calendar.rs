//! The proleptic Gregorian calendar: days since 1970 to year, month, day and back.

/// A date and time of day, UTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct DateTime {
    pub(super) year: i64,
    /// 1 to 12.
    pub(super) month: u8,
    /// 1 to 31.
    pub(super) day: u8,
    /// 0 to 23.
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
}

const DAY_SECONDS: i64 = 86_400;
/// Days in 400 years: 97 of them are leap years.
const DAYS_400_YEARS: i64 = 400 * 365 + 97;
/// Days from 0000-03-01 to 1970-01-01.
const MARCH_0000_TO_1970: i64 = 719_468;

impl DateTime {
    /// From seconds since 1970.
    pub(super) fn from_unix(seconds: i64) -> Self {
        let (days, time) = (seconds.div_euclid(DAY_SECONDS), seconds.rem_euclid(DAY_SECONDS));
        // Years are counted from March here, so that the leap day is the last of its year.
        let since = days + MARCH_0000_TO_1970;
        let (era, day_of_era) = (since.div_euclid(DAYS_400_YEARS), since.rem_euclid(DAYS_400_YEARS));
        let leap_days = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / (DAYS_400_YEARS - 1);
        let year_of_era = (day_of_era - leap_days) / 365;
        let day_of_year = day_of_era - (year_of_era * 365 + year_of_era / 4 - year_of_era / 100);
        // Five months, from March or August on, always have 153 days.
        let march_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 {
            march_month + 3
        } else {
            march_month - 9
        };
        let year = era * 400 + year_of_era + i64::from(month <= 2);
        Self {
            year,
            month: small(month),
            day: small(day),
            hour: small(time / 3600),
            minute: small(time / 60 % 60),
            second: small(time % 60),
        }
    }

    /// Seconds since 1970. Fields beyond their range count on: the 32nd of January is the 1st of February. That makes
    /// whatever a guest writes some time or other.
    pub(super) fn to_unix(self) -> i64 {
        let months = i64::from(self.month) - 1;
        let (year, month) = (self.year + months.div_euclid(12), months.rem_euclid(12) + 1);
        let (march_year, march_month) = if month <= 2 {
            (year - 1, month + 9)
        } else {
            (year, month - 3)
        };
        let (era, year_of_era) = (march_year.div_euclid(400), march_year.rem_euclid(400));
        let day_of_year = (153 * march_month + 2) / 5 + i64::from(self.day) - 1;
        let days = era * DAYS_400_YEARS + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        (days - MARCH_0000_TO_1970) * DAY_SECONDS
            + i64::from(self.hour) * 3600
            + i64::from(self.minute) * 60
            + i64::from(self.second)
    }

    /// Day of the week, 1 is Sunday.
    pub(super) fn weekday(self) -> u8 {
        // 1970-01-01 was a Thursday.
        small((self.to_unix().div_euclid(DAY_SECONDS) + 4).rem_euclid(7) + 1)
    }
}

/// A field that is small by construction.
fn small(value: i64) -> u8 {
    u8::try_from(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_dates_convert_both_ways() {
        for (seconds, year, month, day, weekday) in [
            (0, 1970, 1, 1, 5),
            (951_782_400, 2000, 2, 29, 3),
            (951_868_800, 2000, 3, 1, 4),
            (4_107_542_400, 2100, 3, 1, 2),
            (1_700_000_000, 2023, 11, 14, 3),
            (-1, 1969, 12, 31, 4),
        ] {
            let date = DateTime::from_unix(seconds);
            assert_eq!(
                (date.year, date.month, date.day, date.weekday()),
                (year, month, day, weekday),
                "{seconds}"
            );
            assert_eq!(date.to_unix(), seconds);
        }
    }

    proptest! {
        #[test]
        fn conversion_round_trips(seconds in -100_000_000_000i64..1_000_000_000_000) {
            let date = DateTime::from_unix(seconds);
            prop_assert_eq!(date.to_unix(), seconds);
            prop_assert!((1..=12).contains(&date.month) && (1..=31).contains(&date.day) && date.hour < 24);
            let next = DateTime::from_unix(seconds + DAY_SECONDS);
            prop_assert!(next.day == date.day + 1 || next.day == 1);
        }
    }
}
