//! A large blob over several connections: closed ranges, in order, with a bounded look-ahead.

use std::{collections::VecDeque, io};

use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::task::JoinHandle;
use windlass_content::ByteStream;

use super::{ParallelFetch, body::Body};

/// The rest of `body`, of which the first part is open already.
///
/// Where a part cannot be had as a part, all that is left comes over one connection.
pub(super) fn stream(body: Body, parallel: ParallelFetch) -> ByteStream {
    let turns: Vec<_> = (1..parallel.connections.get()).map_while(|_| body.another_turn()).collect();
    let size = body.descriptor.size();
    let next = (body.position + parallel.part_size.get()).min(size);
    let parts = Parts {
        slots: turns.len(),
        _turns: turns,
        part_size: parallel.part_size.get(),
        streaming: next,
        next,
        ahead: VecDeque::new(),
        arrived: VecDeque::new(),
        body,
    };
    stream::try_unfold(parts, |mut parts| async move { Ok(parts.next().await?.map(|chunk| (chunk, parts))) })
        .boxed()
}

struct Parts {
    /// What has been passed on, and how to get what has not.
    body: Body,
    /// Up to here bytes are passed on as they come.
    streaming: u64,
    /// Where the first part begins that nobody has asked for.
    next: u64,
    part_size: u64,
    /// How many parts may be ahead.
    slots: usize,
    /// The parts that have been asked for, in order.
    ahead: VecDeque<Part>,
    /// The chunks of the part that is being passed on.
    arrived: VecDeque<Bytes>,
    _turns: Vec<super::limits::Turn>,
}

struct Part {
    end: u64,
    task: JoinHandle<io::Result<VecDeque<Bytes>>>,
}

impl Drop for Part {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Parts {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            self.look_ahead();
            if self.body.position < self.streaming {
                if let Some(chunk) = self.body.next(self.streaming).await? {
                    return Ok(Some(chunk));
                }
                continue;
            }
            if let Some(chunk) = self.arrived.pop_front() {
                self.body.position += chunk.len() as u64;
                return Ok(Some(chunk));
            }
            let Some(mut part) = self.ahead.pop_front() else {
                if self.body.position == self.body.descriptor.size() {
                    return Ok(None);
                }
                // There is no connection for parts: all comes over the one that we have.
                self.streaming = self.body.descriptor.size();
                continue;
            };
            match (&mut part.task).await.unwrap_or_else(|error| Err(io::Error::other(error))) {
                Ok(chunks) => self.arrived = chunks,
                Err(error) => {
                    tracing::debug!(%error, end = part.end, "the rest comes over one connection");
                    self.ahead.clear();
                    (self.streaming, self.next) = (self.body.descriptor.size(), self.body.descriptor.size());
                }
            }
        }
    }

    /// Asks for as many parts as there are free slots. The one that is being passed on takes one until it is gone.
    fn look_ahead(&mut self) {
        let size = self.body.descriptor.size();
        let free = self.slots + usize::from(self.body.position >= self.streaming);
        while self.next < size && self.ahead.len() + usize::from(!self.arrived.is_empty()) < free {
            let (start, end) = (self.next, (self.next + self.part_size).min(size));
            let mut part = self.body.part(start);
            let task = tokio::spawn(async move {
                let mut chunks = VecDeque::new();
                while let Some(chunk) = part.next(end).await? {
                    chunks.push_back(chunk);
                }
                Ok(chunks)
            });
            self.ahead.push_back(Part { end, task });
            self.next = end;
        }
    }
}
