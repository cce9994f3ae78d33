//! The middle of several measurements, and how far they lie apart.

use std::time::Duration;

/// Several times of the same.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Times {
    /// The middle one in seconds, or between the middle two.
    pub median: f64,
    /// The shortest.
    pub least: f64,
    /// The longest.
    pub most: f64,
}

impl Times {
    /// `None` if there are none.
    pub fn of(times: &[Duration]) -> Option<Self> {
        let mut seconds: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
        seconds.sort_by(f64::total_cmp);
        let (least, most) = (*seconds.first()?, *seconds.last()?);
        let (low, high) = (seconds.get((seconds.len() - 1) / 2)?, seconds.get(seconds.len() / 2)?);
        Some(Self {
            median: f64::midpoint(*low, *high),
            least,
            most,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_even_and_no_times() {
        let of = |seconds: &[u64]| {
            let times: Vec<Duration> = seconds.iter().map(|seconds| Duration::from_secs(*seconds)).collect();
            Times::of(&times)
        };
        let times = |median, least, most| Some(Times { median, least, most });
        assert_eq!(of(&[5, 1, 2]), times(2.0, 1.0, 5.0));
        assert_eq!(of(&[4, 1, 2, 9]), times(3.0, 1.0, 9.0));
        assert_eq!(of(&[]), None);
    }
}
