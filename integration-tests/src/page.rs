//! The page of figures, `docs/benchmarks.md`: programs rewrite what stands between its markers, and nothing else.

use std::path::{Path, PathBuf};

/// Where the page is.
#[must_use]
pub fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks.md")
}

/// `text` with everything between the two markers of `name` replaced by `body`.
///
/// # Errors
/// A marker is missing, or the second stands before the first.
pub fn replace_section(text: &str, name: &str, body: &str) -> Result<String, String> {
    let (begin, end) = (format!("<!-- begin {name} -->"), format!("<!-- end {name} -->"));
    let start = text
        .find(&begin)
        .ok_or_else(|| format!("docs/benchmarks.md has no line {begin}"))?
        + begin.len();
    let stop = text
        .find(&end)
        .ok_or_else(|| format!("docs/benchmarks.md has no line {end}"))?;
    if stop < start {
        return Err(format!("docs/benchmarks.md: {end} stands before {begin}"));
    }
    Ok(format!("{}\n{body}\n{}", &text[..start], &text[stop..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn section_between_markers_is_replaced_and_the_rest_kept() {
        let page = "prose\n<!-- begin bus -->\nold\n<!-- end bus -->\nmore";
        let new = replace_section(page, "bus", "new").expect("both are there");
        assert_eq!(new, "prose\n<!-- begin bus -->\nnew\n<!-- end bus -->\nmore");
        assert!(replace_section(page, "slots", "x").unwrap_err().contains("begin slots"));
    }
}
