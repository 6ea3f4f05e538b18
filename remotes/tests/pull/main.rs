//! What pulling promises, against registries in this process that go wrong on demand.

mod auth;
mod body;
mod fetch_handler;
mod go_away;
mod hosts;
mod image;
mod limits;
mod parallel;
mod redirect;
mod resolve;
mod retry;
mod secrets;
mod support;
mod transport;
