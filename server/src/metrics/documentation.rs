//! Renders docs/metrics.md from the table.

use std::fmt::Write;

use super::table::TABLE;

/// The whole page. A test compares it with the file; with `BANANAS_WRITE_DOCS=1` the test writes the file.
pub fn page() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         Rendered from `server/src/metrics/table.rs`; do not edit.\n\
         Served as OpenMetrics text at `/metrics` of the second port (`http.listen`).\n\n\
         Labels: `priority` is the band of a job's priority, `low` (1-3), `normal` (4-6) or `high` (7-9); a band\n\
         appears when it first holds a job. `routing_key` is the queue; queues above 1,000 share the value `_other`,\n\
         without gauges. Durations are in seconds, sizes in bytes. A histogram has `_bucket`, `_sum` and `_count`.\n\n\
         Workers have gauges with the same names, `bananas_worker_total`, `_active` and `_utilization`, which\n\
         count the slots of the worker ([worker.md](worker.md#the-workers-port)). Use the `job` label, or another\n\
         label of your scrape configuration, to tell them from the metrics of a broker.\n",
    );
    for (section, metric) in TABLE {
        if let Some(section) = section {
            let _ = write!(
                page,
                "\n## {section}\n\n| metric | kind | labels | meaning |\n|---|---|---|---|\n"
            );
        }
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let _ = writeln!(
            page,
            "| `{}` | {} | {} | {} |",
            metric.name,
            metric.kind.word(),
            labels.join(", "),
            metric.help
        );
    }
    page
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_rendered_page_is_up_to_date() {
        crate::documents::compare_or_write("docs/metrics.md", &super::page());
    }
}
