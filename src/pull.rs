use oci_spec::image::Descriptor;
use windlass_content::Store;
use windlass_images::{
    ChainId, LeaseOptions, Platform,
    import::check,
    media_type,
    progress::{Event, Progress},
};
use windlass_reference::Reference;
use windlass_remotes::Resolved;

use crate::{
    Error, Result, Windlass,
    attempt::{Attempt, Extent, is_full, is_remote},
};

/// Which platforms' images a pull fetches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Platforms {
    /// The one that runs here.
    #[default]
    Host,
    /// This one.
    One(Platform),
    /// All of them. What is unpacked is still the one that runs here.
    All,
}

impl Platforms {
    /// The one platform to unpack or run.
    pub(crate) fn to_run(&self) -> Platform {
        match self {
            Self::Host | Self::All => Platform::host(),
            Self::One(platform) => platform.clone(),
        }
    }
}

/// What a pull does beyond the defaults.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PullOptions {
    /// Which platforms to fetch. The host's by default.
    pub platforms: Platforms,
    /// Where events go. Nowhere by default.
    pub progress: Progress,
    /// Whether layers are unpacked into snapshots while they arrive. True by default.
    pub unpack: bool,
    /// Which blobs are kept once layers are unpacked. All by default.
    pub retain: Retain,
}

/// Which blobs are kept of an image that is unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retain {
    /// All: the image can be pushed, exported, and unpacked by another driver.
    #[default]
    Everything,
    /// Not those of layers, once they are unpacked: half of the disk. Whatever needs them later fetches them again from where
    /// they came: see [`Windlass::refetching`]. Those that were here before the pull, or that another pull holds, stay.
    Unpacked,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            platforms: Platforms::default(),
            progress: Progress::default(),
            unpack: true,
            retain: Retain::default(),
        }
    }
}

impl PullOptions {
    /// Sets which platforms to fetch.
    pub fn platforms(self, platforms: Platforms) -> Self {
        Self { platforms, ..self }
    }

    /// Sets where events go.
    pub fn progress(self, progress: Progress) -> Self {
        Self { progress, ..self }
    }

    /// Sets whether layers are unpacked.
    pub fn unpack(self, unpack: bool) -> Self {
        Self { unpack, ..self }
    }

    /// Sets which blobs are kept.
    pub fn retain(self, retain: Retain) -> Self {
        Self { retain, ..self }
    }
}

/// An image that is here now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pulled {
    /// The name it is recorded under.
    pub name: String,
    /// What the name stands for: a manifest or an index.
    pub target: Descriptor,
    /// The name of the unpacked root file system. `None` if it was not unpacked, or has no layers.
    pub chain_id: Option<ChainId>,
}

impl Windlass {
    /// Pulls an image for this host, unpacks it while it arrives, and records its name last.
    ///
    /// What is here already is not fetched again. Dropping the future keeps what came, for the next pull.
    ///
    /// # Errors
    ///
    /// Whatever the registry, the image or the disk may answer. Nothing of the image is listed then.
    pub async fn pull(&self, reference: &Reference) -> Result<Pulled> {
        self.pull_with(reference, PullOptions::default()).await
    }

    /// As [`pull`](Self::pull), with options.
    ///
    /// ```no_run
    /// use windlass::{Platforms, PullOptions, Retain};
    ///
    /// # async fn example(windlass: windlass::Windlass) -> Result<(), Box<dyn std::error::Error>> {
    /// let arm = Platforms::One("linux/arm64".parse()?);
    /// let options = PullOptions::default().platforms(arm).retain(Retain::Unpacked);
    /// windlass.pull_with(&"redis:7".parse()?, options).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`pull`](Self::pull).
    pub async fn pull_with(&self, reference: &Reference, options: PullOptions) -> Result<Pulled> {
        self.pull_from(self.resolver().resolve(reference).await?, options, Some(reference), Extent::Platforms)
            .await
    }

    /// Pulls what was resolved already, from wherever it is: a local file, such as
    /// [`Source`](windlass_remotes::local::Source) finds, or another resolver than this folder's own.
    ///
    /// It is recorded under [`Resolved::name`].
    ///
    /// # Errors
    ///
    /// As [`pull`](Self::pull).
    pub async fn pull_resolved(&self, resolved: Resolved, options: PullOptions) -> Result<Pulled> {
        self.pull_from(resolved, options, None, Extent::Platforms).await
    }

    /// As [`pull_resolved`](Self::pull_resolved), with a say in where it can be fetched again, and in what may be missing.
    pub(crate) async fn pull_from(
        &self,
        resolved: Resolved,
        options: PullOptions,
        source: Option<&Reference>,
        extent: Extent,
    ) -> Result<Pulled> {
        let Resolved { name, descriptor: target, .. } = &resolved;
        if !media_type::is_index(target.media_type()) && !media_type::is_manifest(target.media_type()) {
            let media_type = target.media_type().to_string();
            return Err(Error::NotAnImage { name: name.clone(), media_type });
        }
        options.progress.send(Event::Resolved { name: name.clone(), descriptor: target.clone() });

        // Whatever is held before one looks whether it is there stays there.
        let lease = self.images().lease(LeaseOptions::default().label("pull", name)).await?;
        let left = self.content().active().await?.into_iter().map(|status| status.key).collect();
        let attempt =
            Attempt { windlass: self, lease: &lease, resolved: &resolved, options: &options, extent, left };
        let chain_id = match attempt.run().await {
            // Something that was here already may have been damaged. What came from elsewhere was checked.
            Err(error) if !is_remote(&error) && !is_full(&error) && attempt.remove_damaged().await? => {
                attempt.run().await?
            }
            answer => answer?,
        };
        if extent == Extent::WhatIsThere {
            check(self.content(), name, target, None).await?;
        }
        self.record(name, target, source, options.retain).await?;
        lease.release().await?;
        let Resolved { name, descriptor: target, .. } = resolved;
        Ok(Pulled { name, target, chain_id })
    }
}
