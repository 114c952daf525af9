//! Both examples, as a person would run them, in the two ways that need no cluster.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Output},
};

const DIGITS: &str = env!("CARGO_BIN_EXE_digits");
const WORDCOUNT: &str = env!("CARGO_BIN_EXE_wordcount");

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).env_remove("MOBULA_ADDRESS").output().expect("the example starts")
}

/// Standard output of a run that must succeed.
fn succeed(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = run(program, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The table of losses, and the value of each `key=value` in the last line.
fn digits(arguments: &[&str]) -> (String, BTreeMap<String, f64>) {
    let text = String::from_utf8(succeed(DIGITS, arguments)).unwrap();
    let last = text.lines().last().unwrap();
    let values = last.split(' ').map(|pair| {
        let (key, value) = pair.split_once('=').expect("pairs of key and value");
        (key.to_owned(), value.parse().expect("a number"))
    });
    let losses = text.split("node").next().unwrap().to_owned();
    (losses, values.collect())
}

#[test]
fn digits_are_learnt_alike_on_one_node_and_on_two() {
    let (alone, values) = digits(&[]);
    assert!(values["accuracy"] >= 0.96, "{values:?}");
    assert_eq!(values["nodes"], 1.0);
    let (together, values) = digits(&["--nodes", "2"]);
    assert_eq!(alone, together, "the losses");
    assert!(values["accuracy"] >= 0.96, "{values:?}");
    assert_eq!(values["nodes"], 2.0);
}

#[test]
fn the_seed_decides_how_digits_are_learnt() {
    let seeded = |seed| digits(&["--epochs", "2", "--seed", seed]).0;
    assert_eq!(seeded("7"), seeded("7"));
    assert_ne!(seeded("7"), seeded("8"));
}

/// Text with a skewed vocabulary, odd white space, bytes that are no UTF-8, and no line break at its end.
fn text(seed: u64, words: usize) -> Vec<u8> {
    let mut state = seed;
    let mut text = Vec::new();
    for _ in 0..words {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let number = (state >> 40) % (1 + (state >> 33) % 3000);
        text.extend_from_slice(format!("w{number}").as_bytes());
        match number % 7 {
            0 => text.extend_from_slice(b"\xff\xc3\n"),
            1 => text.extend_from_slice(b"\t\x0b "),
            _ => text.push(b' '),
        }
    }
    text.pop();
    text
}

#[test]
fn words_are_counted_as_sort_and_uniq_do() {
    let folder = tempfile::tempdir().unwrap();
    let texts = [text(1, 200_000), text(2, 50_000), Vec::new()];
    let mut counts: BTreeMap<&[u8], u64> = BTreeMap::new();
    let mut paths = Vec::new();
    for (at, text) in texts.iter().enumerate() {
        let path = folder.path().join(format!("{at}.txt"));
        fs::write(&path, text).unwrap();
        paths.push(path.to_str().unwrap().to_owned());
        let words = text.split(|byte| b" \t\n\x0b\x0c\r".contains(byte)).filter(|word| !word.is_empty());
        for word in words {
            *counts.entry(word).or_default() += 1;
        }
    }
    let mut expected = Vec::new();
    for (word, count) in &counts {
        expected.extend_from_slice(format!("{count:7} ").as_bytes());
        expected.extend_from_slice(word);
        expected.push(b'\n');
    }
    let files = [paths[0].as_str(), &paths[1], &paths[2]];
    for options in [&["--all", "--chunk", "64"][..], &["--all", "--chunk", "64", "--nodes", "2"]] {
        let found = succeed(WORDCOUNT, &[options, &files[..]].concat());
        assert!(found == expected, "{options:?}: the counts differ");
    }
    let mut top: Vec<_> = counts.into_iter().collect();
    top.sort_by_key(|(word, count)| (std::cmp::Reverse(*count), *word));
    let found = succeed(WORDCOUNT, &[&["--top", "3"][..], &files].concat());
    let found = String::from_utf8_lossy(&found).into_owned();
    let found: Vec<&str> = found.split_whitespace().collect();
    let expected: Vec<String> = top[..3]
        .iter()
        .flat_map(|(word, count)| [count.to_string(), String::from_utf8_lossy(word).into_owned()])
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn what_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.txt");
    let output = run(WORDCOUNT, &[missing.to_str().unwrap(), folder.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("missing.txt: No such file"), "{message}");
    assert!(message.contains("is a directory"), "{message}");
}
