//! The functional tests: a module per promise.
mod cancelling;
mod compile_fail;
mod dialogue;
mod dropping;
mod ending;
mod errors;
mod faults;
mod interface;
mod io;
mod ordering;
mod outside;
mod regression;
mod relays;
mod reserve;
mod scopes;
mod starting;
mod teardown;
