//! Numbers as ranges, in a text that people can read: `3-9,12`.

use std::{fmt, str::FromStr};

/// Numbers in ascending order, as their ranges.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ranges(Vec<(u64, u64)>);

impl FromIterator<u64> for Ranges {
    /// Of numbers in ascending order.
    fn from_iter<I: IntoIterator<Item = u64>>(numbers: I) -> Self {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for number in numbers {
            match ranges.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
                _ => ranges.push((number, number)),
            }
        }
        Self(ranges)
    }
}

impl Ranges {
    /// Each range's first and last number.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().copied()
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (first, last)) in self.0.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// A text that is no list of ranges.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no range such as 3-9")]
pub struct NoRange(String);

impl FromStr for Ranges {
    type Err = NoRange;

    fn from_str(text: &str) -> Result<Self, NoRange> {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
            (first <= last).then_some((first, last))
        };
        let parts = text.split(',').filter(|part| !part.is_empty());
        let ranges = parts.map(|part| range(part).ok_or_else(|| NoRange(part.to_owned())));
        Ok(Self(ranges.collect::<Result<_, _>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_ranges_and_read_back() {
        for (numbers, text) in
            [(vec![], ""), (vec![3], "3"), (vec![1, 2, 3, 7, 9, 10], "1-3,7,9-10")]
        {
            let ranges: Ranges = numbers.into_iter().collect();
            assert_eq!(ranges.to_string(), text);
            assert_eq!(text.parse::<Ranges>().unwrap(), ranges);
        }
        for wrong in ["x", "9-3", "1-2-3", "-"] {
            wrong.parse::<Ranges>().unwrap_err();
        }
    }
}
