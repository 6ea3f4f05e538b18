//! What pulling promises, against registries in this process that go wrong on demand.

mod body;
mod fetch_handler;
mod redirect;
mod resolve;
mod retry;
mod support;
