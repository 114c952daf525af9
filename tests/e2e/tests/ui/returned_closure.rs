#[mobula::task]
fn adder(by: u64) -> impl Fn(u64) -> u64 {
    move |x| x + by
}

fn main() {}
