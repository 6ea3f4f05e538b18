use windlass_images::Filter;

use crate::{Error, Result, Windlass, pull::blocking};

/// The label of an image that says from which registry it came, as a reference: what is missing of it is fetched from there.
pub(crate) const SOURCE: &str = "windlass.source";

/// The label of an image whose layers are not kept as blobs, since they are unpacked.
pub(crate) const UNPACKED: &str = "windlass.unpacked";

impl Windlass {
    /// Gives an image another name, too; returns whether it is new.
    ///
    /// # Errors
    ///
    /// [`Error::NoImage`] if there is no image of the first name, [`Error::Images`].
    pub async fn tag(&self, name: &str, new: &str) -> Result<bool> {
        let (this, from, to) = (self.clone(), name.to_owned(), new.to_owned());
        let is_new = blocking(move || {
            let is_new = this.images().get(&to)?.is_none();
            match this.images().tag(&from, &to)? {
                true => Ok(is_new),
                false => Err(Error::NoImage { name: from }),
            }
        })
        .await?;
        self.write_index().await?;
        Ok(is_new)
    }

    /// Takes a name off the list; returns whether it was there. What only that image needed stays until
    /// [`gc`](Self::gc).
    ///
    /// # Errors
    ///
    /// [`Error::Images`].
    pub async fn remove(&self, name: &str) -> Result<bool> {
        let (this, name) = (self.clone(), name.to_owned());
        let was_there = blocking(move || Ok(this.images().delete(&name)?)).await?;
        if was_there {
            self.write_index().await?;
        }
        Ok(was_there)
    }

    /// Lets other tools find the images that are listed, in the content folder: `skopeo inspect oci:<root>/content:<name>`.
    ///
    /// Whatever changes the list through [`Windlass`] does this itself.
    ///
    /// # Errors
    ///
    /// [`Error::Images`], [`Error::Content`].
    pub async fn write_index(&self) -> Result<()> {
        let images = self.images().clone();
        let list = move || {
            let records = images.list(&Filter::all())?;
            Ok::<_, Error>(records.into_iter().map(|record| (record.name, record.target)).collect())
        };
        self.content().write_index(list).await
    }
}
