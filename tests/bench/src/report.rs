//! What comes out: a table for people and JSON for `BENCHMARKS.md`.

use std::{borrow::Cow, collections::BTreeMap, fs, path::Path};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    measure::{Result, quantile},
    row::{Row, Side, Target},
};

/// One run of this program.
#[derive(Debug, Deserialize, Serialize)]
pub struct Report {
    /// What was measured: the command's name.
    pub subject: String,
    /// What it ran on and how.
    pub machine: Map<String, Value>,
    /// The source's version.
    pub commit: String,
    /// In the order of the table.
    pub rows: Vec<Line>,
}

/// One row of it.
#[derive(Debug, Deserialize, Serialize)]
pub struct Line {
    /// Unique.
    pub name: String,
    /// Of all its values.
    pub unit: Cow<'static, str>,
    /// `more` or `less`.
    pub better: Cow<'static, str>,
    /// What Mobula did; absent in a row that is a limit.
    pub mobula: Option<Samples>,
    /// What the other system did in the same run.
    pub peer: Option<Peer>,
    /// What the machine allows, measured in the same run.
    pub limit: Option<Limit>,
    /// What was wanted.
    pub targets: Vec<Verdict>,
    /// Why there are no values.
    pub error: Option<String>,
}

/// One value of each round.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Samples {
    /// The one in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// How many.
    pub runs: usize,
}

/// The other system's values.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Peer {
    /// The system and its version.
    pub name: String,
    /// What it did.
    #[serde(flatten)]
    pub samples: Samples,
}

/// What the machine allows.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Limit {
    /// The row that measured it.
    pub name: String,
    /// Its median.
    pub median: f64,
}

/// A target and whether it was met.
#[derive(Debug, Deserialize, Serialize)]
pub struct Verdict {
    /// `peer`, `limit` (both measured as ratios) or `absolute`.
    pub against: Cow<'static, str>,
    /// `>=` or `<=`.
    pub op: Cow<'static, str>,
    /// What was wanted.
    pub value: f64,
    /// What there was.
    pub measured: f64,
    /// Whether that is enough.
    pub met: bool,
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

/// By the rows' names.
pub type Outcomes = BTreeMap<Cow<'static, str>, Outcome>;

/// What the rounds gave.
#[derive(Debug, Default)]
pub struct Measured {
    /// Mobula's rows and the limits.
    pub mobula: Outcomes,
    /// The rows of the other system.
    pub peer: Outcomes,
    /// The other system and its version.
    pub peer_name: String,
}

impl Measured {
    fn samples(&self, name: &str) -> Option<Samples> {
        Samples::of(&self.mobula.get(name)?.values)
    }

    fn peer(&self, row: &Row) -> Option<Peer> {
        let samples = Samples::of(&self.peer.get(row.peer?)?.values)?;
        Some(Peer { name: self.peer_name.clone(), samples })
    }

    fn line(&self, row: &Row, rows: &[Row]) -> Line {
        let outcome = self.mobula.get(row.name);
        let samples = self.samples(row.name).filter(|_| row.side == Side::Mobula);
        let peer = self.peer(row);
        let limit = match row.side {
            Side::Mobula => row.limit.and_then(|name| rows.iter().find(|other| other.name == name)),
            Side::Limit | Side::Sum(..) => Some(row),
        };
        let limit = limit.and_then(|limit| self.limit(limit, row.unit));
        let median = samples.map(|samples| samples.median);
        let targets =
            row.targets.iter().filter_map(|target| verdict(target, median?, limit.as_ref(), peer.as_ref()));
        let of_peer =
            row.peer.and_then(|name| Some(format!("Ray: {}", self.peer.get(name)?.error.as_ref()?)));
        let error = match (outcome, row.side) {
            (Some(Outcome { error: Some(error), .. }), _) => Some(error.clone()),
            (None, Side::Mobula | Side::Limit) => Some("not run".to_owned()),
            _ => of_peer,
        };
        Line {
            name: row.name.to_owned(),
            unit: row.unit.into(),
            better: row.better.into(),
            mobula: samples,
            targets: targets.collect(),
            peer,
            limit,
            error,
        }
    }

    /// In this unit: what takes a time bounds a rate.
    fn limit(&self, row: &Row, unit: &str) -> Option<Limit> {
        let median = match row.side {
            Side::Sum(parts, more) => {
                let parts = parts.iter().map(|(times, name)| Some(times * self.samples(name)?.median));
                parts.sum::<Option<f64>>()? + more
            }
            Side::Limit | Side::Mobula => self.samples(row.name)?.median,
        };
        let median = if (row.unit, unit) == ("µs", "1/s") { 1e6 / median } else { median };
        Some(Limit { name: row.name.to_owned(), median })
    }
}

impl Report {
    /// Puts rows and what was measured of them, which go together by name, into one report.
    pub fn new(
        subject: &str,
        machine: Map<String, Value>,
        commit: String,
        rows: &[Row],
        measured: &Measured,
    ) -> Self {
        let lines = rows.iter().map(|row| measured.line(row, rows)).collect();
        Self { subject: subject.to_owned(), machine, commit, rows: lines }
    }

    /// Writes the JSON.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        Ok(fs::write(path, text)?)
    }

    /// Reads the JSON.
    pub fn load(path: &Path) -> Result<Self> {
        let trouble = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = fs::read_to_string(path).map_err(|error| trouble(&error))?;
        serde_json::from_str(&text).map_err(|error| trouble(&error).into())
    }

    /// For a terminal.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header([
            "row", "unit", "ours", "min", "max", "Ray", "times", "limit", "target", "measured", "met",
        ]);
        for line in &self.rows {
            let number = |value: Option<f64>| value.map(human).unwrap_or_default();
            let (wanted, measured, met) = line.verdicts();
            let ours = line.mobula;
            table.add_row([
                line.name.clone(),
                line.unit.to_string(),
                number(ours.map(|samples| samples.median)),
                number(ours.map(|samples| samples.min)),
                number(ours.map(|samples| samples.max)),
                number(line.peer.as_ref().map(|peer| peer.samples.median)),
                number(line.ratio()),
                number(line.limit.as_ref().map(|limit| limit.median)),
                wanted,
                measured,
                met,
            ]);
        }
        for column in 2..10 {
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

impl Line {
    /// How many times better than the peer; below 1 it is worse.
    pub fn ratio(&self) -> Option<f64> {
        let (ours, theirs) = (self.mobula?.median, self.peer.as_ref()?.samples.median);
        Some(if self.better == "more" { ours / theirs } else { theirs / ours })
    }

    /// What was wanted, what there was, and whether that is enough, as texts.
    pub fn verdicts(&self) -> (String, String, String) {
        let all = |text: fn(&Verdict) -> String| self.targets.iter().map(text).collect::<Vec<_>>().join("; ");
        let met = if self.error.is_some() {
            "error".to_owned()
        } else {
            all(|target| if target.met { "yes" } else { "NO" }.to_owned())
        };
        (all(Verdict::wanted), all(|target| human(target.measured)), met)
    }
}

impl Verdict {
    fn wanted(&self) -> String {
        match &*self.against {
            "limit" => format!("{} {} of limit", self.op, self.value),
            "peer" => format!("{} {} × Ray", self.op, human(self.value)),
            _ => format!("{} {}", self.op, human(self.value)),
        }
    }
}

fn verdict(target: &Target, median: f64, limit: Option<&Limit>, peer: Option<&Peer>) -> Option<Verdict> {
    let (against, op, value, measured) = match *target {
        Target::AtLeast(value) => ("absolute", ">=", value, median),
        Target::AtMost(value) => ("absolute", "<=", value, median),
        Target::OfLimit(value) => ("limit", ">=", value, median / limit?.median),
        Target::WithinLimit(value) => ("limit", "<=", value, median / limit?.median),
        Target::OfPeer(value) => ("peer", ">=", value, median / peer?.samples.median),
    };
    let met = if op == ">=" { measured >= value } else { measured <= value };
    Some(Verdict { against: against.into(), op: op.into(), value, measured, met })
}

/// Three digits that mean something, thousands apart.
pub fn human(value: f64) -> String {
    if value.abs() < 100.0 {
        let digits = match value.abs() {
            small if small < 0.01 => 4,
            small if small < 10.0 => 2,
            _ => 1,
        };
        let text = format!("{value:.digits$}");
        return if value.fract() == 0.0 { format!("{value}") } else { text };
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

    const OURS: Row = Row::less("ours", "µs").limit("sum").targets(&[Target::AtMost(25.0)]);
    const SHARE: Row = Row::more("share", "GB/s")
        .limit("theirs")
        .peer("rays")
        .targets(&[Target::OfLimit(0.8), Target::OfPeer(5.0)]);
    const THEIRS: Row = Row::more("theirs", "GB/s").is_limit();
    const SUM: Row = Row::more("sum", "GB/s").is_sum(&[(3.0, "theirs")], 5.0);

    #[test]
    fn the_shape_is_the_agreed_one() {
        let outcome = |values: &[f64]| Outcome { values: values.to_vec(), error: None };
        let mut measured = Measured { peer_name: "Ray 1".into(), ..Measured::default() };
        measured.mobula.insert("ours".into(), outcome(&[30.0, 20.0, 40.0]));
        measured.mobula.insert("share".into(), outcome(&[9.0]));
        measured.mobula.insert("theirs".into(), outcome(&[10.0]));
        measured.mobula.insert("gone".into(), Outcome { values: Vec::new(), error: Some("why".into()) });
        measured.peer.insert("rays".into(), outcome(&[2.0]));
        let rows = [OURS, SHARE, THEIRS, Row::more("gone", "1/s"), SUM];
        let report = Report::new("some", Map::new(), String::new(), &rows, &measured);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            json["rows"][0],
            serde_json::json!({
                "name": "ours", "unit": "µs", "better": "less",
                "mobula": {"median": 30.0, "min": 20.0, "max": 40.0, "runs": 3},
                "peer": null, "limit": {"name": "sum", "median": 35.0},
                "targets": [{"against": "absolute", "op": "<=", "value": 25.0, "measured": 30.0, "met": false}],
                "error": null
            })
        );
        assert_eq!(
            json["rows"][1]["peer"],
            serde_json::json!({"name": "Ray 1", "median": 2.0, "min": 2.0, "max": 2.0, "runs": 1})
        );
        assert_eq!(json["rows"][1]["targets"][0]["met"], true);
        assert_eq!(json["rows"][1]["targets"][1]["met"], false);
        assert_eq!(json["rows"][2]["mobula"], Value::Null);
        assert_eq!(json["rows"][3]["error"], "why");
        assert_eq!(json["rows"][4]["error"], Value::Null);
        assert!(report.table().contains("error in gone: why"));
        let again: Report = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(&again).unwrap(), json);
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(human(1234567.8), "1 234 568");
        assert_eq!(human(0.4123), "0.41");
        assert_eq!(human(0.00123), "0.0012");
        assert_eq!(human(123.4), "123");
        assert_eq!(human(40.0), "40");
    }
}
