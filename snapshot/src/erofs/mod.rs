//! EROFS images: a layer, or a whole root file system, as one file.
//!
//! ```text
//! data, block after block ──▶ Writer::data ──▶ ┌──────────────────────────────────────────────┐
//!                                              │ superblock │ data of files … │ metadata      │
//! names, owners, times ──▶ Tree ──finish────▶  └──────────────────────────────────────────────┘
//! ```
//!
//! The image is written from its beginning to its end: the data of each file when it comes, and then the metadata, which was
//! kept in a [`Tree`]. So memory is proportional to the number of entries, and no file but the image is ever made.
//!
//! Data begins at multiples of 4,096 bytes, where any kernel since 5.15 and any reader of the format finds it. An **index**
//! ([`Writer::index`]) has no data: its files are where they are in a tar, at multiples of 512 bytes, which takes Linux 6.4.

mod data;
mod driver;
mod folder;
mod format;
mod fs_verity;
mod layers;
mod layout;
mod options;
mod paths;
mod place;
mod probe;
mod read;
mod settle;
mod stack;
mod tar;
mod tree;
mod verity;
mod xattrs;

use std::fs::File;

pub use data::{DataError, Options, Writer};
pub use driver::Erofs;
pub use options::{ErofsOptions, Form, FsVerity, LayerForm};
pub use place::Data;
pub use settle::{IMPLIED, LINK, Refused};
pub use tar::TarFile;
pub use tree::{Kind, Meta, Node, Tree};
pub use verity::Verity;
pub use xattrs::XattrSet;

/// An image that was written.
#[derive(Debug)]
pub struct Image {
    file: File,
    header: format::Super,
}

impl Image {
    /// The file it is in.
    pub fn into_file(self) -> File {
        self.file
    }

    /// How many files, folders, links and devices it has.
    pub fn inodes(&self) -> u64 {
        self.header.inodes
    }

    /// How long it is, in bytes.
    pub fn length(&self) -> u64 {
        u64::from(self.header.blocks) << self.header.bits
    }

    /// How long its data is, the superblock included, in bytes: the metadata begins there.
    pub fn data_length(&self) -> u64 {
        u64::from(self.header.meta_block) << self.header.bits
    }
}
