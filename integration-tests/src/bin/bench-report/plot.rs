//! SVG plots: time over size, both axes logarithmic, so that "flat" looks flat and a factor is a distance.

use crate::suite::{Panel, Suite};
use plotters::prelude::*;

const COLOURS: [RGBColor; 6] = [
    RGBColor(107, 63, 160),
    RGBColor(34, 139, 94),
    RGBColor(200, 90, 30),
    RGBColor(40, 110, 190),
    RGBColor(170, 40, 80),
    RGBColor(110, 110, 110),
];

/// The panel as an SVG document.
pub fn draw(suite: &Suite, panel: &Panel) -> Result<String, Box<dyn std::error::Error>> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (640, 360)).into_drawing_area();
        root.fill(&WHITE)?;
        let axis = panel.axis();
        let (Some(&first), Some(&last)) = (axis.first(), axis.last()) else {
            return Err("a plot without points".into());
        };
        let values = panel.series.values().flat_map(|points| points.values().copied());
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), ns| (low.min(ns), high.max(ns)));
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .x_label_area_size(38)
            .y_label_area_size(52)
            .build_cartesian_2d(
                (first as f64..last as f64 * 1.05).log_scale(),
                (low * 0.7..high * 1.4).log_scale(),
            )?;
        chart
            .configure_mesh()
            .x_desc(suite.axis_label)
            .y_desc("ns per access (median)")
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| if *y < 1.0 { format!("{y:.1}") } else { format!("{y:.0}") })
            .draw()?;
        for ((name, points), colour) in panel.series.iter().zip(COLOURS.iter().cycle()) {
            let width = if name == suite.ours { 3 } else { 1 };
            chart
                .draw_series(
                    LineSeries::new(
                        points.iter().map(|(x, ns)| (*x as f64, *ns)),
                        colour.stroke_width(width),
                    )
                    .point_size(3),
                )?
                .label(name.replace('_', " "))
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .draw()?;
        root.present()?;
    }
    Ok(svg)
}
