#[mobula::task]
fn call(f: dyn Fn() -> u64) -> u64 {
    f()
}

fn main() {}
