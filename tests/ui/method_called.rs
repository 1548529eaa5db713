//! A method of the isolate's state is asked, not called.
use offshoot::prelude::*;

#[derive(Serialize, Deserialize)]
struct Counter(u64);

impl Counter {
    async fn add(&mut self, by: u64) -> u64 {
        self.0 += by;
        self.0
    }
}

async fn calls(counter: &Portal<Counter>) -> Result<u64> {
    counter.call(Counter::add, 1).await
}

fn main() {}
