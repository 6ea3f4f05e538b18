use std::{fmt, str::FromStr};

use oci_spec::image::Descriptor;

use crate::Error;

/// An operating system and a CPU, in Go's words: `linux/arm64/v8`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    /// The one this program runs on.
    pub fn host() -> Self {
        let variant = (std::env::consts::ARCH == "arm").then_some("v7");
        Self::normalised(std::env::consts::OS, std::env::consts::ARCH, variant)
    }

    /// The operating system: `linux`.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// The CPU: `amd64`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Which of these manifests runs best here; `None` if none does.
    ///
    /// Exactly this platform comes first, then older variants that a newer CPU also runs, newest first, then a manifest
    /// that says nothing of its platform. Among equals the first one counts.
    pub fn best<'a>(&self, manifests: &'a [Descriptor]) -> Option<&'a Descriptor> {
        let ranked = manifests.iter().filter_map(|manifest| Some((self.rank(manifest)?, manifest)));
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, manifest)| manifest)
    }

    /// Whether an image that says to be for `os`, `architecture` and `variant` runs on this platform.
    pub fn runs(&self, os: &str, architecture: &str, variant: Option<&str>) -> bool {
        self.distance(&Self::normalised(os, architecture, variant)).is_some()
    }

    /// How far a manifest is from what is wanted; 0 is it exactly.
    fn rank(&self, manifest: &Descriptor) -> Option<u32> {
        match Self::of(manifest) {
            Some(offered) => self.distance(&offered),
            None => Some(u32::MAX),
        }
    }

    fn distance(&self, offered: &Self) -> Option<u32> {
        if (&self.os, &self.architecture) != (&offered.os, &offered.architecture) {
            return None;
        }
        // A CPU runs what was made for its predecessors.
        self.level().checked_sub(offered.level())
    }

    /// The variant as a number, with the oldest where none is given: `v8` is 8.
    fn level(&self) -> u32 {
        let oldest = match self.architecture.as_str() {
            "arm64" => 8,
            "arm" => 7,
            _ => 1,
        };
        let number = |variant: &str| variant.strip_prefix('v')?.split('.').next()?.parse().ok();
        self.variant.as_deref().and_then(number).unwrap_or(oldest)
    }

    /// What a manifest says of its platform.
    pub(crate) fn of(manifest: &Descriptor) -> Option<Self> {
        let platform = manifest.platform().as_ref()?;
        Some(Self::normalised(
            &platform.os().to_string(),
            &platform.architecture().to_string(),
            platform.variant().as_deref(),
        ))
    }

    fn normalised(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let (architecture, implied) = match architecture.to_lowercase().as_str() {
            "x86_64" | "x86-64" => ("amd64".to_owned(), None),
            "aarch64" => ("arm64".to_owned(), None),
            "x86" | "i386" | "i486" | "i586" | "i686" => ("386".to_owned(), None),
            "armhf" => ("arm".to_owned(), Some("v7")),
            "armel" => ("arm".to_owned(), Some("v6")),
            "powerpc64le" => ("ppc64le".to_owned(), None),
            other => (other.to_owned(), None),
        };
        let os = match os.to_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let variant = variant.filter(|variant| !variant.is_empty()).or(implied).map(str::to_lowercase);
        Self { os, architecture, variant }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts: Vec<_> = text.split('/').collect();
        match parts[..] {
            [os, architecture] if parts.iter().all(|part| !part.is_empty()) => {
                Ok(Self::normalised(os, architecture, None))
            }
            [os, architecture, variant] if parts.iter().all(|part| !part.is_empty()) => {
                Ok(Self::normalised(os, architecture, Some(variant)))
            }
            _ => Err(Error::Platform { platform: text.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::{MediaType, PlatformBuilder};
    use windlass_content::hash::sha256;

    use super::*;

    fn manifest(platform: &str) -> Descriptor {
        let mut descriptor = Descriptor::new(MediaType::ImageManifest, 1, sha256(platform.as_bytes()));
        if !platform.is_empty() {
            let mut parts = platform.split('/');
            let mut builder = PlatformBuilder::default()
                .os(parts.next().expect("an os"))
                .architecture(parts.next().expect("an architecture"));
            if let Some(variant) = parts.next() {
                builder = builder.variant(variant);
            }
            descriptor.set_platform(Some(builder.build().expect("os and architecture are there")));
        }
        descriptor
    }

    #[test]
    fn the_nearest_variant_that_runs_is_chosen() {
        for (wanted, offered, best) in [
            ("linux/amd64", &["linux/arm64", "linux/amd64"][..], Some("linux/amd64")),
            ("linux/arm64", &["linux/arm64/v8"], Some("linux/arm64/v8")),
            ("linux/arm64/v8", &["linux/arm/v7", "linux/arm64"], Some("linux/arm64")),
            ("linux/arm/v7", &["linux/arm/v5", "linux/arm/v6", "linux/arm64/v8"], Some("linux/arm/v6")),
            ("linux/arm/v6", &["linux/arm/v7"], None),
            ("linux/amd64", &["linux/amd64/v3", "linux/amd64"], Some("linux/amd64")),
            ("linux/amd64", &["unknown/unknown", "windows/amd64"], None),
            ("linux/amd64", &["", "linux/amd64"], Some("linux/amd64")),
            ("linux/amd64", &[""], Some("")),
        ] {
            let manifests: Vec<_> = offered.iter().map(|platform| manifest(platform)).collect();
            let wanted: Platform = wanted.parse().expect("it is a platform");
            let chosen = wanted.best(&manifests).map(|it| it.digest().clone());
            assert_eq!(chosen, best.map(|it| sha256(it.as_bytes())), "{wanted} of {offered:?}");
        }
    }

    #[test]
    fn other_names_mean_the_same() {
        let same = |a: &str, b: &str| assert_eq!(a.parse::<Platform>().ok(), b.parse::<Platform>().ok());
        same("linux/x86_64", "linux/amd64");
        same("Linux/aarch64", "linux/arm64");
        same("linux/armhf", "linux/arm/v7");
        assert!("linux".parse::<Platform>().is_err());
        assert!("linux//".parse::<Platform>().is_err());
    }
}
