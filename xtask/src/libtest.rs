//! What libtest prints, read back: how many tests passed, and which failed with what words.

use std::collections::BTreeMap;
use std::fmt;

/// Enough of a failed test's output to know what broke: libtest puts the panic first.
const WORDS: usize = 30;

/// Sums over the test binaries of one run, line by line as they print.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// Test, and what it printed
    failures: BTreeMap<String, Vec<String>>,
    part: Part,
}

/// Where in a binary's output the next line is.
#[derive(Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Running,
    /// The output of this test
    Output(String),
    /// The list of those that failed
    Names,
}

impl Tally {
    /// A run in which nothing was tried proves nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.passed + self.failed == 0
    }

    pub(crate) fn failed(&self) -> impl ExactSizeIterator<Item = &str> {
        self.failures.keys().map(String::as_str)
    }

    /// What the failed tests said, to be read at the end of a long log.
    pub(crate) fn complaints(&self) -> String {
        let mut all = String::new();
        for (test, words) in &self.failures {
            all.push_str(&format!("---- {test}\n{}\n", words.join("\n")));
        }
        all
    }

    pub(crate) fn add(&mut self, line: &str) {
        if let Some((_, result)) = line.split_once("test result: ") {
            self.part = Part::Running;
            self.sum(result);
        } else if let Some(test) =
            line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            self.part = Part::Output(test.to_owned());
            self.failures.entry(test.to_owned()).or_default();
        } else if line == "failures:" {
            self.part = Part::Names;
        } else {
            match &self.part {
                Part::Running => {}
                Part::Output(test) => {
                    let words = self.failures.entry(test.clone()).or_default();
                    if words.len() < WORDS {
                        words.push(line.to_owned());
                    }
                }
                Part::Names => {
                    if let Some(test) = line.strip_prefix("    ").filter(|test| !test.contains(' ')) {
                        self.failures.entry(test.to_owned()).or_default();
                    }
                }
            }
        }
    }

    fn sum(&mut self, result: &str) {
        let words: Vec<&str> = result.split_whitespace().collect();
        for pair in words.windows(2) {
            let [number, what] = pair else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what.trim_end_matches(';') {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} ignored", self.passed, self.failed, self.ignored)?;
        if !self.failures.is_empty() {
            write!(f, ": {}", self.failed().collect::<Vec<_>>().join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(lines: &str) -> Tally {
        let mut tally = Tally::default();
        lines.lines().for_each(|line| tally.add(line));
        tally
    }

    #[test]
    fn results_of_several_binaries_are_summed() {
        let tally = tally(
            "running 3 tests\n\
             test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
             test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 9 filtered out; finished in 1.20s",
        );
        assert_eq!(tally.to_string(), "7 passed, 2 failed, 1 ignored");
    }

    #[test]
    fn failed_tests_are_known_with_their_words() {
        let tally = tally(
            "test one ... FAILED\ntest deep::two ... FAILED\nfailures:\n\n---- one stdout ----\n\nthread 'one' panicked\n\n\
             \nfailures:\n    deep::two\n    one\n\ntest result: FAILED. 4 passed; 2 failed; 0 ignored; finished\nnext",
        );
        assert_eq!(tally.to_string(), "4 passed, 2 failed, 0 ignored: deep::two, one");
        assert!(tally.complaints().contains("thread 'one' panicked"));
        assert!(!tally.complaints().contains("next"));
    }
}
