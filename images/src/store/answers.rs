use std::collections::{BTreeMap, BTreeSet};

use oci_spec::image::{Descriptor, Digest};

use super::Record;

/// What to change of an image. The default changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Update {
    /// What the name stands for from now on. Unchanged if `None`.
    pub target: Option<Descriptor>,
    /// Labels to set. Others stay.
    pub set_labels: BTreeMap<String, String>,
    /// Keys of labels to remove; those that are not there are no matter. Removed before others are set.
    pub remove_labels: BTreeSet<String>,
}

impl Update {
    /// Lets the name stand for something else.
    pub fn target(self, target: Descriptor) -> Self {
        Self { target: Some(target), ..self }
    }

    /// Sets a label.
    pub fn set_label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.set_labels.insert(key.into(), value.into());
        self
    }

    /// Removes a label.
    pub fn remove_label(mut self, key: impl Into<String>) -> Self {
        self.remove_labels.insert(key.into());
        self
    }
}

/// The answer to [`Store::create`](super::Store::create).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Create {
    /// It was not there, and now is.
    Created,
    /// The name is taken, by this.
    Exists(Box<Record>),
}

/// The answer to [`Store::swap`](super::Store::swap).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swap {
    /// The name stands for the new target.
    Swapped,
    /// The name stands for something else than was expected, and still does.
    Differs(Box<Record>),
    /// No image has the name.
    Missing,
}

/// The answer to [`Store::find_digest`](super::Store::find_digest).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// No image's target starts so.
    Nothing,
    /// Exactly this target does. Images of several names may share it.
    One(Digest),
    /// More than one does.
    Several,
}
