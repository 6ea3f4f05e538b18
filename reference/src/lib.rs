//! Names of images as people write them: parsed, normalised, and taken apart. No I/O.
//!
//! ```text
//! redis              ──▶ docker.io/library/redis:latest
//!                        ├─host─┘ ├─repository┘ └─tag
//!                        └────────locator─────┘
//! host:5000/app:1@sha256:… ──▶ tag and digest; the digest is the object
//! ```
//!
//! A [`Reference`] is always normalised: equal names are equal values, and its text parses to itself.

mod error;
mod grammar;
mod reference;

pub use error::{Error, Result};
pub use reference::Reference;
