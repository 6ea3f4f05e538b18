//! The main job, and what may go wrong with it, through `dist` as its users run it.

mod commit;
mod damage;
mod discard;
mod dist;
mod drivers;
mod images;
mod output;
mod portable;
mod redis;
mod refusals;
mod registries;
mod support;
mod umoci;
mod upkeep;
