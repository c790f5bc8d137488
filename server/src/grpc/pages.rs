//! Lists come in pages. A page token is the last name of the page before, in hexadecimal: opaque, and valid at every
//! broker.

use super::bounds::number_at_most;
use crate::domain::{Error, limits as bound};

/// The requested page of a list.
#[derive(Debug)]
pub(super) struct Page {
    size: usize,
    after: String,
}

impl Page {
    /// Checks the page of a request; a size of 0 is the default.
    pub(super) fn read(size: u32, token: &str) -> Result<Self, Error> {
        Ok(Self {
            size: page_size(size)?,
            after: read_token(token)?,
        })
    }

    /// The last name of the page before; empty for the first.
    pub(super) fn after(&self) -> &str {
        &self.after
    }

    /// One entry more than the page may have: if it comes, there is a next page.
    pub(super) fn fetch_limit(&self) -> usize {
        self.size + 1
    }

    /// This page of a list that was read in order from [`Page::after`] on, up to [`Page::fetch_limit`] entries; and the
    /// token of the next page, empty after the last.
    pub(super) fn first<T>(&self, mut items: Vec<T>, name: impl Fn(&T) -> String) -> (Vec<T>, String) {
        let more = items.len() > self.size;
        items.truncate(self.size);
        let next = match items.last() {
            Some(last) if more => token(name(last).as_bytes()),
            _ => String::new(),
        };
        (items, next)
    }

    /// This page of a list, in the order of names; and the token of the next page, empty after the last.
    pub(super) fn cut<T>(&self, items: Vec<T>, name: impl Fn(&T) -> String) -> (Vec<T>, String) {
        let mut named: Vec<(String, T)> = items
            .into_iter()
            .map(|item| (name(&item), item))
            .filter(|(name, _)| *name > self.after)
            .collect();
        named.sort_by(|a, b| a.0.cmp(&b.0));
        let more = named.len() > self.size;
        named.truncate(self.size);
        let next = match named.last() {
            Some((last, _)) if more => token(last.as_bytes()),
            _ => String::new(),
        };
        (named.into_iter().map(|(_, item)| item).collect(), next)
    }
}

/// Checks the size of a page; 0 is the default.
pub(super) fn page_size(size: u32) -> Result<usize, Error> {
    number_at_most("page_size", size, bound::PAGE.max)?;
    Ok(if size == 0 { bound::PAGE.default } else { size } as usize)
}

/// A token of these bytes.
pub(super) fn token(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(value.into(), 16).unwrap_or_default();
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)])
        .collect()
}

/// The error of a token that was not made by this call.
pub(super) fn wrong_token() -> Error {
    Error::invalid("page_token", "was not made by this call")
}

/// The bytes of a token.
pub(super) fn read_bytes(token: &str) -> Result<Vec<u8>, Error> {
    if !token.len().is_multiple_of(2) || !token.is_ascii() {
        return Err(wrong_token());
    }
    let bytes = (0..token.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&token[at..at + 2], 16))
        .collect::<Result<Vec<_>, _>>();
    bytes.map_err(|_| wrong_token())
}

fn read_token(token: &str) -> Result<String, Error> {
    String::from_utf8(read_bytes(token)?).map_err(|_| wrong_token())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_names_the_last_entry_and_nothing_else_is_a_token() {
        assert_eq!(read_token(&token(b"email.eu-1")).unwrap(), "email.eu-1");
        for bad in ["x", "xy", "é", "ff"] {
            assert!(read_token(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pages_put_together_are_the_list_in_order_without_repetition() {
        let mut token = String::new();
        let mut seen = Vec::new();
        loop {
            let page = Page::read(2, &token).unwrap();
            let (items, next) = page.cut(vec!["c", "a", "e", "b", "d"], |name| (*name).to_owned());
            assert!(items.len() <= 2);
            seen.extend(items);
            if next.is_empty() {
                break;
            }
            token = next;
        }
        assert_eq!(seen, ["a", "b", "c", "d", "e"]);
        assert!(Page::read(bound::PAGE.max + 1, "").is_err());
    }
}
