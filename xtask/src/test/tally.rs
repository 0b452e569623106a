//! Numbers of tests, our own and those that test runners report.

use std::fmt;

/// A program that runs tests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Runner {
    /// `cargo nextest`: it shows what failed tests printed, with the totals that each process of `cargo test` prints.
    Nextest,
    /// `cargo test`
    Cargo,
}

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Tally {
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) skipped: usize,
}

impl Tally {
    pub(super) fn passed(count: usize) -> Self {
        Self {
            passed: count,
            ..Self::default()
        }
    }

    pub(super) fn failed(count: usize) -> Self {
        Self {
            failed: count,
            ..Self::default()
        }
    }

    pub(super) fn skipped(count: usize) -> Self {
        Self {
            skipped: count,
            ..Self::default()
        }
    }

    pub(super) fn add(&mut self, more: Self) {
        self.passed += more.passed;
        self.failed += more.failed;
        self.skipped += more.skipped;
    }

    /// The totals in a line of what a runner prints, if it is the line that has them.
    pub(super) fn of_line(runner: Runner, line: &str) -> Option<Self> {
        let line = line.trim_start();
        let counts = match runner {
            Runner::Nextest => line.strip_prefix("Summary [")?.split_once(" run: ")?.1,
            Runner::Cargo => line.strip_prefix("test result: ")?.split_once(". ")?.1,
        };
        let mut tally = Self::default();
        for item in counts.split([',', ';']) {
            // "12 passed (1 slow)" or "2 timed out"
            let Some((number, what)) = item.trim().split_once(' ') else {
                continue;
            };
            let Ok(number) = number.parse::<usize>() else {
                continue;
            };
            match what.split(' ').next() {
                Some("passed") => tally.passed += number,
                Some("failed" | "timed" | "exec") => tally.failed += number,
                Some("skipped" | "ignored") => tally.skipped += number,
                _ => {}
            }
        }
        Some(tally)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(passed: usize, failed: usize, skipped: usize) -> Option<Tally> {
        Some(Tally {
            passed,
            failed,
            skipped,
        })
    }

    #[test]
    fn totals_of_nextest_are_read() {
        let line = "     Summary [   3.021s] 12 tests run: 9 passed (2 slow), 2 failed, 1 timed out, 4 skipped";
        assert_eq!(Tally::of_line(Runner::Nextest, line), tally(9, 3, 4));
        let line = "     Summary [   0.005s] 2/9 tests run: 1 passed, 1 failed, 0 skipped";
        assert_eq!(Tally::of_line(Runner::Nextest, line), tally(1, 1, 0));
    }

    #[test]
    fn totals_of_cargo_test_are_read() {
        let line = "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 7 filtered out; finished in 0.00s";
        assert_eq!(Tally::of_line(Runner::Cargo, line), tally(3, 1, 2));
    }

    #[test]
    fn other_lines_have_no_totals() {
        for line in ["running 3 tests", "test a::b ... ok", "        PASS [   0.004s] a", ""] {
            assert_eq!(Tally::of_line(Runner::Nextest, line), None, "{line}");
            assert_eq!(Tally::of_line(Runner::Cargo, line), None, "{line}");
        }
    }

    #[test]
    fn totals_in_what_a_failed_test_printed_are_no_totals_of_nextest() {
        let line =
            "    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.00s";
        assert_eq!(Tally::of_line(Runner::Nextest, line), None);
    }
}
