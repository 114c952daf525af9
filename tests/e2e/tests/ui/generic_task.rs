#[mobula::task]
fn first<T: mobula::Data>(of: Vec<T>) -> u64 {
    of.len() as u64
}

fn main() {}
