//! Layers out of trees, and back.

mod random;
mod support;
