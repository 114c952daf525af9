//! Places in the program that make objects, as `mobula memory` names them.

use std::{collections::HashMap, panic::Location};

use mobula_proto::inventory::{SITE_BYTES_MAX, SITES_MAX};

/// A place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Site {
    /// The results of a function.
    Results(&'static str),
    /// A line, of a file.
    Line(&'static str, u32),
    /// A call's arguments that are too large to travel in its message.
    Arguments,
    /// Small values that their owner kept itself, until its node was to leave.
    Moved,
}

impl Site {
    /// The line that calls the caller of this.
    #[track_caller]
    pub fn here() -> Self {
        let location = Location::caller();
        Self::Line(location.file(), location.line())
    }

    fn name(self) -> String {
        let mut name = match self {
            Self::Results(function) => format!("results of {function}"),
            Self::Line(file, line) => format!("{file}:{line}"),
            Self::Arguments => "arguments of calls".to_owned(),
            Self::Moved => "small values of a node that leaves".to_owned(),
        };
        name.truncate(name.floor_char_boundary(SITE_BYTES_MAX));
        name
    }
}

/// Those that the agent knows by number.
#[derive(Debug, Default)]
pub(crate) struct Sites(HashMap<Site, u32>);

impl Sites {
    /// Its number, and its name where the agent has yet to hear it; 0 where there are too many.
    pub(crate) fn number(&mut self, site: Site) -> (u32, Option<String>) {
        if let Some(number) = self.0.get(&site) {
            return (*number, None);
        }
        if self.0.len() >= SITES_MAX {
            return (0, None);
        }
        let number = self.0.len() as u32 + 1;
        self.0.insert(site, number);
        (number, Some(site.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_named_once() {
        let mut sites = Sites::default();
        let (first, name) = sites.number(Site::here());
        assert!(first == 1 && name.unwrap().contains("site.rs:"));
        assert_eq!(
            sites.number(Site::Results("crawl::fetch")),
            (2, Some("results of crawl::fetch".to_owned()))
        );
        assert_eq!(sites.number(Site::Results("crawl::fetch")), (2, None));
        for line in 0..SITES_MAX as u32 {
            sites.number(Site::Line("a.rs", line));
        }
        assert_eq!(sites.number(Site::Line("b.rs", 1)), (0, None));
        assert_eq!(sites.number(Site::Results("crawl::fetch")), (2, None));
    }
}
