//! Human-readable tables, without ruled lines.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets::NOTHING};

use super::{one_line, terminal_columns};

/// The minimum width of a column that is shortened.
const MIN_COLUMN: usize = 8;
/// Spaces between columns.
const GAP: usize = 2;

/// Renders a table. A heading that starts with `>` aligns its column to the right. If the terminal is too narrow, text
/// columns are shortened, the widest first; columns aligned to the right are not.
pub(crate) fn table<R>(headings: &[&str], rows: impl IntoIterator<Item = R>) -> String
where
    R: IntoIterator<Item = String>,
{
    let cells = |row: R| row.into_iter().map(|cell| one_line(&cell).into_owned()).collect();
    let mut rows: Vec<Vec<String>> = rows.into_iter().map(cells).collect();
    if let Some(columns) = terminal_columns() {
        fit(headings, &mut rows, columns);
    }
    render(headings, rows)
}

fn fit(headings: &[&str], rows: &mut [Vec<String>], columns: usize) {
    let length = |text: &str| text.chars().count();
    let mut widths: Vec<usize> = headings
        .iter()
        .enumerate()
        .map(|(i, heading)| {
            let cells = rows.iter().filter_map(|row| row.get(i)).map(|cell| length(cell));
            cells.max().unwrap_or(0).max(length(heading.trim_start_matches('>')))
        })
        .collect();
    let narrowest = |i: usize| MIN_COLUMN.max(length(headings[i]));
    while widths.iter().map(|width| width + GAP).sum::<usize>() > columns + GAP {
        let is_text = |i: &usize| !headings[*i].starts_with('>') && widths[*i] > narrowest(*i);
        let Some(widest) = (0..widths.len()).filter(is_text).max_by_key(|i| widths[*i]) else {
            break;
        };
        widths[widest] -= 1;
    }
    for row in rows {
        for (cell, width) in row.iter_mut().zip(&widths) {
            if length(cell) > *width {
                *cell = cell.chars().take(width - 1).chain(['…']).collect();
            }
        }
    }
}

fn render(headings: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings.iter().map(|heading| heading.trim_start_matches('>')));
    for row in rows {
        table.add_row(row);
    }
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, GAP as u16));
        if headings[i].starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_one_line() {
        let text = table(&["REASON"], [["a\nREADY\u{1b}[2J".to_owned()]]);
        assert_eq!(text, "REASON\na\\nREADY\\u001b[2J");
    }

    #[test]
    fn columns_line_up() {
        let text = table(
            &["NAME", ">READY"],
            [
                ["a".to_owned(), "1".to_owned()],
                ["long-name".to_owned(), "200".to_owned()],
            ],
        );
        assert_eq!(text, "NAME       READY\na              1\nlong-name    200");
    }

    #[test]
    fn the_longest_texts_of_a_table_are_shortened_to_fit() {
        let mut rows = vec![vec!["a".repeat(40), "123456789".to_owned(), "running".to_owned()]];
        fit(&["NAME", ">READY", "STATE"], &mut rows, 40);
        assert_eq!(rows[0][0], format!("{}…", "a".repeat(19)));
        assert_eq!(rows[0][1..], ["123456789", "running"]);
        let text = render(&["NAME", ">READY", "STATE"], rows);
        assert!(text.lines().all(|line| line.chars().count() <= 40), "{text}");
    }
}
