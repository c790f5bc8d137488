//! The priority of a job.

use std::{fmt, str::FromStr};

use crate::error::Error;

/// The priority of a job: 1 to 9, higher is more urgent. Also parses from the words low (2), normal (5) and high (8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Priority(u8);

impl Priority {
    /// 2.
    pub const LOW: Self = Self(2);
    /// 5, the default.
    pub const NORMAL: Self = Self(5);
    /// 8.
    pub const HIGH: Self = Self(8);

    /// The priority `value`; None outside 1 to 9.
    pub const fn new(value: u8) -> Option<Self> {
        if value >= 1 && value <= 9 {
            Some(Self(value))
        } else {
            None
        }
    }

    /// The number, 1 to 9.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The priorities that `text` selects: a number selects itself, a word its band (low 1-3, normal 4-6, high 7-9).
    pub fn parse_selection(text: &str) -> Result<Vec<Self>, Error> {
        let band = match text {
            "low" => 1..=3,
            "normal" => 4..=6,
            "high" => 7..=9,
            _ => return Ok(vec![text.parse()?]),
        };
        Ok(band.map(Self).collect())
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self::NORMAL
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Priority {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "low" => Ok(Self::LOW),
            "normal" => Ok(Self::NORMAL),
            "high" => Ok(Self::HIGH),
            _ => text.parse().ok().and_then(Self::new).ok_or_else(|| {
                Error::invalid_argument("priority", format!("{text:?} is not 1 to 9, low, normal or high"))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_priorities_and_select_bands() {
        assert_eq!(
            ["low", "normal", "high", "9"].map(|t| t.parse::<Priority>().unwrap().get()),
            [2, 5, 8, 9]
        );
        let high = Priority::parse_selection("high").unwrap();
        assert_eq!(high.iter().map(|p| p.get()).collect::<Vec<_>>(), [7, 8, 9]);
        assert_eq!(Priority::parse_selection("4").unwrap(), [Priority(4)]);
        for bad in ["0", "10", "-1", "urgent", ""] {
            assert!(bad.parse::<Priority>().is_err(), "{bad:?}");
        }
    }
}
