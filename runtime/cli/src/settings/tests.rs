use super::*;

fn parse(text: &str) -> Result<File, Error> {
    File::parse(text, Path::new("/home/mobula.toml"))
}

#[test]
fn numbers_need_no_quotes_and_what_is_not_said_is_not_set() {
    let file = parse("[offer]\ncpus = 0.5\nmemory = 1024\n[hosts]\nring = \"64KiB\"").unwrap();
    assert_eq!(file.offer.cpus, "0.5".parse().ok());
    assert_eq!((file.offer.memory, file.hosts.ring), (Some(1024), Some(64 << 10)));
    assert_eq!(file.offer.store, None);
    assert_eq!(parse("").unwrap(), File::default());
    assert_eq!(parse("[log]\n").unwrap(), File::default());
}

#[test]
fn an_error_says_where_and_what() {
    for (text, line, shown, detail) in [
        ("[offers]", 1, "[offers]", "unknown field `offers`, expected one of `head`, `node`"),
        ("cpus = 1", 1, "cpus = 1", "unknown field `cpus`"),
        ("[offer]\ncpu = 1", 2, "cpu = 1", "expected one of `cpus`"),
        ("[node]\njoin = \"x\"", 2, "join = \"x\"", "unknown field `join`"),
        ("\n[offer]\n\n  cpus = -1 # one", 4, "cpus = -1 # one", "out of range"),
        ("[offer]\ncpus = true", 2, "cpus = true", "expected a text in quotes, or a number"),
        ("[offer]\ncpus = nan", 2, "cpus = nan", "out of range"),
        ("[offer]\nmemory = \"lots\"", 2, "memory = \"lots\"", "16GiB"),
        ("[offer]\nstore = 99999999999999999999", 2, "store = 99999999999999999999", "no size"),
        ("[offer]\nresource = \"a=1\"", 2, "resource = \"a=1\"", "expected a sequence"),
        ("[offer]\nresource = [\"cpu=1\"]", 2, "resource = [\"cpu=1\"]", "say --cpus"),
        ("[offer]\nlabel = [\"zone\"]", 2, "label = [\"zone\"]", "zone=a"),
        ("[head]\nquic = \"7420\"", 2, "quic = \"7420\"", "socket address"),
        ("[head]\nname = \"no spaces\"", 2, "name = \"no spaces\"", "letters, digits"),
        ("[head]\nnode_timeout = \"4s\"", 2, "node_timeout = \"4s\"", "5s to 1d"),
        ("[head]\nnode_timeout = 6", 2, "node_timeout = 6", "no time"),
        ("[head]\nnode_type = [\"a\"]", 2, "node_type = [\"a\"]", "no NAME=MIN..MAX"),
        ("[head]\nnode_type = [\"a=1-2\"]", 2, "node_type = [\"a=1-2\"]", "no MIN..MAX"),
        ("[head]\nnode_type = [\"a=2..1 1 cpu\"]", 2, "node_type = [\"a=2..1 1 cpu\"]", "above its maximum"),
        ("[head]\nnode_type = [\"a=0..1\"]", 2, "node_type = [\"a=0..1\"]", "offers nothing"),
        (
            "[head]\nnode_type = [\"a=0..1 -1 cpu\"]",
            2,
            "node_type = [\"a=0..1 -1 cpu\"]",
            "2 cpu 4GiB memory",
        ),
        (
            "[head]\nnode_type = [\"a=0..1 nan gpu\"]",
            2,
            "node_type = [\"a=0..1 nan gpu\"]",
            "2 cpu 4GiB memory",
        ),
        ("[head]\nnode_type = [\"a=0..2 1 gpu\"]", 2, "node_type = [\"a=0..2 1 gpu\"]", "take GPU out"),
        ("[head]\nnode_type = [\"a=0..1 0.5 gpu\"]", 2, "node_type = [\"a=0..1 0.5 gpu\"]", "whole number"),
        (
            "[head]\nnode_type = [\"a=0..99999 1 cpu\"]",
            2,
            "node_type = [\"a=0..99999 1 cpu\"]",
            "lower their maxima",
        ),
        ("[head]\nnode_type = [\"a=0..1 1 cpu idle\"]", 2, "node_type = [\"a=0..1 1 cpu idle\"]", "no time"),
        ("[hosts]\nhost_idle = \"0s\"", 2, "host_idle = \"0s\"", "out of range"),
        ("[hosts]\nring = \"3MiB\"", 2, "ring = \"3MiB\"", "power of two"),
        ("[log]\nlevel = \"a=b=c\"", 2, "level = \"a=b=c\"", "no level"),
        ("[log]\nlevel = \"info\"\nlevel = \"info\"", 3, "level = \"info\"", "duplicate"),
        ("[head", 1, "[head", "]"),
    ] {
        match parse(text) {
            Err(Error::Setting { line: at, text: said, detail: why, .. }) => {
                assert_eq!((at, said.as_str()), (line, shown), "{text:?}: {why}");
                assert!(why.contains(detail) && !why.contains('\n'), "{text:?}: {why:?}");
            }
            other => panic!("{text:?} gave {other:?}"),
        }
    }
    let long = format!("[head]\nname = \"{}\"", "x".repeat(10_000));
    let error = parse(&long).unwrap_err().to_string();
    assert!(error.starts_with("/home/mobula.toml:2: ") && error.len() < 500, "{error}");
}

#[test]
fn a_layer_fills_only_what_the_one_above_leaves_open() {
    let mut above =
        Offer { memory: Some(1), label: vec![("a".to_owned(), "b".to_owned())], ..Offer::default() };
    let label = vec![("zone".to_owned(), "a".to_owned())];
    let resource = vec![("licence".to_owned(), Quantity::whole(2))];
    let below =
        Offer { memory: Some(2), store: Some(3), label, resource: resource.clone(), ..Offer::default() };
    above.fall_back(below);
    let label = vec![("a".to_owned(), "b".to_owned())];
    assert_eq!(above, Offer { memory: Some(1), store: Some(3), label, resource, ..Offer::default() });
}

#[test]
fn a_type_of_nodes_is_written_as_it_is_read() {
    for (text, same) in [
        ("a=0..3 2 cpu 4GiB memory zone=eu idle 90s", "a=0..3 2 CPU 4294967296 memory zone=eu idle 90s"),
        ("gpu.big=1..1 2 licence", "gpu.big=1..1 2 licence idle 60s"),
        ("x=0..0 idle 2m k=v 0.5 cpu", "x=0..0 0.5 CPU k=v idle 120s"),
    ] {
        let of = values::node_type(text).unwrap();
        assert_eq!(values::node_type_text(&of), same);
        assert_eq!(values::node_type(same).unwrap(), of);
    }
}
