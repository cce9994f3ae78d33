//! How the benchmarks' names are to be read: which part is the horizontal axis, which names the implementation.

use crate::collect::Measurement;
use std::collections::BTreeMap;

/// One family of benchmarks, told by the first part of its name.
pub struct Suite {
    /// First part of the names, and the name of the page's section.
    pub name: &'static str,
    /// Position of the number on the horizontal axis within the name.
    pub axis: usize,
    /// What the horizontal axis counts.
    pub axis_label: &'static str,
    /// Our implementation's series.
    pub ours: &'static str,
    /// The series that the ratio is taken against.
    pub baseline: &'static str,
    /// Header of the ratio column.
    pub ratio_label: &'static str,
}

/// Everything that `docs/benchmarks.md` shows.
pub const SUITES: &[Suite] = &[
    Suite {
        name: "bus",
        axis: 1,
        axis_label: "devices",
        ours: "umbra",
        baseline: "flat_table",
        ratio_label: "umbra / flat table",
    },
    Suite {
        name: "slot_lookup",
        axis: 2,
        axis_label: "slots",
        ours: "umbra",
        baseline: "flat_table",
        ratio_label: "umbra / flat table",
    },
    Suite {
        name: "mmio_path",
        axis: 1,
        axis_label: "slots",
        ours: "cache_hit",
        baseline: "caching_off",
        ratio_label: "cache hit / caching off",
    },
];

/// One table and one plot: a set of series over the axis.
pub struct Panel {
    /// The parts of the name that are neither axis nor series.
    pub title: Vec<String>,
    /// Series to (axis value to nanoseconds).
    pub series: BTreeMap<String, BTreeMap<u64, f64>>,
}

impl Panel {
    /// The title as a part of a file name.
    pub fn slug(&self) -> String {
        if self.title.is_empty() {
            "all".to_owned()
        } else {
            self.title.join("-")
        }
    }

    /// Every axis value that occurs, ascending.
    pub fn axis(&self) -> Vec<u64> {
        let mut all: Vec<u64> = self.series.values().flat_map(|points| points.keys().copied()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

impl Suite {
    /// Sorts this suite's measurements into panels.
    pub fn panels(&self, measurements: &[Measurement]) -> Vec<Panel> {
        let mut panels: BTreeMap<Vec<String>, Panel> = BTreeMap::new();
        for measurement in measurements {
            let path = &measurement.path;
            let last = path.len().saturating_sub(1);
            if path.first().is_none_or(|name| name != self.name) || last <= self.axis {
                continue;
            }
            let Ok(x) = path[self.axis].parse() else { continue };
            let title: Vec<String> = (1..last)
                .filter(|&part| part != self.axis)
                .map(|part| path[part].clone())
                .collect();
            panels
                .entry(title.clone())
                .or_insert_with(|| Panel {
                    title,
                    series: BTreeMap::new(),
                })
                .series
                .entry(path[last].clone())
                .or_default()
                .insert(x, measurement.median_ns);
        }
        panels.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(path: &str, median_ns: f64) -> Measurement {
        Measurement {
            path: path.split('/').map(str::to_owned).collect(),
            median_ns,
        }
    }

    #[test]
    fn panels_group_by_everything_but_axis_and_series() {
        let all = [
            measured("bus/4/random/independent/1t/umbra", 2.0),
            measured("bus/32/random/independent/1t/umbra", 3.0),
            measured("bus/4/random/independent/1t/flat_table", 1.0),
            measured("bus/4/repeated/independent/1t/umbra", 1.5),
            measured("slot_lookup/random/8/umbra", 9.0),
        ];
        let panels = SUITES[0].panels(&all);
        assert_eq!(panels.len(), 2);
        assert_eq!(panels[0].slug(), "random-independent-1t");
        assert_eq!(panels[0].axis(), [4, 32]);
        assert_eq!(panels[0].series["flat_table"][&4], 1.0);
    }
}
