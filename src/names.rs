use std::collections::BTreeMap;

use oci_spec::image::Descriptor;
use windlass_images::{Create, Filter, Found, Record, Update};
use windlass_reference::Reference;

use crate::{
    Error, Result, Retain, Windlass,
    labels::{SOURCE, UNPACKED},
    windlass::blocking,
};

/// How many hexadecimal digits of a digest are taken for one, at least, where a name could be meant as well.
const DIGITS: usize = 12;

impl Windlass {
    /// The image that a text means: a name, which need not be canonical (`redis` is `docker.io/library/redis:latest`), or
    /// else a digest or the beginning of one: `sha256:0123`, or 12 digits and more of it alone.
    ///
    /// Of several names with that digest it is the first.
    ///
    /// ```no_run
    /// # async fn example(windlass: windlass::Windlass) -> windlass::Result<()> {
    /// let record = windlass.find("redis").await?;
    /// assert_eq!(record.name, "docker.io/library/redis:latest");
    /// let same = windlass.find(record.target.digest().as_ref()).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoImage`] if nothing is called that, [`Error::Ambiguous`] if images of several digests begin so,
    /// [`Error::Images`].
    pub async fn find(&self, text: &str) -> Result<Record> {
        let (this, text) = (self.clone(), text.to_owned());
        blocking(move || {
            let images = this.images();
            let canonical = Reference::parse(&text).map_or_else(|_| text.clone(), |name| name.to_string());
            for name in [&text, &canonical] {
                if let Some(record) = images.get(name)? {
                    return Ok(record);
                }
            }
            if !is_digest(&text) {
                return Err(Error::NoImage { name: canonical });
            }
            match images.find_digest(&text)? {
                Found::Several => Err(Error::Ambiguous { prefix: text }),
                Found::Nothing => Err(Error::NoImage { name: text }),
                Found::One(digest) => {
                    let first = images.list(&Filter::all().digest(digest).limit(1))?.pop();
                    first.ok_or(Error::NoImage { name: text })
                }
            }
        })
        .await
    }

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

    /// Records a name with its labels, in one step, and last of all.
    pub(crate) async fn record(
        &self,
        name: &str,
        target: &Descriptor,
        source: Option<&Reference>,
        retain: Retain,
    ) -> Result<()> {
        let mut labels = BTreeMap::new();
        labels.extend(source.map(|source| (SOURCE.to_owned(), source.to_string())));
        labels.extend((retain == Retain::Unpacked).then(|| (UNPACKED.to_owned(), "true".to_owned())));
        let update = Update::default().target(target.clone()).remove_label(SOURCE).remove_label(UNPACKED);
        let update = labels.iter().fold(update, |update, (key, value)| update.set_label(key, value));
        let (this, name, target) = (self.clone(), name.to_owned(), target.clone());
        blocking(move || {
            // Somebody else may make or remove it at any time.
            while this.images().update(&name, &update)?.is_none() {
                if this.images().create(&name, &target, &labels)? == Create::Created {
                    break;
                }
            }
            Ok(())
        })
        .await?;
        self.write_index().await
    }
}

/// Whether a text can be a digest, or the beginning of one.
fn is_digest(text: &str) -> bool {
    let is_hex = |hex: &str| hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    match text.split_once(':') {
        Some((algorithm, hex)) => {
            ["sha256", "sha384", "sha512"].contains(&algorithm) && !hex.is_empty() && is_hex(hex)
        }
        None => text.len() >= DIGITS && is_hex(text),
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::{Digest, MediaType};

    use super::*;

    #[tokio::test]
    async fn an_image_is_found_by_any_name_and_by_as_much_of_its_digest_as_only_it_has() {
        let folder = tempfile::tempdir().expect("there is room");
        let windlass = Windlass::open(folder.path()).expect("there is room");
        let digest = |end: char| format!("sha256:{}{end}", "0".repeat(63));
        for (name, end) in [("docker.io/library/app:1", '1'), ("not canonical", '2'), ("a second name", '2')]
        {
            let digest: Digest = digest(end).parse().expect("it is a digest");
            let target = Descriptor::new(MediaType::ImageManifest, 1, digest);
            windlass.images().put(name, &target).expect("there is room");
        }

        for (text, found) in [
            ("app:1", "docker.io/library/app:1"),
            ("docker.io/library/app:1", "docker.io/library/app:1"),
            ("not canonical", "not canonical"),
            (&digest('1'), "docker.io/library/app:1"),
            (&digest('2'), "a second name"),
            (&digest('2')["sha256:".len()..], "a second name"),
        ] {
            assert_eq!(windlass.find(text).await.expect(text).name, found, "{text}");
        }
        for (text, why) in [
            ("app", "no image docker.io/library/app:latest here; pull it first"),
            ("sha256:1", "no image sha256:1 here; pull it first"),
            (
                "000000000000",
                "more than one image has a digest that begins with 000000000000; use more of it",
            ),
            ("00000000000", "no image docker.io/library/00000000000:latest here; pull it first"),
            ("no name", "no image no name here; pull it first"),
        ] {
            assert_eq!(windlass.find(text).await.expect_err(text).to_string(), why, "{text}");
        }
    }

    #[test]
    fn digests_and_their_beginnings_are_told_from_names() {
        for (text, expected) in [
            ("sha256:0", true),
            ("sha512:0123456789abcdef", true),
            ("0123456789ab", true),
            ("0123456789a", false),
            ("0123456789AB", false),
            ("sha256:", false),
            ("sha256:latest", false),
            ("redis:0123456789ab", false),
            ("docker.io/library/redis:latest", false),
            ("", false),
        ] {
            assert_eq!(is_digest(text), expected, "{text}");
        }
    }
}
