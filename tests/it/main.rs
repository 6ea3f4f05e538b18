//! The main job, and what may go wrong with it, through `dist` as its users run it.

mod dist;
mod redis;
mod refusals;
mod registries;
mod support;
