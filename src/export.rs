use std::{io::Write, path::Path};

use oci_spec::image::Descriptor;
use windlass_images::export::{ExportOptions, export, export_layout};

use crate::{Error, Result, Windlass, pull::blocking};

impl Windlass {
    /// Writes images as one tar archive, which is an OCI image layout and what `docker load` takes: see
    /// [`export`](windlass_images::export::export()).
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
        Ok(export(self.content(), &images, options, writer).await?)
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
        Ok(export_layout(self.content(), &images, options, folder).await?)
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
