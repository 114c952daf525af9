struct Reader;

#[mobula::actor(groups(io = 4))]
impl Reader {
    fn new() -> Self {
        Self
    }

    #[method(group = "disk")]
    fn read(&self) -> u64 {
        7
    }
}

fn main() {}
