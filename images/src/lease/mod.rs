//! Holding content, snapshots and ingests, so that no garbage collection takes them.

mod file;
mod handle;
mod list;
mod resource;

pub(crate) use self::list::{all, remove_dead, resources_of_others, resources_since};
pub use self::{
    handle::{Lease, LeaseOptions},
    list::{LeaseInfo, Removal},
    resource::Resource,
};
