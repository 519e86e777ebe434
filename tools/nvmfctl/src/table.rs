//! Tables: columns as wide as what is in them, numbers to the right.

use std::fmt;

/// Rows under headings.
#[derive(Debug, Default)]
pub struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new(headings: &[&'static str]) -> Self {
        Table {
            headings: headings.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, as long as the headings.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells
                .chain([self.headings[column].len()])
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.headings.len()).map(width).collect();
        // A column of numbers and sizes, as far as it is filled.
        let numeric = |column: usize| {
            let mut cells = self.rows.iter().map(|row| &row[column]);
            cells.all(|cell| cell.is_empty() || cell.starts_with(|c: char| c.is_ascii_digit()))
                && self.rows.iter().any(|row| !row[column].is_empty())
                && self
                    .rows
                    .iter()
                    .all(|row| !row[column].contains([':', '-', '/']))
        };
        let right: Vec<bool> = (0..self.headings.len()).map(numeric).collect();
        let headings: Vec<String> = self
            .headings
            .iter()
            .map(|text| (*text).to_owned())
            .collect();
        for row in std::iter::once(&headings).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, width), right) in row.iter().zip(&widths).zip(&right) {
                if !line.is_empty() {
                    line.push_str("  ");
                }
                line.push_str(&match right {
                    true => format!("{cell:>width$}"),
                    false => format!("{cell:<width$}"),
                });
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let mut table = Table::new(&["NAME", "SIZE", "NOTE"]);
        table.row(["a".into(), "10G".into(), "".into()]);
        table.row(["longer".into(), "1.5M".into(), "x".into()]);
        assert_eq!(
            table.to_string(),
            "NAME    SIZE  NOTE\na        10G\nlonger  1.5M  x\n"
        );
    }
}
