//! What pushing and listing promise, against a registry in this process that goes wrong on demand, and a real one.

mod blob;
mod image;
mod lists;
mod manifest;
mod mount;
mod real;
mod referrers;
mod resume;
mod support;
