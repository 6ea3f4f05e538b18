//! What a pull is doing, pushed as typed events that never slow it.
//!
//! [`channel`] gives the two ends. The sending end never blocks, and holds at most a few events for each node:
//! byte counts that the receiver has not read yet are replaced by newer ones; changes of state are never lost.

use std::{
    collections::{HashMap, VecDeque},
    mem::{Discriminant, discriminant},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use oci_spec::image::{Descriptor, Digest};
use serde::Serialize;
use tokio::sync::Notify;

/// What happened to a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
#[non_exhaustive]
pub enum Event {
    /// The name stands for this content.
    Resolved {
        /// The name, as the resolver normalised it.
        name: String,
        /// What it stands for.
        descriptor: Descriptor,
    },
    /// The node was found, and waits for its turn.
    Waiting {
        /// The node.
        descriptor: Descriptor,
    },
    /// Bytes have come. A count, so that a missed event does no harm.
    Downloading {
        /// The node.
        descriptor: Descriptor,
        /// How many of its bytes are there, those of an earlier try included.
        offset: u64,
    },
    /// The node was there already: in the store, or, of a push, in the registry.
    Exists {
        /// The node.
        descriptor: Descriptor,
    },
    /// All bytes are there, verified and committed.
    Downloaded {
        /// The node.
        descriptor: Descriptor,
        /// How many bytes came over the network for it in this pull.
        transferred: u64,
    },
    /// Bytes go to a registry. A count, so that a missed event does no harm.
    Uploading {
        /// The node.
        descriptor: Descriptor,
        /// How many of its bytes have been taken from where they come from.
        offset: u64,
    },
    /// The registry took the node from another of its repositories.
    Mounted {
        /// The node.
        descriptor: Descriptor,
    },
    /// All bytes are in the registry.
    Uploaded {
        /// The node.
        descriptor: Descriptor,
        /// How many bytes were read to be sent, those included that were sent twice.
        transferred: u64,
    },
    /// The layer is being applied. A count, so that a missed event does no harm.
    Unpacking {
        /// The layer.
        descriptor: Descriptor,
        /// How many bytes of the blob (compressed) have been read.
        offset: u64,
    },
    /// The layer's snapshot is committed, or was there already.
    Unpacked {
        /// The layer.
        descriptor: Descriptor,
        /// Whether the snapshot was there already.
        existed: bool,
    },
}

impl Event {
    /// The node and the kind of an event that a newer one of the same kind makes worthless.
    fn count_of(&self) -> Option<(&Descriptor, Discriminant<Self>)> {
        match self {
            Self::Downloading { descriptor, .. }
            | Self::Uploading { descriptor, .. }
            | Self::Unpacking { descriptor, .. } => Some((descriptor, discriminant(self))),
            _ => None,
        }
    }
}

/// The sending end. Cheap to clone. The default one sends nowhere.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    sender: Option<Arc<Sender>>,
}

impl Progress {
    /// Sends an event. Never blocks.
    pub fn send(&self, event: Event) {
        if let Some(sender) = &self.sender {
            sender.shared.queue().push(event);
            sender.shared.arrived.notify_one();
        }
    }

    /// Whether anybody listens: who counts bytes need not, otherwise.
    pub fn is_enabled(&self) -> bool {
        self.sender.is_some()
    }
}

/// Tells the receiver when the last clone is gone.
#[derive(Debug)]
struct Sender {
    shared: Arc<Shared>,
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.arrived.notify_one();
    }
}

/// The receiving end.
#[derive(Debug)]
pub struct Events {
    shared: Arc<Shared>,
}

impl Events {
    /// The next event; `None` when there are no more, and all senders are gone.
    pub async fn recv(&mut self) -> Option<Event> {
        loop {
            let arrived = self.shared.arrived.notified();
            {
                let mut queue = self.shared.queue();
                if let Some(event) = queue.pop() {
                    return Some(event);
                }
                if queue.closed {
                    return None;
                }
            }
            arrived.await;
        }
    }
}

/// Makes the two ends.
pub fn channel() -> (Progress, Events) {
    let shared = Arc::new(Shared::default());
    (Progress { sender: Some(Arc::new(Sender { shared: shared.clone() })) }, Events { shared })
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    arrived: Notify,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Events in order. A count that is still unread when the next one comes is replaced in its place.
#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Event>,
    /// How many events were ever taken out: the number of the first one in `events`.
    taken: u64,
    /// The numbers of the unread counts.
    counts: HashMap<(Digest, Discriminant<Event>), u64>,
    closed: bool,
}

impl Queue {
    fn push(&mut self, event: Event) {
        if let Some((node, kind)) = event.count_of() {
            let next = self.taken + self.events.len() as u64;
            let number = *self.counts.entry((node.digest().clone(), kind)).or_insert(next);
            if number < next {
                let place = usize::try_from(number - self.taken).expect("it is in the queue");
                self.events[place] = event;
                return;
            }
        }
        self.events.push_back(event);
    }

    fn pop(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        self.taken += 1;
        if let Some((node, kind)) = event.count_of() {
            self.counts.remove(&(node.digest().clone(), kind));
        }
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::MediaType;
    use windlass_content::hash::sha256;

    use super::*;

    fn node(name: &str) -> Descriptor {
        Descriptor::new(MediaType::ImageLayer, 9, sha256(name.as_bytes()))
    }

    #[tokio::test]
    async fn unread_counts_are_replaced_and_states_are_kept_in_order() {
        let (progress, mut events) = channel();
        let (a, b) = (node("a"), node("b"));
        progress.send(Event::Waiting { descriptor: a.clone() });
        for offset in 0..1000 {
            progress.send(Event::Downloading { descriptor: a.clone(), offset });
            progress.send(Event::Downloading { descriptor: b.clone(), offset });
        }
        progress.send(Event::Downloaded { descriptor: a.clone(), transferred: 9 });
        drop(progress);

        let mut received = Vec::new();
        while let Some(event) = events.recv().await {
            received.push(event);
        }

        let expected = [
            Event::Waiting { descriptor: a.clone() },
            Event::Downloading { descriptor: a.clone(), offset: 999 },
            Event::Downloading { descriptor: b, offset: 999 },
            Event::Downloaded { descriptor: a, transferred: 9 },
        ];
        assert_eq!(received, expected);
    }

    #[tokio::test]
    async fn a_receiver_that_waits_is_woken() {
        let (progress, mut events) = channel();
        let waiting = tokio::spawn(async move { events.recv().await });
        tokio::task::yield_now().await;
        progress.send(Event::Exists { descriptor: node("a") });
        assert_eq!(waiting.await.expect("it does not panic"), Some(Event::Exists { descriptor: node("a") }));
    }
}
