//! Command-line arguments, few enough to need no parser of grammars.

use std::collections::VecDeque;

/// Wrong usage.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// What has not been taken yet.
#[derive(Debug)]
pub(crate) struct Arguments {
    left: VecDeque<String>,
}

impl Arguments {
    pub(crate) fn new(words: impl Iterator<Item = String>) -> Self {
        Self { left: words.collect() }
    }

    /// Takes the first word.
    pub(crate) fn word(&mut self) -> Option<String> {
        self.left.pop_front()
    }

    /// Takes `name` if it is there.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        match self.left.iter().position(|word| word == name) {
            Some(at) => self.left.remove(at).is_some(),
            None => false,
        }
    }

    /// Takes `name VALUE` or `name=VALUE` if it is there.
    pub(crate) fn value(&mut self, name: &str) -> Result<Option<String>, Usage> {
        let prefix = format!("{name}=");
        let Some(at) = self
            .left
            .iter()
            .position(|word| word == name || word.starts_with(&prefix))
        else {
            return Ok(None);
        };
        let word = self.left.remove(at).unwrap_or_default();
        if let Some(value) = word.strip_prefix(&prefix) {
            return Ok(Some(value.to_owned()));
        }
        match self.left.remove(at) {
            Some(value) => Ok(Some(value)),
            None => Err(Usage(format!("{name} needs a value"))),
        }
    }

    /// As `value`, read as `T`.
    pub(crate) fn parsed<T: std::str::FromStr>(&mut self, name: &str) -> Result<Option<T>, Usage> {
        let Some(text) = self.value(name)? else {
            return Ok(None);
        };
        text.parse()
            .map(Some)
            .map_err(|_| Usage(format!("{name} cannot be {text}")))
    }

    /// Takes all other words; options among them are mistakes.
    pub(crate) fn rest(self) -> Result<Vec<String>, Usage> {
        match self.left.iter().find(|word| word.starts_with('-')) {
            Some(option) => Err(Usage(format!("there is no option {option} here"))),
            None => Ok(self.left.into()),
        }
    }

    /// Nothing may be left.
    pub(crate) fn end(self) -> Result<(), Usage> {
        match self.rest()?.first() {
            Some(word) => Err(Usage(format!("what is {word} for?"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(words: &[&str]) -> Arguments {
        Arguments::new(words.iter().map(|&word| word.to_owned()))
    }

    #[test]
    fn value_is_taken_in_both_spellings() {
        let mut words = arguments(&["--only", "a,b", "x", "-n=3"]);
        assert_eq!(words.value("--only").unwrap().as_deref(), Some("a,b"));
        assert_eq!(words.parsed::<u32>("-n").unwrap(), Some(3));
        assert_eq!(words.rest().unwrap(), ["x"]);
    }

    #[test]
    fn value_without_a_word_after_it_is_a_mistake() {
        assert!(arguments(&["--only"]).value("--only").is_err());
        assert!(arguments(&["-n", "many"]).parsed::<u32>("-n").is_err());
    }

    #[test]
    fn left_over_words_are_mistakes() {
        assert!(arguments(&["--unknown"]).rest().is_err());
        assert!(arguments(&["word"]).end().is_err());
        assert!(arguments(&[]).end().is_ok());
    }
}
