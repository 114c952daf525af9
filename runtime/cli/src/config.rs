//! `mobula config`: every setting with its text, the value in force and where that comes from, as a `mobula.toml`.

use clap::{Arg, ArgMatches, Args, Command, CommandFactory, parser::ValueSource};

use crate::{
    args::{Cli, ConfigArgs, ConfigOf},
    error::Error,
    home::Home,
    ready::say,
    settings::{self, File, Head, Hosts, Log, Node, Offer, Spill, Transfer},
};

/// Most characters of a line of comment.
const COMMENT_WIDTH: usize = 100;

/// A section: its name, its settings as options, and which commands have it.
struct Section {
    name: &'static str,
    options: fn(Command) -> Command,
    of: &'static [&'static str],
}

impl Section {
    /// Its settings, complete enough to be shown.
    fn options(&self) -> Command {
        let mut options = (self.options)(Command::new("mobula"));
        options.build();
        options
    }
}

const SECTIONS: [Section; 7] = [
    Section { name: "head", options: Head::augment_args, of: &["head", "up"] },
    Section { name: "node", options: Node::augment_args, of: &["node"] },
    Section { name: "offer", options: Offer::augment_args, of: &["node", "up"] },
    Section { name: "spill", options: Spill::augment_args, of: &["node", "up"] },
    Section { name: "transfer", options: Transfer::augment_args, of: &["node", "up"] },
    Section { name: "hosts", options: Hosts::augment_args, of: &["node", "up"] },
    Section { name: "log", options: Log::augment_args, of: &["head", "node", "up"] },
];

/// Shows the settings of one command with its options, or of all.
pub fn run(args: &ConfigArgs) -> Result<(), Error> {
    let (home, config) = match &args.of {
        Some(ConfigOf::Head(of)) => (&of.home, &of.config),
        Some(ConfigOf::Node(of)) => (&of.home, &of.config),
        Some(ConfigOf::Up(of)) => (&of.home, &of.config),
        None => (&args.home, &args.config),
    };
    let home = Home::of(home)?;
    let path = settings::path(config, &home);
    let text = settings::text(&path, config)?;
    // Refused here as it would be by a command that uses it.
    File::load(config, &home)?;
    let file: toml::Table = text.as_deref().and_then(|text| toml::from_str(text).ok()).unwrap_or_default();
    let here = if text.is_some() { "" } else { " (there is none)" };
    let mut out = format!("# {}{here}\n", path.display());
    // Understood once already, or this would not run.
    let whole = Cli::command().get_matches();
    let of = whole.subcommand_matches("config").and_then(ArgMatches::subcommand);
    for section in SECTIONS.iter().filter(|section| of.is_none_or(|(name, _)| section.of.contains(&name))) {
        let mut options = section.options();
        let variables = options.try_get_matches_from_mut(["mobula"]).map_err(Error::Arguments)?;
        let matches = of.map_or(&variables, |(_, matches)| matches);
        let file = file.get(section.name).and_then(toml::Value::as_table);
        out.push_str(&format!("\n[{}]\n", section.name));
        for arg in knobs(&options) {
            knob(&mut out, arg, matches, file.and_then(|file| file.get(arg.get_id().as_str())));
        }
    }
    say(out.trim_end());
    Ok(())
}

/// The variable of the option that clap shows as `shown`, such as `--cpus <N>`.
pub fn variable(shown: &str) -> Option<String> {
    SECTIONS.iter().find_map(|section| {
        let options = section.options();
        let arg = knobs(&options).find(|arg| arg.to_string() == shown)?;
        Some(arg.get_env()?.to_str()?.to_owned())
    })
}

fn knobs(options: &Command) -> impl Iterator<Item = &Arg> {
    options.get_arguments().filter(|arg| arg.get_env().is_some())
}

fn knob(out: &mut String, arg: &Arg, matches: &ArgMatches, file: Option<&toml::Value>) {
    let key = arg.get_id().as_str();
    let text = arg.get_long_help().map(ToString::to_string).unwrap_or_default();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        comment(out, line);
    }
    let (option, variable) = (arg.get_long().unwrap_or_default(), arg.get_env().unwrap_or_default());
    comment(out, &format!("Option --{option}, variable {}.", variable.display()));
    let given = || {
        let raw = matches.get_raw(key).into_iter().flatten();
        let all: Vec<String> = raw.map(|value| quoted(&value.to_string_lossy())).collect();
        match (&*all, arg.get_action()) {
            ([one], clap::ArgAction::Set) => one.clone(),
            _ => format!("[{}]", all.join(", ")),
        }
    };
    out.push_str(&match (matches.value_source(key), file) {
        (Some(ValueSource::CommandLine), _) => format!("{key} = {}  # from the option\n", given()),
        (Some(ValueSource::EnvVariable), _) => format!("{key} = {}  # from the variable\n", given()),
        (_, Some(value)) => format!("{key} = {}  # from the file\n", written(value)),
        _ => by_default(arg, &text),
    });
}

/// A line that says the default, and is a setting once the `#` before it is gone. Where the default is no value that
/// can be written, the value is what the setting is called in the help, to be replaced.
fn by_default(arg: &Arg, text: &str) -> String {
    let (key, stated) = (arg.get_id(), default(text));
    let end = stated.find([';', '(']).unwrap_or(stated.len());
    let (value, more) = (stated[..end].trim(), stated[end..].trim());
    let list = matches!(arg.get_action(), clap::ArgAction::Append);
    let is_value = !list && !value.contains(char::is_whitespace);
    let (value, remark) = match (is_value, more.starts_with('(')) {
        (true, true) => (quoted(value), format!(" {more}")),
        (true, false) => (quoted(value), more.to_owned()),
        (false, _) if list => ("[]".to_owned(), format!(": {stated}")),
        (false, _) => {
            let name = arg.get_value_names().and_then(|names| names.first());
            (quoted(name.map_or("", |name| name.as_str())), format!(": {stated}"))
        }
    };
    format!("# {key} = {value}  # the default{remark}\n")
}

/// The default that a setting's text states.
fn default(text: &str) -> &str {
    text.split_once("Default: ")
        .and_then(|(_, rest)| rest.split_once(". Cost: "))
        .map_or("", |(default, _)| default)
}

fn comment(out: &mut String, text: &str) {
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > COMMENT_WIDTH {
            out.push_str(&line);
            out.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    out.push_str(&line);
    out.push('\n');
}

fn written(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => quoted(text),
        toml::Value::Array(all) => format!("[{}]", all.iter().map(written).collect::<Vec<_>>().join(", ")),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        // No setting is of another type, and the file was understood.
        _ => String::new(),
    }
}

/// JSON's way to quote is one of TOML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_stated_are_those_of_the_head() {
        let head = mobula_head::Options::new("/nowhere");
        let options = SECTIONS[0].options();
        for (key, value) in [
            ("quic", head.quic_address.to_string()),
            ("http", head.http_address.to_string()),
            ("name", head.cluster_name.clone()),
            ("node_timeout", format!("{}s", head.idle_timeout.as_secs())),
        ] {
            let arg = knobs(&options).find(|arg| arg.get_id() == key).unwrap();
            let text = arg.get_long_help().unwrap().to_string();
            assert!(default(&text).starts_with(&value), "{key}: {}", default(&text));
        }
    }

    #[test]
    fn a_default_is_a_setting_once_it_is_no_comment() {
        for section in &SECTIONS {
            let mut all = format!("[{}]\n", section.name);
            for arg in knobs(&section.options()) {
                let text = arg.get_long_help().unwrap().to_string();
                let shown = by_default(arg, &text);
                let line = shown.strip_prefix("# ").unwrap();
                let (value, remark) = line.split_once("  # the default").unwrap();
                all.push_str(line);
                let table: toml::Table = toml::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
                assert!(table.contains_key(arg.get_id().as_str()) && value.contains(" = "), "{line}");
                // What is not described in words is taken as it stands.
                if !remark.starts_with(':') || value.ends_with("[]") {
                    let alone = format!("[{}]\n{line}", section.name);
                    let read: Result<File, _> = toml::from_str(&alone);
                    assert!(read.is_ok(), "{alone}: {:?}", read.err());
                }
            }
            let whole: Result<toml::Table, _> = toml::from_str(&all);
            assert!(whole.is_ok(), "{all}: {:?}", whole.err());
        }
    }

    #[test]
    fn every_setting_has_its_names_and_says_what_it_is() {
        let mut count = 0;
        for section in &SECTIONS {
            for arg in knobs(&section.options()) {
                let key = arg.get_id().as_str();
                let names = match (section.name, key) {
                    ("log", "level") => ("MOBULA_LOG".to_owned(), "log".to_owned()),
                    (section, key) => {
                        (format!("MOBULA_{section}_{key}").to_uppercase(), key.replace('_', "-"))
                    }
                };
                let has = (arg.get_env().unwrap().to_str().unwrap(), arg.get_long().unwrap());
                assert_eq!(has, (names.0.as_str(), names.1.as_str()));
                let text = arg.get_long_help().unwrap().to_string();
                let mut rest = text.as_str();
                for part in ["Unit: ", ". Default: ", ". Cost: ", ". If wrong: "] {
                    rest = rest.split_once(part).unwrap_or_else(|| panic!("{key} lacks {part:?}: {text}")).1;
                }
                assert!(!default(&text).is_empty() && rest.ends_with('.'), "{key}: {text}");
                count += 1;
            }
        }
        // As many as `tests/cli/settings.rs` tries.
        assert_eq!(count, 31);
        assert_eq!(variable("--cpus <N>").as_deref(), Some("MOBULA_OFFER_CPUS"));
        assert_eq!(variable("--ttl <TIME>"), None);
    }
}
