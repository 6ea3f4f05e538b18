//! How the driver works.

/// How new layers are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerForm {
    /// Each as an image with all its data: one file, which Linux 5.15 mounts.
    Full,
    /// Each as its tar, byte for byte, and an image that is an index of it. Takes Linux 6.4, less work and less room.
    Index,
}

/// How the layers of a snapshot are mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// As one file system: their merged tree, with their images as devices.
    #[default]
    Merged,
    /// As an overlay of as many file systems.
    Stacked,
}

/// How an [`Erofs`](super::Erofs) is to work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ErofsOptions {
    /// How the layers of a snapshot are mounted. [`Form::Merged`] by default.
    pub form: Form,
    /// How new layers are kept; those that are there stay as they are. `None` by default: as [`LayerForm::Index`] where the kernel
    /// mounts it, else as [`LayerForm::Full`].
    pub layers: Option<LayerForm>,
    /// Whether new layers are sealed with fs-verity when they are committed: the kernel lets nobody write to their files, and checks what it
    /// reads of them. Off by default; [`Error::Unsupported`](crate::Error::Unsupported) where the file system of the root has no such thing.
    pub fs_verity: bool,
}

/// The fs-verity digests (SHA-256, blocks of 4,096 bytes, no salt) of a layer's files, as the kernel measures them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsVerity {
    /// That of its image.
    pub image: [u8; 32],
    /// That of its tar, if the image is an index of one.
    pub tar: Option<[u8; 32]>,
}

impl ErofsOptions {
    /// Sets how the layers of a snapshot are mounted.
    #[must_use]
    pub fn form(self, form: Form) -> Self {
        Self { form, ..self }
    }

    /// Sets how new layers are kept.
    #[must_use]
    pub fn layers(self, layers: LayerForm) -> Self {
        Self { layers: Some(layers), ..self }
    }

    /// Sets whether new layers are sealed with fs-verity.
    #[must_use]
    pub fn fs_verity(self, fs_verity: bool) -> Self {
        Self { fs_verity, ..self }
    }
}
