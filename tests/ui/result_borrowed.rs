//! A method that lends a part of the state.
use offshoot::prelude::*;

#[derive(Serialize, Deserialize)]
struct Person(String);

impl Person {
    fn name(&self) -> &str {
        &self.0
    }
}

async fn asks(person: &Portal<Person>) -> Result<()> {
    person.ask(Person::name, ()).await?;
    Ok(())
}

fn main() {}
