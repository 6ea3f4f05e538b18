//! Layers out of trees, and back.

mod drivers;
mod overlay;
mod random;
mod support;
mod tools;
mod trees;
