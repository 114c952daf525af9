//! `BENCHMARKS.md`, made from the JSON of runs.

use std::{collections::BTreeMap, fmt::Write, path::PathBuf};

use crate::{
    measure::Result,
    report::{Line, Report, Samples, human},
};

/// Why rows miss their targets: a heading for each row, then its text.
const WHY: &str = include_str!("../why.md");

/// The whole file.
pub fn page(files: &[PathBuf]) -> Result<String> {
    let mut text = "# Benchmarks\n\n\
        Made by `mobula-bench report`; `tests/bench/README.md` says how rows are measured, and \
        `tests/bench/why.md` keeps the texts on missed targets.\n"
        .to_owned();
    let whys = whys(WHY);
    for file in files {
        section(&mut text, &Report::load(file)?, &whys)?;
    }
    Ok(text)
}

/// Texts by row.
fn whys(source: &str) -> BTreeMap<&str, &str> {
    let parts = source.split("\n## ").skip(1).filter_map(|part| part.split_once('\n'));
    parts.map(|(name, text)| (name.trim(), text.trim())).collect()
}

fn section(text: &mut String, report: &Report, whys: &BTreeMap<&str, &str>) -> Result<()> {
    let setting = |name: &str| match report.machine.get(name) {
        Some(serde_json::Value::String(value)) => value.clone(),
        Some(value) => value.to_string(),
        None => String::new(),
    };
    writeln!(
        text,
        "\n## Subject `{}`, on {} cores of {}, {}, Linux {}\n",
        report.subject,
        setting("cores"),
        setting("model"),
        setting("memory"),
        setting("kernel")
    )?;
    let settings =
        report.machine.keys().filter(|key| !["cores", "model", "memory", "kernel"].contains(&key.as_str()));
    let settings: Vec<String> =
        settings.map(|key| format!("{} {}", key.replace('_', " "), setting(key))).collect();
    writeln!(text, "Commit {}; {}.", report.commit, settings.join("; "))?;
    let number = |name: &str| setting(name).parse::<f64>().unwrap_or_default();
    if number("load_at_start") > number("cores") / 2.0 {
        writeln!(
            text,
            "**Other work ran just before or beside it, as that load shows: where it went on, rates are low, and their spread is wide.**"
        )?;
    }
    let targets = || report.rows.iter().flat_map(|row| &row.targets);
    let met = targets().filter(|target| target.met).count();
    writeln!(
        text,
        "{met} of {} targets are met. Medians of all rounds, with the least and the most.\n",
        targets().count()
    )?;
    writeln!(text, "| row | unit | Mobula | Ray | times Ray | limit | of limit | target | measured | met |")?;
    writeln!(text, "|---|---|--:|--:|--:|--:|--:|--:|--:|---|")?;
    for row in &report.rows {
        writeln!(text, "{}", cells(row))?;
    }
    limits(text, report)?;
    missed(text, report, whys)
}

fn cells(row: &Line) -> String {
    let spread = |samples: &Samples| {
        format!("{} ({}–{})", human(samples.median), human(samples.min), human(samples.max))
    };
    let ours = row.mobula.as_ref().map(spread);
    let peer = row.peer.as_ref().map(|peer| spread(&peer.samples));
    let limit = row.limit.as_ref().map(|limit| limit.median);
    // A row that is a limit is not held against itself.
    let of_limit = limit.zip(row.mobula).map(|(limit, ours)| human(ours.median / limit));
    let (wanted, measured, met) = row.verdicts();
    let cells = [
        row.name.clone(),
        row.unit.to_string(),
        ours.unwrap_or_default(),
        peer.unwrap_or_default(),
        row.ratio().map(human).unwrap_or_default(),
        limit.map(human).unwrap_or_default(),
        of_limit.unwrap_or_default(),
        wanted,
        measured,
        met,
    ];
    format!("| {} |", cells.map(|cell| cell.replace('|', "\\|")).join(" | "))
}

/// Which limit belongs to which rows: the table has no room for it.
fn limits(text: &mut String, report: &Report) -> Result<()> {
    let mut rows_of: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for row in report.rows.iter().filter(|row| row.mobula.is_some()) {
        if let Some(limit) = &row.limit {
            rows_of.entry(&limit.name).or_default().push(&row.name);
        }
    }
    if rows_of.is_empty() {
        return Ok(());
    }
    writeln!(text, "\n| limit | of |\n|---|---|")?;
    for (limit, rows) in rows_of {
        writeln!(text, "| {limit} | {} |", rows.join("; "))?;
    }
    Ok(())
}

fn missed(text: &mut String, report: &Report, whys: &BTreeMap<&str, &str>) -> Result<()> {
    let missed = |row: &&Line| row.error.is_some() || row.targets.iter().any(|target| !target.met);
    writeln!(text, "\n### Targets that are missed, and why\n")?;
    if !report.rows.iter().any(|row| missed(&row)) {
        writeln!(text, "None.")?;
        return Ok(());
    }
    writeln!(text, "| row | target | measured | why |\n|---|---|--:|---|")?;
    let listed: Vec<&str> = report.rows.iter().filter(missed).map(|row| row.name.as_str()).collect();
    for row in report.rows.iter().filter(missed) {
        let (wanted, measured, _) = row.verdicts();
        let error = row.error.as_ref().map(|error| format!("Error: {error}. ")).unwrap_or_default();
        let why = why(&row.name, whys, &listed);
        let why = format!("{error}{why}").replace('\n', " ").replace('|', "\\|");
        writeln!(text, "| {} | {wanted} | {measured} | {why} |", row.name)?;
    }
    Ok(())
}

/// Why a row misses. Where its text begins with `As for` and the name of a row that is not `listed`, that one's follows.
fn why(row: &str, whys: &BTreeMap<&str, &str>, listed: &[&str]) -> String {
    let mut text = String::new();
    let mut seen = vec![row];
    while let Some(next) = seen.last().and_then(|row| whys.get(row)) {
        text.push_str(if text.is_empty() { "" } else { " " });
        text.push_str(next);
        let named = next.strip_prefix("As for ").unwrap_or_default();
        // The longest: one name may begin like another.
        let other = whys.keys().filter(|name| named.starts_with(**name)).max_by_key(|name| name.len());
        match other.filter(|name| !listed.contains(name) && !seen.contains(name)) {
            Some(other) => seen.push(other),
            None => break,
        }
    }
    if text.is_empty() { "Not looked into yet.".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_why_that_names_another_row_is_told_whole() {
        let whys = BTreeMap::from([
            ("a", "As for ab."),
            ("ab", "As for c: more."),
            ("c", "Slow."),
            ("d", "As for d."),
        ]);
        assert_eq!(why("a", &whys, &["a"]), "As for ab. As for c: more. Slow.");
        assert_eq!(why("a", &whys, &["a", "ab"]), "As for ab.");
        assert_eq!(why("d", &whys, &["d"]), "As for d.");
        assert_eq!(why("e", &whys, &["e"]), "Not looked into yet.");
    }

    #[test]
    fn a_missed_row_is_told_with_its_why() {
        let report: Report = serde_json::from_value(serde_json::json!({
            "subject": "some", "machine": {"cores": 2, "rounds": 5}, "commit": "abc", "rows": [
                {"name": "slow", "unit": "s", "better": "less",
                 "mobula": {"median": 2.0, "min": 1.0, "max": 3.0, "runs": 5},
                 "peer": {"name": "Ray 1", "median": 4.0, "min": 4.0, "max": 4.0, "runs": 5},
                 "limit": {"name": "bare", "median": 1.0},
                 "targets": [{"against": "limit", "op": "<=", "value": 1.0, "measured": 2.0, "met": false}],
                 "error": null},
                {"name": "bare", "unit": "s", "better": "less", "mobula": null, "peer": null,
                 "limit": {"name": "bare", "median": 1.0}, "targets": [], "error": null}
            ]
        }))
        .unwrap();
        let mut text = String::new();
        section(&mut text, &report, &whys("# Why\n\n## slow\n\nIt waits\nfor nothing.\n")).unwrap();
        assert!(
            text.contains("| slow | s | 2 (1–3) | 4 (4–4) | 2 | 1 | 2 | <= 1 of limit | 2 | NO |"),
            "{text}"
        );
        assert!(text.contains("| slow | <= 1 of limit | 2 | It waits for nothing. |"), "{text}");
        assert!(text.contains("| bare | slow |"), "{text}");
        assert!(text.contains("0 of 1 targets are met"), "{text}");
    }

    #[test]
    fn each_text_on_a_missed_target_is_of_a_row() {
        let rows: Vec<&str> = crate::subjects::row_names();
        for name in whys(WHY).keys() {
            assert!(rows.contains(name), "why.md has a text for {name:?}, which is no row");
        }
    }
    #[test]
    fn each_row_about_objects_is_described() {
        let page = include_str!("../README.md");
        let described =
            |name| page.lines().any(|line| line.split(['|', ';']).any(|part| part.trim() == name));
        for row in (crate::subjects::objects::SUBJECT.probes)().iter().flat_map(|probe| probe.rows) {
            assert!(described(row.name), "README.md does not describe {:?}", row.name);
        }
    }
}
