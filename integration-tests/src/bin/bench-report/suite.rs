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
    /// Position of the implementation (or variant) within the name.
    pub series: usize,
    /// Our implementation's series.
    pub ours: &'static str,
    /// The series that the ratio is taken against; empty if there is none.
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
        series: 5,
        ours: "umbra",
        baseline: "flat_table",
        ratio_label: "umbra / flat table",
    },
    Suite {
        name: "slot_lookup",
        axis: 2,
        axis_label: "slots",
        series: 3,
        ours: "umbra",
        baseline: "flat",
        ratio_label: "umbra / flat",
    },
    Suite {
        name: "slot_update",
        axis: 1,
        axis_label: "slots",
        series: 2,
        ours: "umbra",
        baseline: "",
        ratio_label: "",
    },
    Suite {
        name: "mmio_path",
        axis: 1,
        axis_label: "slots",
        series: 2,
        ours: "cache_hit",
        baseline: "caching_off",
        ratio_label: "cache hit / caching off",
    },
    Suite {
        name: "shadow_mmio",
        axis: 1,
        axis_label: "slots",
        series: 2,
        ours: "spte_hit",
        baseline: "caching_off",
        ratio_label: "SPTE hit / caching off",
    },
    Suite {
        name: "exit_path",
        axis: 2,
        axis_label: "slots",
        series: 1,
        ours: "mmio_many_pages",
        baseline: "mmio_many_pages_caching_off",
        ratio_label: "many pages: caching on / off",
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
            if path.first().is_none_or(|name| name != self.name) {
                continue;
            }
            let (Some(x), Some(series)) = (path.get(self.axis), path.get(self.series)) else {
                continue;
            };
            let Ok(x) = x.parse() else { continue };
            let title: Vec<String> = (1..path.len())
                .filter(|&part| part != self.axis && part != self.series)
                .map(|part| path[part].clone())
                .collect();
            panels
                .entry(title.clone())
                .or_insert_with(|| Panel {
                    title,
                    series: BTreeMap::new(),
                })
                .series
                .entry(series.clone())
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
            measured("bus/cut short", 9.0),
        ];
        let panels = SUITES[0].panels(&all);
        assert_eq!(panels.len(), 2);
        assert_eq!(panels[0].slug(), "random-independent-1t");
        assert_eq!(panels[0].axis(), [4, 32]);
        assert_eq!(panels[0].series["flat_table"][&4], 1.0);
    }
}
