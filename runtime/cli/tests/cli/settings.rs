//! Where settings come from, and that they arrive.

use crate::harness::{Home, Said, node, said};

/// Every setting: section, key, a value for the file, one for the variable, one for the option.
const SETTINGS: [(&str, &str, &str, &str, &str); 31] = [
    ("head", "quic", "\"127.0.0.1:1\"", "127.0.0.1:2", "127.0.0.1:3"),
    ("head", "http", "\"127.0.0.1:1\"", "127.0.0.1:2", "127.0.0.1:3"),
    ("head", "name", "\"a\"", "b", "c"),
    ("head", "node_timeout", "\"7s\"", "8s", "9s"),
    ("head", "node_type", "[\"a=0..1 1 cpu\"]", "b=0..2 1 cpu", "c=0..3 1 cpu"),
    ("node", "head", "\"a:1\"", "b:1", "c:1"),
    ("node", "name", "\"a\"", "b", "c"),
    ("node", "listen", "\"127.0.0.1:1\"", "127.0.0.1:2", "127.0.0.1:3"),
    ("node", "advertise", "\"127.0.0.1:1\"", "127.0.0.1:2", "127.0.0.1:3"),
    ("node", "socket", "\"/a\"", "/b", "/c"),
    ("node", "job_uids", "\"1000-1001\"", "2000-2001", "3000-3001"),
    ("offer", "cpus", "1", "2", "3"),
    ("offer", "memory", "\"1GiB\"", "2GiB", "3GiB"),
    ("offer", "resource", "[\"a=1\"]", "b=2", "c=3"),
    ("offer", "label", "[\"a=1\", \"x=y\"]", "b=2", "c=3"),
    ("offer", "store", "1000000", "2GiB", "3GiB"),
    ("offer", "disk", "\"1GiB\"", "2GiB", "3GiB"),
    ("spill", "spill_folder", "\"/a\"", "/b", "/c"),
    ("spill", "spill_disk", "\"1GiB\"", "2GiB", "0"),
    ("spill", "spill_file", "\"1MiB\"", "2MiB", "3MiB"),
    ("spill", "spill_above", "0.5", "0.6", "0.7"),
    ("spill", "spill_below", "0.5", "0.4", "0.3"),
    ("spill", "spill_stall", "\"1s\"", "2s", "3s"),
    ("spill", "restore_share", "0.5", "0.4", "0.3"),
    ("transfer", "pull_share", "0.5", "0.4", "0.3"),
    ("transfer", "pull_stall", "\"1s\"", "2s", "3s"),
    ("transfer", "mtu", "1200", "1452", "65000"),
    ("hosts", "host_idle", "\"1s\"", "2s", "3s"),
    ("hosts", "head_lost", "\"1s\"", "2s", "3s"),
    ("hosts", "ring", "\"1MiB\"", "2MiB", "4MiB"),
    ("log", "level", "\"warn\"", "debug", "trace"),
];

fn write(home: &Home, text: impl AsRef<[u8]>) {
    std::fs::create_dir_all(home.path()).unwrap();
    std::fs::write(home.path().join("mobula.toml"), text).unwrap();
}

fn with(home: &Home, variable: &str, value: &str, arguments: &[&str]) -> Said {
    let mut command = home.command(arguments);
    command.env(variable, value);
    said(command)
}

#[test]
fn an_option_is_over_a_variable_over_the_file_over_the_default() {
    for (section, key, in_file, in_variable, in_option) in SETTINGS {
        let home = Home::new();
        let command = if section == "head" { "head" } else { "node" };
        let (variable, option) = match key {
            "level" => ("MOBULA_LOG".to_owned(), "--log".to_owned()),
            _ => (format!("MOBULA_{section}_{key}").to_uppercase(), format!("--{}", key.replace('_', "-"))),
        };
        let line = |said: Said| {
            let text = said.ok();
            let of = text.split(&format!("[{section}]\n")).nth(1).unwrap();
            let line =
                of.lines().find(|line| line.trim_start_matches("# ").starts_with(&format!("{key} = ")));
            line.unwrap_or_else(|| panic!("no {key} in {text}")).to_owned()
        };
        let bare = line(home.say(&["config", command]));
        assert!(bare.starts_with("# ") && bare.contains("  # the default"), "{bare}");
        write(&home, format!("[{section}]\n{key} = {in_file}\n"));
        assert_eq!(line(home.say(&["config"])), format!("{key} = {in_file}  # from the file"));
        let quoted = |value: &str| match key {
            "resource" | "label" | "node_type" => format!("[\"{value}\"]"),
            _ => format!("\"{value}\""),
        };
        let by_variable = format!("{key} = {}  # from the variable", quoted(in_variable));
        assert_eq!(line(with(&home, &variable, in_variable, &["config"])), by_variable);
        assert_eq!(line(with(&home, &variable, in_variable, &["config", command])), by_variable);
        let by_option = line(with(&home, &variable, in_variable, &["config", command, &option, in_option]));
        assert_eq!(by_option, format!("{key} = {}  # from the option", quoted(in_option)));
    }
}

#[test]
fn what_config_shows_is_a_file_that_says_the_same() {
    let home = Home::new();
    let mut text = String::new();
    let mut section = "";
    for (of, key, value, ..) in SETTINGS {
        if of != section {
            text.push_str(&format!("[{of}]\n"));
            section = of;
        }
        text.push_str(&format!("{key} = {value}\n"));
    }
    write(&home, &text);
    let shown = home.say(&["config"]).ok();
    write(&home, &shown);
    assert_eq!(home.say(&["config"]).ok(), shown);
    let other = Home::new();
    let file = home.path().join("mobula.toml");
    let file = file.to_str().unwrap();
    assert_eq!(other.say(&["config", "--config", file]).ok(), shown);
    assert_eq!(with(&other, "MOBULA_CONFIG", file, &["config"]).ok(), shown);
}

#[test]
fn a_cluster_runs_by_its_file() {
    let home = Home::new();
    write(
        &home,
        "[head]\nquic = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\nname = \"lab\"\n[log]\nlevel = \"warn\"",
    );
    let mut head = home.run(&["head"]);
    head.line("Ctrl-C ends the head");
    let told: serde_json::Value =
        serde_json::from_slice(&std::fs::read(home.path().join("head.json")).unwrap()).unwrap();
    let there = told["quic"].as_str().unwrap();

    let here = Home::new();
    write(
        &here,
        format!(
            "[node]\nhead = \"{there}\"\nlisten = \"127.0.0.1:0\"\nname = \"one\"\n\
             [offer]\ncpus = 3\nstore = \"16MiB\"\nresource = [\"licence=2\"]\nlabel = [\"zone=a\"]\n"
        ),
    );
    let mut command = here.command(&["node", "--cpus", "2"]);
    command.env("MOBULA_JOIN", home.token()).env("MOBULA_OFFER_CPUS", "4");
    let mut joined = crate::harness::run(command);
    joined.line("Node one");
    let status = home.status();
    let one = &status["nodes"][0];
    assert_eq!(one["name"], "one", "{status}");
    assert_eq!(
        (one["total"]["CPU"].as_f64(), one["total"]["licence"].as_f64()),
        (Some(2.0), Some(2.0)),
        "{one}"
    );
    assert_eq!(
        (one["labels"]["zone"].as_str(), one["store_bytes"].as_u64()),
        (Some("a"), Some(16 << 20)),
        "{one}"
    );
    joined.end();
    head.end();
}

#[test]
fn up_passes_its_settings_on() {
    let home = Home::new();
    write(
        &home,
        "[head]\nname = \"lab\"\n[node]\nname = \"not-for-up\"\nadvertise = \"10.0.0.1:1\"\n\
         [offer]\ncpus = 1\nstore = \"16MiB\"\nresource = [\"licence=2\"]\n[hosts]\nhost_idle = \"3s\"\n\
         [spill]\nspill_disk = \"1GiB\"\nspill_file = \"1MiB\"\nspill_above = 0.5\nspill_below = 0.25\n\
         spill_stall = \"5s\"\nrestore_share = 0.2\n[transfer]\npull_share = 0.3\npull_stall = \"6s\"\nmtu = 1452\n",
    );
    let folder = home.path().join("spilled");
    home.say(&["up", "--detach", "--nodes", "2", "--spill-folder", folder.to_str().unwrap()]).ok();
    // One folder there for each node, of its own.
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
    let status = home.status();
    assert_eq!(status["nodes"].as_array().unwrap().len(), 2, "{status}");
    for pid in &home.up_pids()[1..] {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().replace('\0', " ");
        for part in [
            "--cpus 1 ",
            "--store 16777216 ",
            "--resource licence=2 ",
            "--host-idle 3s ",
            "--name local-",
            "--spill-disk 1073741824 ",
            "--spill-file 1048576 ",
            "--spill-above 0.5 ",
            "--spill-below 0.25 ",
            "--spill-stall 5s ",
            "--restore-share 0.2 ",
            "--pull-share 0.3 ",
            "--pull-stall 6s ",
            "--mtu 1452 ",
        ] {
            assert!(line.contains(part), "no {part:?} in {line:?}");
        }
    }
    assert!(status["nodes"].to_string().contains("licence") && !status.to_string().contains("10.0.0.1"));
    home.say(&["down"]).ok();
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
}

#[test]
fn a_place_to_spill_to_that_cannot_be_used_is_named() {
    let home = Home::new();
    // Before anything is asked of a head.
    let node = ["node", "--head", "127.0.0.1:1", "--spill-folder", "ftp://there/x"];
    home.say(&node).failed(2, &["spill_folder", "ftp://there/x", "object-store", "[MOB5001]"]);
    home.say(&["up", "--spill-folder", "ftp://there/x"])
        .failed(1, &["did not start", "spill_folder", "ftp://there/x", "[MOB5001]", "--spill-folder PATH"]);
}

#[test]
fn a_bad_setting_is_refused_before_anything_starts() {
    let home = Home::new();
    let file = home.path().join("mobula.toml");
    let file = file.to_str().unwrap();
    for (text, parts) in [
        ("[offer]\n\ncpu = 1\n", &[":3:", "cpu = 1", "expected one of `cpus`"][..]),
        ("[hosts]\nring = -1", &[":2:", "ring = -1"]),
        ("[transfer]\nmtu = 576", &[":2:", "mtu = 576", "1200 to 65000"]),
        ("x = [", &[":1:"]),
    ] {
        write(&home, text);
        for command in ["head", "node", "up", "config"] {
            home.say(&[command]).failed(2, &[&[file, "[MOB5001]", "take it out"], parts].concat());
        }
    }
    write(&home, vec![b'#'; 64 * 1024 + 1]);
    home.say(&["head"]).failed(2, &[file, "longer than 64 KiB", "[MOB5001]"]);
    write(&home, [0xFF, 0xFE]);
    home.say(&["head"]).failed(2, &[file, "no text", "[MOB5001]"]);
    std::fs::remove_file(file).unwrap();
    home.say(&["head", "--config", file]).failed(1, &[file, "cannot read", "[MOB5002]"]);
    with(&home, "MOBULA_CONFIG", file, &["head"]).failed(1, &[file, "cannot read", "[MOB5002]"]);
    std::fs::create_dir(file).unwrap();
    home.say(&["head"]).failed(1, &[file, "cannot read", "[MOB5002]"]);
    std::fs::remove_dir(file).unwrap();
    assert!(!home.path().join("run").exists(), "something started");

    home.say(&["node"]).failed(2, &["--head HOST:PORT", "[MOB5001]", "MOBULA_NODE_HEAD"]);
    for (variable, value) in [
        ("MOBULA_OFFER_CPUS", "-1"),
        ("MOBULA_HOSTS_RING", "lots"),
        ("MOBULA_LOG", "a=b=c"),
        ("MOBULA_NODE_LISTEN", ""),
    ] {
        for arguments in [&node("127.0.0.1:9", &[])[..], &["config"]] {
            let arguments: Vec<&str> = arguments
                .iter()
                .copied()
                .filter(|part| !["--listen", "127.0.0.1:0"].contains(part))
                .collect();
            let told = with(&home, variable, value, &arguments);
            assert_eq!(told.code, Some(2), "{told:?}");
            assert!(told.err.contains(variable) && told.err.contains("[MOB5001]"), "{told:?}");
        }
    }
}
