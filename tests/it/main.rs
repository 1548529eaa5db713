//! The functional tests: a module per promise.
mod interface;
