//! Which servers do not answer, so that a dead mirror costs one time-out and not one for each blob.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{Error, hosts::Endpoint};

/// How long a server that did not answer is left out, while there are others.
const DEAD: Duration = Duration::from_secs(120);

#[derive(Debug, Default)]
pub(super) struct Health {
    /// By name and URL: two may have the same URL, at different sockets.
    servers: Mutex<HashMap<(String, url::Url), State>>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Answers,
    DeadUntil(Instant),
}

impl Health {
    /// Learns from what a server answered, or did not.
    pub(super) fn note<T>(&self, server: &Endpoint, outcome: &Result<T, Error>) {
        let state = match outcome {
            Ok(_) => State::Answers,
            Err(Error::Connect { .. } | Error::Transport { .. }) => State::DeadUntil(Instant::now() + DEAD),
            Err(_) => return,
        };
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).insert(key(server), state);
    }

    /// Whether it did not answer lately.
    pub(super) fn is_dead(&self, server: &Endpoint) -> bool {
        matches!(self.state(server), Some(State::DeadUntil(until)) if Instant::now() < until)
    }

    /// Whether it answered the last time: its name and port are right, then.
    pub(super) fn has_answered(&self, server: &Endpoint) -> bool {
        matches!(self.state(server), Some(State::Answers))
    }

    fn state(&self, server: &Endpoint) -> Option<State> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).get(&key(server)).copied()
    }
}

fn key(server: &Endpoint) -> (String, url::Url) {
    (server.name(), server.url.clone())
}
