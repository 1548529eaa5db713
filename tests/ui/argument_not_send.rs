//! An argument that belongs to one thread.
use offshoot::prelude::*;
use std::marker::PhantomData;

#[derive(Serialize, Deserialize)]
struct Handle(PhantomData<*const u8>);

async fn close(_: Handle) {}

async fn calls(farm: &Portal) -> Result<()> {
    farm.call(close, Handle(PhantomData)).await
}

fn main() {}
