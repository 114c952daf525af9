#[mobula::task]
fn call(f: impl Fn() -> u64) -> u64 {
    f()
}

fn main() {}
