//! Lengths of time as people write them: `2s`, `500ms`, `1.5m`.

use std::str::FromStr;
use std::time::Duration;

/// A length of time, written with a unit: `ms`, `s` or `m`. A number without a unit is refused, because people expect
/// different ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delay(Duration);

/// A text that is no length of time.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DelayError {
    /// No number in front, or a unit that isn't known.
    #[error("`{0}` is not a time: write a number and a unit, such as 2s, 500ms or 1.5m")]
    NotATime(String),
    /// A number with no unit behind it.
    #[error("`{0}` has no unit: did you mean {0}s?")]
    NoUnit(String),
    /// Longer than a day.
    #[error("`{0}` is more than a day")]
    TooLong(String),
}

impl Delay {
    /// The time.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for Delay {
    type Err = DelayError;

    fn from_str(text: &str) -> Result<Self, DelayError> {
        const DAY: f64 = 86_400.0;
        let text = text.trim();
        let digits = text
            .bytes()
            .take_while(|byte| byte.is_ascii_digit() || *byte == b'.')
            .count();
        let (number, unit) = text.split_at(digits);
        let not_a_time = || DelayError::NotATime(text.to_owned());
        let number: f64 = number.parse().map_err(|_| not_a_time())?;
        let seconds = match unit {
            "ms" => number / 1000.0,
            "s" => number,
            "m" | "min" => number * 60.0,
            "" => return Err(DelayError::NoUnit(text.to_owned())),
            _ => return Err(not_a_time()),
        };
        if seconds > DAY {
            return Err(DelayError::TooLong(text.to_owned()));
        }
        Duration::try_from_secs_f64(seconds).map(Self).map_err(|_| not_a_time())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_with_units_are_read() {
        for (text, milliseconds) in [
            ("2s", 2000),
            ("500ms", 500),
            ("1.5m", 90_000),
            ("0s", 0),
            ("24.0s", 24_000),
        ] {
            assert_eq!(text.parse::<Delay>().unwrap().get().as_millis(), milliseconds, "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused_with_a_hint() {
        assert_eq!(
            "2".parse::<Delay>().unwrap_err().to_string(),
            "`2` has no unit: did you mean 2s?"
        );
        assert!(matches!("2 days".parse::<Delay>(), Err(DelayError::NotATime(_))));
        assert!(matches!("1.2.3s".parse::<Delay>(), Err(DelayError::NotATime(_))));
        assert!(matches!("".parse::<Delay>(), Err(DelayError::NotATime(_))));
        assert!(matches!("-1s".parse::<Delay>(), Err(DelayError::NotATime(_))));
        assert!(matches!("99999999m".parse::<Delay>(), Err(DelayError::TooLong(_))));
    }
}
