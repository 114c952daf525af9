//! `mobula explain`: the pages under `docs/errors`, in the binary.

use crate::{args::ExplainArgs, error::Error, ready::say};

macro_rules! pages {
    ($($code:ident)*) => {
        /// Every page, by code.
        const PAGES: &[(&str, &str)] =
            &[$((stringify!($code), include_str!(concat!("../../../docs/errors/", stringify!($code), ".md")))),*];
    };
}

pages! {
    MOB1001 MOB1002 MOB1003 MOB1004 MOB1005
    MOB2001 MOB2002 MOB2003 MOB2004 MOB2005
    MOB3001 MOB3002 MOB3003 MOB3004 MOB3005 MOB3006 MOB3007 MOB3008 MOB3009 MOB3010 MOB3011 MOB3012 MOB3013
    MOB3014 MOB3015 MOB3016 MOB3099
    MOB4001 MOB4002 MOB4003 MOB4004 MOB4005
    MOB5001 MOB5002 MOB5003 MOB5004
    MOB6001 MOB6002 MOB6003
    MOB7001 MOB7002
    MOB8001
}

/// Shows a page, or lists them all.
pub fn run(args: &ExplainArgs) -> Result<(), Error> {
    match &args.code {
        Some(code) => say(page(code).ok_or_else(|| Error::NoCode(code.to_uppercase()))?.trim_end()),
        None => say(&list()),
    }
    Ok(())
}

/// The page of a code, in any case, with or without its prefix.
pub fn page(code: &str) -> Option<&'static str> {
    let mut code = code.trim().to_ascii_uppercase();
    if !code.starts_with("MOB") {
        code.insert_str(0, "MOB");
    }
    PAGES.iter().find(|(known, _)| *known == code).map(|(_, page)| *page)
}

/// The first line of each page: `MOB2001: the store stayed full`.
fn list() -> String {
    let titles =
        PAGES.iter().map(|(_, page)| page.lines().next().unwrap_or_default().trim_start_matches("# "));
    titles.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use mobula_proto::FailureKind;

    use super::*;

    #[test]
    fn every_kind_of_failure_has_its_page() {
        for kind in FailureKind::ALL {
            assert!(page(kind.code()).is_some(), "{kind:?} has no page docs/errors/{}.md", kind.code());
        }
    }

    #[test]
    fn every_page_is_here_and_speaks_of_its_own_code() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/errors");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_suffix(".md").map(str::to_owned))
            .filter(|name| name.starts_with("MOB"))
            .collect();
        files.sort();
        let here: Vec<&str> = PAGES.iter().map(|(code, _)| *code).collect();
        assert_eq!(here, files, "the table in explain.rs and the folder docs/errors differ");
        for (code, page) in PAGES {
            assert!(page.starts_with(&format!("# {code}: ")), "the page {code} starts with another code");
        }
    }

    #[test]
    fn codes_are_found_as_people_write_them() {
        assert!(page("mob2001").is_some() && page("2001").is_some());
        assert!(page("0000").is_none() && page("").is_none() && page("é").is_none());
    }
}
