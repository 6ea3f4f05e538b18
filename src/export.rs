use std::{io::Write, path::Path};

use async_trait::async_trait;
use oci_spec::image::Descriptor;
use windlass_content::{Blob, Error as ContentError, Provider};
use windlass_images::export::{ExportOptions, export, export_layout};

use crate::{Error, Refetching, Result, Windlass, windlass::blocking};

/// The content of several images: what one does not have, another may.
#[derive(Debug)]
struct AnyOf(Vec<Refetching>);

#[async_trait]
impl Provider for AnyOf {
    async fn open(&self, descriptor: &Descriptor) -> Result<Blob, ContentError> {
        let mut answer = Err(ContentError::NotFound { digest: descriptor.digest().clone() });
        for image in &self.0 {
            match image.open(descriptor).await {
                Ok(blob) => return Ok(blob),
                // Another one may have it. If none does, what says more than that it is missing counts.
                Err(ContentError::NotFound { .. }) => {}
                Err(error) => answer = Err(error),
            }
        }
        answer
    }
}

impl Windlass {
    /// Writes images as one tar archive, which is an OCI image layout and what `docker load` takes: see
    /// [`export`](windlass_images::export::export()).
    ///
    /// The same images give the same bytes. Layers that were discarded are fetched again: see
    /// [`refetching`](Self::refetching).
    ///
    /// ```no_run
    /// use std::fs::File;
    ///
    /// # async fn example(windlass: windlass::Windlass) -> Result<(), Box<dyn std::error::Error>> {
    /// let file = File::create("both.tar")?;
    /// let names = ["docker.io/library/redis:7", "docker.io/library/debian:13"];
    /// windlass.export(&names, &Default::default(), file).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoImage`] if a name is not listed, [`Error::Images`] if something of an image is missing or `writer`
    /// refuses.
    pub async fn export(
        &self,
        names: &[impl AsRef<str>],
        options: &ExportOptions,
        writer: impl Write + Send + 'static,
    ) -> Result<()> {
        let images = self.listed(names).await?;
        Ok(export(&self.any_of(names).await?, &images, options, writer).await?)
    }

    /// Writes images as an OCI image layout, into a folder that is empty or not there yet.
    ///
    /// # Errors
    ///
    /// As [`export`](Self::export).
    pub async fn export_layout(
        &self,
        names: &[impl AsRef<str>],
        options: &ExportOptions,
        folder: impl AsRef<Path>,
    ) -> Result<()> {
        let images = self.listed(names).await?;
        Ok(export_layout(&self.any_of(names).await?, &images, options, folder).await?)
    }

    /// The content of all of them.
    async fn any_of(&self, names: &[impl AsRef<str>]) -> Result<AnyOf> {
        let mut images = Vec::new();
        for name in names {
            images.push(self.refetching(name.as_ref()).await?);
        }
        Ok(AnyOf(images))
    }

    /// What names stand for.
    async fn listed(&self, names: &[impl AsRef<str>]) -> Result<Vec<(String, Descriptor)>> {
        let (this, names) = (self.clone(), names.iter().map(|name| name.as_ref().to_owned()));
        let names: Vec<_> = names.collect();
        blocking(move || {
            let target = |name: String| match this.images().get(&name)? {
                Some(record) => Ok((name, record.target)),
                None => Err(Error::NoImage { name }),
            };
            names.into_iter().map(target).collect()
        })
        .await
    }
}
