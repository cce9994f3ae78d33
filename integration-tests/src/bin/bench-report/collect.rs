//! Reads what Criterion left under `target/criterion`: one `new/` folder per benchmark.

use serde_json::Value;
use std::io;
use std::path::Path;

/// One benchmark's result.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// The benchmark's full name, cut at its slashes.
    pub path: Vec<String>,
    /// Median time per iteration in nanoseconds.
    pub median_ns: f64,
}

/// Every result below `folder`, in no particular order.
pub fn measurements(folder: &Path) -> io::Result<Vec<Measurement>> {
    let mut found = Vec::new();
    visit(folder, &mut found)?;
    Ok(found)
}

fn visit(folder: &Path, found: &mut Vec<Measurement>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if !path.is_dir() {
            continue;
        }
        if path.file_name().is_some_and(|name| name == "new") {
            found.extend(read_result(&path)?);
        } else {
            visit(&path, found)?;
        }
    }
    Ok(())
}

/// The result in one `new/` folder; `None` if the run was cut off before it was complete.
fn read_result(folder: &Path) -> io::Result<Option<Measurement>> {
    let (benchmark, estimates) = (folder.join("benchmark.json"), folder.join("estimates.json"));
    if !benchmark.exists() || !estimates.exists() {
        return Ok(None);
    }
    let benchmark: Value = serde_json::from_slice(&std::fs::read(benchmark)?)?;
    let estimates: Value = serde_json::from_slice(&std::fs::read(estimates)?)?;
    let (Some(id), Some(median)) = (
        benchmark["full_id"].as_str(),
        estimates["median"]["point_estimate"].as_f64(),
    ) else {
        return Ok(None);
    };
    // A benchmark that handles many elements per iteration says so; per element is what we compare.
    let elements = benchmark["throughput"]["Elements"].as_f64().unwrap_or(1.0);
    Ok(Some(Measurement {
        path: id.split('/').map(str::to_owned).collect(),
        median_ns: median / elements,
    }))
}
