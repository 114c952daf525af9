//! What comes out: a table for people and JSON for `BENCHMARKS.md`.

use std::{collections::BTreeMap, fs, path::Path};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    measure::{Result, quantile},
    row::{Row, Side, Target},
};

/// One run of this program.
#[derive(Debug, Serialize)]
pub struct Report {
    machine: Map<String, Value>,
    commit: String,
    rows: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Line {
    name: String,
    unit: &'static str,
    better: &'static str,
    mobula: Option<Samples>,
    /// Measured elsewhere and merged in when the tables are made.
    peer: Option<Value>,
    limit: Option<Limit>,
    targets: Vec<Verdict>,
    error: Option<String>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Samples {
    median: f64,
    min: f64,
    max: f64,
    runs: usize,
}

#[derive(Clone, Debug, Serialize)]
struct Limit {
    name: String,
    median: f64,
}

#[derive(Debug, Serialize)]
struct Verdict {
    against: &'static str,
    op: &'static str,
    value: f64,
    measured: f64,
    met: bool,
}

impl Samples {
    fn of(values: &[f64]) -> Option<Self> {
        let mut ascending = values.to_vec();
        ascending.sort_by(f64::total_cmp);
        let (min, max) = (*ascending.first()?, *ascending.last()?);
        Some(Self { median: quantile(&ascending, 0.5), min, max, runs: ascending.len() })
    }
}

/// What the rounds gave for one row.
#[derive(Debug, Default)]
pub struct Outcome {
    /// One value of each round.
    pub values: Vec<f64>,
    /// Why there are no more.
    pub error: Option<String>,
}

impl Report {
    /// Puts rows and outcomes, which go together by name, into one report.
    pub fn new(
        machine: Map<String, Value>,
        commit: String,
        rows: &[Row],
        outcomes: &BTreeMap<&'static str, Outcome>,
    ) -> Self {
        let median = |name: &str| Samples::of(&outcomes.get(name)?.values).map(|samples| samples.median);
        let line = |row: &Row| {
            let outcome = outcomes.get(row.name);
            let samples = outcome.and_then(|outcome| Samples::of(&outcome.values));
            let limit = match row.side {
                Side::Limit => {
                    samples.map(|samples| Limit { name: row.name.to_owned(), median: samples.median })
                }
                Side::Mobula => {
                    row.limit.and_then(|name| Some(Limit { name: name.to_owned(), median: median(name)? }))
                }
            };
            let targets = row
                .targets
                .iter()
                .filter_map(|target| verdict(target, samples?.median, limit.as_ref()))
                .collect();
            let error = match outcome {
                None => Some("not run".to_owned()),
                Some(outcome) => outcome.error.clone(),
            };
            Line {
                name: row.name.to_owned(),
                unit: row.unit,
                better: row.better,
                mobula: samples.filter(|_| row.side == Side::Mobula),
                peer: None,
                limit,
                targets,
                error,
            }
        };
        Self { machine, commit, rows: rows.iter().map(line).collect() }
    }

    /// Writes the JSON.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        Ok(fs::write(path, text)?)
    }

    /// For a terminal.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(["row", "unit", "ours", "min", "max", "limit", "target", "measured", "met"]);
        for line in &self.rows {
            let number = |value: Option<f64>| value.map(human).unwrap_or_default();
            let target = line.targets.first();
            let (wanted, measured, met) = match (target, &line.error) {
                (Some(target), None) => (
                    match target.against {
                        "limit" => format!("{} {} of limit", target.op, target.value),
                        _ => format!("{} {}", target.op, human(target.value)),
                    },
                    human(target.measured),
                    if target.met { "yes" } else { "NO" }.to_owned(),
                ),
                (_, Some(_)) => (String::new(), String::new(), "error".to_owned()),
                (None, None) => Default::default(),
            };
            let ours = line.mobula;
            table.add_row([
                line.name.clone(),
                line.unit.to_owned(),
                number(ours.map(|samples| samples.median)),
                number(ours.map(|samples| samples.min)),
                number(ours.map(|samples| samples.max)),
                number(line.limit.as_ref().map(|limit| limit.median)),
                wanted,
                measured,
                met,
            ]);
        }
        for column in 2..8 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let errors: String = self
            .rows
            .iter()
            .filter_map(|line| Some(format!("\nerror in {}: {}", line.name, line.error.as_ref()?)))
            .collect();
        format!("{table}{errors}")
    }
}

fn verdict(target: &Target, median: f64, limit: Option<&Limit>) -> Option<Verdict> {
    let (against, op, value, measured) = match *target {
        Target::AtLeast(value) => ("absolute", ">=", value, median),
        Target::AtMost(value) => ("absolute", "<=", value, median),
        Target::OfLimit(value) => ("limit", ">=", value, median / limit?.median),
    };
    let met = if op == ">=" { measured >= value } else { measured <= value };
    Some(Verdict { against, op, value, measured, met })
}

/// Three digits that mean something, thousands apart.
fn human(value: f64) -> String {
    if value.abs() < 100.0 {
        return format!("{value:.*}", if value.abs() < 10.0 { 2 } else { 1 });
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Row = Row::less("ours", "µs").limit("theirs").targets(&[Target::AtMost(25.0)]);
    const SHARE: Row = Row::more("share", "GB/s").limit("theirs").targets(&[Target::OfLimit(0.8)]);
    const THEIRS: Row = Row::more("theirs", "GB/s").is_limit();

    #[test]
    fn the_shape_is_the_agreed_one() {
        let outcome = |values: &[f64]| Outcome { values: values.to_vec(), error: None };
        let mut outcomes = BTreeMap::from([
            ("ours", outcome(&[30.0, 20.0, 40.0])),
            ("share", outcome(&[9.0])),
            ("theirs", outcome(&[10.0])),
        ]);
        let rows = [OURS, SHARE, THEIRS, Row::more("gone", "1/s")];
        outcomes.insert("gone", Outcome { values: Vec::new(), error: Some("why".into()) });
        let report = Report::new(Map::new(), String::new(), &rows, &outcomes);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            json["rows"][0],
            serde_json::json!({
                "name": "ours", "unit": "µs", "better": "less",
                "mobula": {"median": 30.0, "min": 20.0, "max": 40.0, "runs": 3},
                "peer": null, "limit": {"name": "theirs", "median": 10.0},
                "targets": [{"against": "absolute", "op": "<=", "value": 25.0, "measured": 30.0, "met": false}],
                "error": null
            })
        );
        assert_eq!(json["rows"][1]["targets"][0]["met"], true);
        assert_eq!(json["rows"][2]["mobula"], Value::Null);
        assert_eq!(json["rows"][3]["error"], "why");
        assert!(report.table().contains("error in gone: why"));
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(human(1234567.8), "1 234 568");
        assert_eq!(human(0.4123), "0.41");
        assert_eq!(human(123.4), "123");
    }
}
