//! The names of priorities: three bands of three levels each.

/// A band of priorities, as environment variables, metric labels and log lines name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Band {
    /// 1 to 3.
    Low,
    /// 4 to 6.
    Normal,
    /// 7 to 9.
    High,
}

impl Band {
    /// The band of a level.
    pub const fn of(priority: u32) -> Self {
        match priority {
            1..=3 => Self::Low,
            7.. => Self::High,
            // 0 stands for the default, 5.
            0 | 4..=6 => Self::Normal,
        }
    }

    /// The levels of the band.
    pub const fn levels(self) -> [u32; 3] {
        match self {
            Self::Low => [1, 2, 3],
            Self::Normal => [4, 5, 6],
            Self::High => [7, 8, 9],
        }
    }

    /// low, normal or high.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }

    /// The band of this name, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Low, Self::Normal, Self::High]
            .into_iter()
            .find(|band| name.eq_ignore_ascii_case(band.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_is_in_the_band_that_lists_it() {
        for band in [Band::Low, Band::Normal, Band::High] {
            assert!(band.levels().iter().all(|&level| Band::of(level) == band));
            assert_eq!(Band::from_name(&band.name().to_uppercase()), Some(band));
        }
        assert_eq!(Band::of(0), Band::Normal);
    }
}
