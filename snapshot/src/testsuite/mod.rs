//! What every driver must do, as checks that take any driver.
//!
//! Each check gets a [`Bench`] on an empty root, and panics where the driver breaks its promise. They mount, so they
//! need root, or a user namespace in which the driver works.
//!
//! ```no_run
//! use std::{path::Path, sync::Arc};
//! use windlass_snapshot::{Durability, Native, Snapshotter, testsuite};
//!
//! fn native(root: &Path) -> Arc<dyn Snapshotter> {
//!     Arc::new(Native::open(root, Durability::Fast).expect("an empty root"))
//! }
//!
//! testsuite::run_all(&native);
//! ```

mod changes;
mod life;
mod rebase;
mod trees;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use tempfile::TempDir;

pub use self::{changes::*, life::*, rebase::*, trees::*};
use crate::{Commit, Mount, Snapshotter, mount};

/// Opens a driver on a root, as often as it is asked to.
pub type Open<'a> = &'a dyn Fn(&Path) -> Arc<dyn Snapshotter>;

/// One check of the suite.
pub type Check = fn(&Bench<'_>);

macro_rules! checks {
    ($($check:ident),* $(,)?) => { [$((stringify!($check), $check)),*] };
}

/// All checks, with the names that a failure is reported under.
pub const CHECKS: &[(&str, Check)] = &checks![
    // Of names, states and labels.
    a_child_sees_what_its_parent_committed,
    stat_tells_active_committed_and_missing_apart,
    prepare_and_view_refuse_bad_parents_and_taken_keys,
    an_update_replaces_the_labels_and_nothing_else,
    what_is_active_can_be_removed_and_its_key_used_again,
    a_snapshot_with_children_is_not_removed,
    walk_shows_parents_before_children,
    committing_to_a_name_that_exists_discards_the_snapshot,
    several_commits_succeed_or_fail_together,
    snapshots_prepared_together_are_like_those_prepared_alone,
    what_was_committed_is_there_after_opening_again,
    cleanup_removes_what_nobody_owns_and_nothing_else,
    what_is_forgotten_is_freed_by_cleanup,
    two_drivers_on_one_root_do_not_collide,
    a_file_with_two_names_is_counted_once,
    usage_adds_up_over_the_parents,
    closing_twice_is_fine_and_calls_after_it_say_so,
    // Of the trees that mounts show.
    parents_are_seen_through_their_children,
    a_file_changed_in_a_child_stays_as_it_was_in_the_parent,
    a_folder_removed_in_a_child_can_be_made_anew,
    owners_survive_a_commit,
    the_mode_of_a_folder_survives_a_commit,
    a_file_deleted_in_a_child_is_gone_in_the_grandchild,
    a_file_moved_in_a_child_has_only_its_new_name,
    a_view_cannot_be_written,
    the_root_folder_is_0755_and_keeps_what_the_parent_made_of_it,
    links_devices_attributes_and_times_survive_a_commit,
    a_hundred_and_twenty_eight_layers_can_be_mounted,
    // Of changes on top of changes.
    each_of_several_layers_shows_what_was_changed_up_to_it,
    a_folder_of_a_parent_can_be_renamed,
    a_hard_link_to_a_file_of_a_parent_is_the_same_file,
    holes_in_files_take_no_space_in_a_child,
    a_tree_deeper_than_any_path_is_kept_and_removed,
    // Of layers that are filled alone.
    layers_prepared_alone_merge_when_they_are_stacked,
    a_parent_is_given_at_commit_only_with_rebase,
];

/// Runs all checks, each on a root of its own.
///
/// # Panics
///
/// If a promise is broken; the check's name is on standard error.
pub fn run_all(open: Open<'_>) {
    run_all_in(&std::env::temp_dir(), open);
}

/// As [`run_all`], with all roots in that folder: for drivers that need a certain file system.
///
/// # Panics
///
/// If a promise is broken; the check's name is on standard error.
pub fn run_all_in(folder: &Path, open: Open<'_>) {
    for (name, check) in CHECKS {
        eprintln!("check {name}");
        check(&Bench::new_in(folder, open));
    }
}

/// A driver on an empty root, and what the checks do with it.
pub struct Bench<'a> {
    open: Open<'a>,
    dir: TempDir,
    /// The driver.
    pub driver: Arc<dyn Snapshotter>,
}

impl std::fmt::Debug for Bench<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bench").field("driver", &self.driver).finish_non_exhaustive()
    }
}

impl<'a> Bench<'a> {
    /// Opens the driver on a new temporary root.
    ///
    /// # Panics
    ///
    /// If there is no place for temporary files.
    pub fn new(open: Open<'a>) -> Self {
        Self::new_in(&std::env::temp_dir(), open)
    }

    /// Opens the driver on a new root in a folder.
    ///
    /// # Panics
    ///
    /// If nothing can be made in the folder.
    pub fn new_in(folder: &Path, open: Open<'a>) -> Self {
        let dir = tempfile::tempdir_in(folder).expect("a temporary folder");
        let driver = open(&dir.path().join("root"));
        Self { open, dir, driver }
    }

    /// Opens the driver on the same root once more.
    pub fn again(&self) -> Arc<dyn Snapshotter> {
        (self.open)(&self.root())
    }

    /// The driver's root.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Mounts, calls `work` with the place, and unmounts, also when `work` panics.
    ///
    /// # Panics
    ///
    /// If the mount fails.
    pub fn mounted<T>(&self, mounts: &[Mount], work: impl FnOnce(&Path) -> T) -> T {
        mount::temp_mount(mounts, work).expect("the mounts that a driver gives can be mounted")
    }

    /// Prepares on `parent`, lets `work` write, and commits as `name`.
    ///
    /// # Panics
    ///
    /// If any of these fails.
    pub fn layer(&self, name: &str, parent: Option<&str>, work: impl FnOnce(&Path)) {
        let key = format!("{name}-key");
        let mounts = self.driver.prepare(&key, parent).expect("a free key on a committed parent");
        self.mounted(&mounts, work);
        self.commit(&key, name);
    }

    /// Lets `look` see a committed snapshot through a view.
    ///
    /// # Panics
    ///
    /// If it cannot be viewed.
    pub fn look<T>(&self, name: &str, look: impl FnOnce(&Path) -> T) -> T {
        let key = format!("{name}-look");
        let mounts = self.driver.view(&key, Some(name)).expect("a committed snapshot can be viewed");
        let seen = self.mounted(&mounts, look);
        self.driver.remove(&key).expect("a view can be removed");
        seen
    }

    fn commit(&self, key: &str, name: &str) {
        self.driver.commit(&[Commit::new(key, name, None)]).expect("an active snapshot commits");
    }
}

fn write(path: impl AsRef<Path>, text: &str) {
    fs::write(path, text).expect("the snapshot can be written");
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).expect("the file is there")
}
