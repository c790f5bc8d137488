//! docs/metrics.md, made from the table.

use std::fmt::Write;

use super::table::TABLE;

/// The whole page. A test compares it with the file in the tree and rewrites that with `BANANAS_WRITE_DOCS=1`.
pub fn page() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         Made from `server/src/metrics/table.rs`; do not edit. Served as OpenMetrics text at `/metrics` of the second port (`http.listen`).\n\n\
         Labels: `priority` is the band of a job's priority, `low` (1-3), `normal` (4-6) or `high` (7-9); a band appears once it held a job.\n\
         `routing_key` is the queue; after 1,000 queues further ones share the value `_other`, without gauges.\n\
         Durations are in seconds, sizes in bytes. A histogram has `_bucket`, `_sum` and `_count`.\n\
         A worker has gauges of its own that are called `bananas_worker_total`, `_active` and `_utilization`: they count its slots\n\
         ([worker.md](worker.md#the-workers-port)). Tell them apart by `job`, or whatever label your scrape adds.\n",
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
    fn the_page_in_the_tree_is_the_one_made_from_the_table() {
        crate::documents::compare_or_write("docs/metrics.md", &super::page());
    }
}
