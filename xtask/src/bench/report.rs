//! The figures of all rounds, as a table for the terminal, as Markdown and as JSON.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use serde::Serialize;

use super::machine::Run;

/// What is counted as work in the mean: all but what begins so.
const BOOT: &str = "boot";

/// Everything that was measured.
#[derive(Debug)]
pub(super) struct Results {
    /// What the figures are, in the table's corner.
    unit: &'static str,
    machines: Vec<String>,
    /// Benchmarks in the order in which they were first seen.
    order: Vec<String>,
    /// Seconds of each round, by machine and benchmark.
    seconds: BTreeMap<(usize, String), Vec<f64>>,
    /// The output that the first machine had.
    reference: BTreeMap<String, String>,
    /// Machines that had another one.
    wrong: BTreeSet<(usize, String)>,
    failures: usize,
}

#[derive(Debug, Serialize)]
struct JsonRow<'a> {
    machine: &'a str,
    benchmark: &'a str,
    median: f64,
    seconds: &'a [f64],
    wrong_result: bool,
}

impl Results {
    pub(super) fn new(unit: &'static str, machines: Vec<String>) -> Self {
        Self {
            unit,
            machines,
            order: Vec::new(),
            seconds: BTreeMap::new(),
            reference: BTreeMap::new(),
            wrong: BTreeSet::new(),
            failures: 0,
        }
    }

    /// Adds a round of a machine.
    pub(super) fn add(&mut self, machine: usize, run: Run) {
        for (name, seconds) in run.seconds {
            if !self.order.contains(&name) {
                self.order.push(name.clone());
            }
            self.seconds.entry((machine, name)).or_default().push(seconds);
        }
        for (name, digest) in run.digests {
            if *self.reference.entry(name.clone()).or_insert_with(|| digest.clone()) != digest {
                self.wrong.insert((machine, name));
            }
        }
        self.failures += run.failures.len();
    }

    pub(super) fn has_failures(&self) -> bool {
        !self.wrong.is_empty() || self.failures > 0
    }

    /// For the terminal: seconds, then ratios.
    pub(super) fn table(&self) -> String {
        let rows = self.rows();
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(String::len)
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &rows {
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                match column {
                    0 => text.push_str(&format!("{cell:width$}")),
                    _ => text.push_str(&format!("  {cell:>width$}")),
                }
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text
    }

    pub(super) fn markdown(&self) -> String {
        let rows = self.rows();
        let mut text = String::new();
        for (index, row) in rows.iter().enumerate() {
            text.push_str(&format!("| {} |\n", row.join(" | ")));
            if index == 0 {
                text.push_str(&format!("|---{}|\n", "|---:".repeat(row.len() - 1)));
            }
        }
        text
    }

    pub(super) fn json(&self) -> anyhow::Result<String> {
        let rows: Vec<JsonRow<'_>> = self
            .seconds
            .iter()
            .map(|((machine, benchmark), seconds)| JsonRow {
                machine: &self.machines[*machine],
                benchmark,
                median: median(seconds),
                seconds,
                wrong_result: self.wrong.contains(&(*machine, benchmark.clone())),
            })
            .collect();
        Ok(serde_json::to_string_pretty(&rows)? + "\n")
    }

    /// Cells of the table, the head first.
    fn rows(&self) -> Vec<Vec<String>> {
        let mut head = vec![self.unit.to_owned()];
        head.extend(self.machines.iter().cloned());
        let pairs = self.pairs();
        head.extend(
            pairs
                .iter()
                .map(|&(own, other)| format!("{}/{}", self.machines[own], self.machines[other])),
        );
        let mut rows = vec![head];
        for name in &self.order {
            let figures: Vec<Option<f64>> = (0..self.machines.len())
                .map(|machine| self.figure(machine, name))
                .collect();
            let mark = |machine| self.wrong.contains(&(machine, name.clone()));
            rows.push(row(name, &figures, &pairs, mark));
        }
        rows.extend(self.mean_row());
        rows
    }

    /// Machines that are set against each other: each with the first, and of three or more the last two.
    fn pairs(&self) -> Vec<(usize, usize)> {
        let count = self.machines.len();
        let last = (count > 2).then(|| (count - 1, count - 2));
        (1..count).map(|own| (own, 0)).chain(last).collect()
    }

    fn figure(&self, machine: usize, name: &str) -> Option<f64> {
        self.seconds
            .get(&(machine, name.to_owned()))
            .map(|seconds| median(seconds))
    }

    /// Geometric means over the benchmarks that every machine has done.
    fn mean_row(&self) -> Option<Vec<String>> {
        let all = 0..self.machines.len();
        let common =
            |name: &&String| !name.starts_with(BOOT) && all.clone().all(|machine| self.figure(machine, name).is_some());
        let names: Vec<&String> = self.order.iter().filter(common).collect();
        if names.is_empty() {
            return None;
        }
        let mean = |machine| {
            let logs: f64 = names
                .iter()
                .filter_map(|name| self.figure(machine, name))
                .map(f64::ln)
                .sum();
            Some((logs / names.len() as f64).exp())
        };
        let figures: Vec<Option<f64>> = all.map(mean).collect();
        let name = format!("geometric mean of {}", names.len());
        Some(row(&name, &figures, &self.pairs(), |_| false))
    }
}

/// Seconds and ratios of one benchmark. A wrong result is marked.
fn row(name: &str, figures: &[Option<f64>], pairs: &[(usize, usize)], is_wrong: impl Fn(usize) -> bool) -> Vec<String> {
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
    let mut row = vec![name.to_owned()];
    for (machine, &figure) in figures.iter().enumerate() {
        let mark = if is_wrong(machine) { " WRONG RESULT" } else { "" };
        row.push(format!("{}{mark}", number(figure)));
    }
    row.extend(
        pairs
            .iter()
            .map(|&(own, other)| number(figures[own].zip(figures[other]).map(|(own, other)| own / other))),
    );
    row
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(seconds: &[(&str, f64)], digest: &str) -> Run {
        Run {
            seconds: seconds.iter().map(|&(name, value)| (name.to_owned(), value)).collect(),
            digests: [("sort".to_owned(), digest.to_owned())].into(),
            failures: Vec::new(),
        }
    }

    fn results() -> Results {
        let mut results = Results::new("seconds", vec!["native".to_owned(), "oxbow".to_owned()]);
        results.add(0, run(&[("sort", 1.0), ("gcc", 4.0)], "a"));
        results.add(1, run(&[("boot", 9.0), ("sort", 4.0), ("gcc", 16.0)], "a"));
        results
    }

    #[test]
    fn median_is_the_middle_of_unsorted_values() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn ratios_are_to_the_first_machine_and_the_mean_leaves_out_the_boot() {
        let text = results().markdown();
        assert!(text.contains("| sort | 1.00 | 4.00 | 4.00 |"), "{text}");
        assert!(text.contains("| boot | - | 9.00 | - |"), "{text}");
        assert!(text.contains("| geometric mean of 2 | 2.00 | 8.00 | 4.00 |"), "{text}");
    }

    #[test]
    fn of_three_machines_the_last_two_are_set_against_each_other() {
        let mut results = Results::new("seconds", ["native", "qemu-tcg", "oxbow"].map(str::to_owned).to_vec());
        for (machine, seconds) in [1.0, 8.0, 2.0].into_iter().enumerate() {
            results.add(machine, run(&[("sort", seconds)], "a"));
        }
        let text = results.markdown();
        assert!(
            text.contains("| qemu-tcg/native | oxbow/native | oxbow/qemu-tcg |"),
            "{text}"
        );
        assert!(
            text.contains("| sort | 1.00 | 8.00 | 2.00 | 8.00 | 2.00 | 0.25 |"),
            "{text}"
        );
    }

    #[test]
    fn other_output_than_the_first_machine_is_a_wrong_result() {
        let mut results = results();
        assert!(!results.has_failures());
        results.add(1, run(&[("sort", 4.0)], "b"));
        assert!(results.has_failures());
        assert!(results.table().contains("WRONG RESULT"));
        assert!(results.json().unwrap().contains("\"wrong_result\": true"));
    }
}
