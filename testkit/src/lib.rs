//! What the tests, benches and demos of windlass share.
//!
//! ```text
//! Layer ──▶ ImageBuilder, Index, Artifact ──▶ Image ──push──▶ Registry (in-process, with faults)
//!                                                       └──▶ RealRegistry (Debian's docker-registry)
//! folder ──read──▶ Tree ──diff──▶ what two folders differ in
//! bytes ──decode──▶ Edits ──apply──▶ a folder with anything in it
//! ```
//!
//! Everything here panics, with a reason, where a library would return an error: a test that cannot be set up
//! has failed. Whatever is built from the same calls is the same to the last byte.

mod artifact;
mod builder;
mod demo;
mod disk;
mod edits;
mod fault;
mod http;
mod image;
mod layer;
mod memory;
mod pki;
mod proc;
mod registry;
#[cfg(test)]
mod sample;
mod server;
mod state;
mod tree;

pub use self::{
    artifact::Artifact,
    builder::RegistryBuilder,
    demo::demo_image,
    disk::LoopDisk,
    edits::Edits,
    fault::Fault,
    image::{Image, ImageBuilder, Index},
    layer::Layer,
    memory::touch_memory,
    pki::Identity,
    proc::{RealRegistry, RealRegistryBuilder, docker_registry, require},
    registry::{Registry, Request},
    tree::{Node, NodeType, Tree, assert_same},
};
