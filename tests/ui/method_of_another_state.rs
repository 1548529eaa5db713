//! A method of a type that is not the isolate's state.
use offshoot::prelude::*;

#[derive(Serialize, Deserialize)]
struct Counter(u64);

#[derive(Serialize, Deserialize)]
struct Clock(u64);

impl Clock {
    async fn wind(&mut self, by: u64) -> u64 {
        self.0 += by;
        self.0
    }
}

async fn asks(counter: &Portal<Counter>) -> Result<u64> {
    counter.ask(Clock::wind, 1).await
}

fn main() {}
