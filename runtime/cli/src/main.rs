//! The `mobula` binary.
fn main() {}
