//! The functional tests: a module per promise.
mod cancelling;
mod compile_fail;
mod dropping;
mod ending;
mod errors;
mod faults;
mod interface;
mod io;
mod ordering;
mod outside;
mod registry;
mod regression;
mod reserve;
mod starting;
mod teardown;
